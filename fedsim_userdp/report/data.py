"""What `fedsim data` says: tables, sentences, and the files `data.csv` and `data.json`. None of it is private."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.table import Table
from rich.text import Text

from fedsim_userdp.data.statistics import BoundEffect, CorpusStatistics, Distribution
from fedsim_userdp.printable import printable
from fedsim_userdp.report.files import NOT_PRIVATE, write_csv, write_json

NOTE = "computed from users' data without noise: NOT private, do not publish"
CSV_COLUMNS = ("about", "of", "figure", "value")


def distribution_table(statistics: CorpusStatistics) -> Table:
    """Returns how records and tokens are spread over users (and records over declared owners)."""
    table = Table()
    table.add_column("", no_wrap=True)
    for heading in ("min", "median", "p90", "max", "total", "top 1%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, spread in _distributions(statistics):
        amounts = (spread.minimum, spread.median, spread.p90, spread.maximum, spread.total)
        table.add_row(name, *(_amount(amount) for amount in amounts), _share(spread.top_1_percent_share))
    return table


def bound_table(statistics: CorpusStatistics, k: int | None = None) -> Table:
    """Returns what each bound keeps and drops; the run's own `k` is marked with an arrow."""
    table = Table()
    people = "owners" if statistics.ownership == "declared" else "users"
    for heading in ("k", f"{people} above k", "records kept", "dropped", "", "tokens kept", "dropped", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for bound in statistics.bounds:
        table.add_row(*_bound_cells(bound, is_own=bound.k == k))
    return table


def dropped_table(statistics: CorpusStatistics) -> Table:
    """Returns what was left out or repaired while reading and tokenising, by reason."""
    table = Table()
    table.add_column("left out or repaired")
    table.add_column("number", justify="right", no_wrap=True)
    for reason, num in sorted(statistics.dropped.items(), key=lambda item: (-item[1], item[0])):
        table.add_row(Text(printable(reason)), _amount(num))
    return table


def in_words(statistics: CorpusStatistics) -> list[str]:
    """Returns how to read the tables, a sentence each."""
    owners = statistics.records_per_owner
    words = ["top 1%: share of the total held by the 1% of users that have most."]
    if owners is None:
        words.append("tokens kept: expected where a user's k records are drawn at random.")
        words.append("Ownership: each record counts for one user.")
    else:
        words.append(f"Ownership: declared; {owners.total / statistics.num_sources:.2f} owners a record.")
        words.append(
            "k bounds the used records that anybody owns, alone or with others, with all users in the pool; blank "
            "ones count, and a long one gives one of its windows. "
            "user_wise can claim nothing for all owners: it is refused on this data."
        )
    return [*words, f"All figures are {NOTE}."]


def write_data_json(folder: Path, statistics: CorpusStatistics, **context: object) -> None:
    """Writes `not_private/data.json` of a run folder: the figures, with `context` (JSON values) before them."""
    write_json(folder / NOT_PRIVATE / "data.json", {"note": NOTE, **context, **statistics.to_dict()})


def write_data_csv(folder: Path, statistics: CorpusStatistics) -> None:
    """Writes `not_private/data.csv` of a run folder: the figures, one a row."""
    write_csv(folder / NOT_PRIVATE / "data.csv", CSV_COLUMNS, _rows(statistics))


def _distributions(statistics: CorpusStatistics) -> list[tuple[str, Distribution]]:
    """Each distribution with its name."""
    found = [("records per user", statistics.records_per_user), ("tokens per user", statistics.tokens_per_user)]
    if statistics.records_per_owner is not None:
        found.append(("records per owner", statistics.records_per_owner))
    return found


def _rows(statistics: CorpusStatistics) -> Iterator[dict[str, object]]:
    """The rows of the CSV file."""
    yield _row("corpus", "", "users", statistics.num_users)
    yield _row("corpus", "", "places", statistics.num_places)
    yield _row("corpus", "", "source records", statistics.num_sources)
    yield _row("corpus", "", "owners", statistics.num_owners)
    yield _row("corpus", "", "words", statistics.num_words)
    yield _row("corpus", "", "ownership", statistics.ownership)
    for name, spread in _distributions(statistics):
        for figure, value in asdict(spread).items():
            yield _row("distribution", name, figure, value)
    for bound in statistics.bounds:
        for figure, value in asdict(bound).items():
            if figure != "k":
                yield _row("bound", f"k={bound.k}", figure, value)
    for reason, num in statistics.dropped.items():
        yield _row("dropped", reason, "number", num)
    yield _row("note", "", "not_private", NOTE)


def _row(*cells: object) -> dict[str, object]:
    """One row of the CSV file."""
    return dict(zip(CSV_COLUMNS, cells, strict=True))


def _bound_cells(bound: BoundEffect, is_own: bool) -> Sequence[str]:
    """The bound's cells."""
    counts = ((bound.records_kept, bound.records_dropped), (bound.tokens_kept, bound.tokens_dropped))
    cells = [cell for kept, dropped in counts for cell in (_amount(kept), _amount(dropped), _share_of(dropped, kept))]
    return [f"{'> ' if is_own else ''}{bound.k}", _amount(bound.users_capped), *cells]


def _share_of(dropped: int, kept: int) -> str:
    """The dropped share as a percentage."""
    return _share(dropped / (dropped + kept)) if dropped + kept else "-"


def _share(share: float) -> str:
    """A percentage that is 0% and 100% only where it is exactly so."""
    if share in (0.0, 1.0):
        return f"{share:.0%}"
    return f"{min(max(100 * share, 0.1), 99.9):.1f}%"


def _amount(value: float) -> str:
    """A number with thousands separated."""
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"
