"""The comparison table."""

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from fedsim_userdp.printable import printable
from fedsim_userdp.privacy.delta import is_large, large_delta_in_words
from fedsim_userdp.privacy.figures import in_column, in_powers, rounded_up
from fedsim_userdp.privacy.statement import MET
from fedsim_userdp.report.records import ResultRow, people_of

TABLE_WIDTH = 100
HEADINGS = ("eps", "tight", "delta", "noise", "clip", "k", "untrained", "perplexity", "seconds")
_DROPPED_FIRST = ("seconds", "unit", "k", "clip", "tight", "noise", "untrained")
_FOOTNOTE = """\
eps: user-level epsilon; "none" where there is no user-level guarantee.  tight: user-level epsilon of the
same run by the tight ELS accountant.  noise: noise multiplier.  clip: clip norm, the first where it
adapts itself.  k: most records of a user.  perplexity: on {people}, lower is better; not private."""


def result_console() -> Console:
    """Returns a console that is wide enough for the table where the output is no terminal; `:smile:` stays as it is."""
    console = Console(emoji=False)
    return console if console.is_terminal else Console(width=TABLE_WIDTH, emoji=False)


def footnote(rows: Sequence[ResultRow]) -> str:
    """Returns what the columns mean, and what has to be said of these rows: a large delta, an unmet target, no gain."""
    lines = [_FOOTNOTE.format(people=people_of(rows))]
    if _shows_untrained(rows):
        lines.append("untrained: perplexity before training.")
    claims = [row for row in rows if row.epsilon is not None]
    large = [row.delta for row in claims if row.delta is not None and is_large(row.delta)]
    if large:
        lines.append(str(large_delta_in_words(max(large))))
    lines.extend(_unmet(row) for row in claims if _is_unmet(row))
    lines.extend(_worse(row) for row in rows if _is_worse(row))
    return "\n".join(map(printable, "\n".join(lines).split("\n")))


class ResultsTable(JupyterMixin):
    """The rows as a table as wide as where it is shown: a terminal, or a notebook's cell.

    Args:
        rows: the rows.
    """

    def __init__(self, rows: Sequence[ResultRow]) -> None:
        self.rows = tuple(rows)

    def __str__(self) -> str:
        """Returns the table as plain text."""
        console = result_console()
        with console.capture() as captured:
            console.print(self)
        return captured.get()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yields the table and what its columns mean."""
        yield results_table(self.rows, options.max_width)
        yield Text(" ".join(footnote(self.rows).split("\n")), style="dim")


def results_table(rows: Sequence[ResultRow], width: int = TABLE_WIDTH) -> Table:
    """Returns the rows as a table at most `width` characters wide; a dash stands for "does not apply".

    Where it would be wider, columns are left out, never digits: all but mechanism, eps, delta and perplexity may be,
    and `results.json` has them all.  The perplexity before training has a column where no row is the untrained model's.
    """
    metrics = list(dict.fromkeys(name for row in rows for name in row.metrics))
    headings, lines = ["mechanism", "unit", *HEADINGS, *metrics], [_cells(row, metrics) for row in rows]
    widths = [max(len(line[at]) for line in [headings, *lines]) for at in range(len(headings))]
    shown = [at for at, name in enumerate(headings) if name != "untrained" or _shows_untrained(rows)]
    for heading in (*_DROPPED_FIRST, *reversed(metrics)):
        if sum(widths[at] + 3 for at in shown) + 1 <= width:  # a column's padding and border; the last border
            break
        shown = [at for at in shown if headings[at] != heading]
    table = Table()
    for at in shown:
        table.add_column(headings[at], justify="left" if at < 2 else "right", no_wrap=True)
    for line in lines:
        table.add_row(*(Text(line[at]) for at in shown))
    return table


def _cells(row: ResultRow, metrics: Sequence[str]) -> list[str]:
    """The row's cells, those of the metrics last."""
    without = "none" if row.rounds else "-"
    return [
        printable(row.mechanism),
        row.unit if row.unit != "none" else "-",
        without if row.epsilon is None else in_column(row.epsilon),
        "-" if row.epsilon_tight is None else in_column(row.epsilon_tight),
        "-" if row.delta is None else in_powers(row.delta),
        f"{row.noise_multiplier:.3f}" if row.noise_multiplier else "-",
        "-" if row.clip_norm is None else f"{row.clip_norm:g}",
        str(row.records_per_user) if row.rounds else "-",
        "-" if row.untrained_perplexity is None else f"{row.untrained_perplexity:.1f}",
        "diverged" if row.perplexity is None else f"{row.perplexity:.1f}",
        f"{row.seconds:.0f}",
        *("-" if (value := row.metrics.get(name)) is None else f"{value:.4g}" for name in metrics),
    ]


def _shows_untrained(rows: Sequence[ResultRow]) -> bool:
    """Whether the perplexity before training is known, and no row of its own."""
    return all(row.rounds for row in rows) and any(row.untrained_perplexity is not None for row in rows)


def _is_worse(row: ResultRow) -> bool:
    """Whether training has made the model worse, by a digit that is shown."""
    before, after = row.untrained_perplexity, row.perplexity
    return before is not None and after is not None and round(after, 1) > round(before, 1)


def _worse(row: ResultRow) -> str:
    """That training has made the model worse."""
    return (
        f"{row.mechanism}, seed {row.seed}: the trained model is worse than the untrained one (perplexity "
        f"{row.perplexity:.1f} after, {row.untrained_perplexity:.1f} before): try a smaller learning rate."
    )


def _is_unmet(row: ResultRow) -> bool:
    """Whether epsilon stays well below what was asked for."""
    return row.epsilon is not None and row.target_epsilon is not None and row.epsilon < MET * row.target_epsilon


def _unmet(row: ResultRow) -> str:
    """That a target was not met."""
    return (
        f"{row.mechanism}: epsilon {row.target_epsilon:g} was asked for and {rounded_up(row.epsilon or 0.0)} holds: "
        "noise has a least size that can be accounted for, and the claim is stronger than asked."
    )
