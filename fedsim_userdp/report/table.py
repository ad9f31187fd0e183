"""The comparison table."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from fedsim_userdp.report.records import ResultRow

TABLE_WIDTH = 100
HEADINGS = ("eps", "tight", "delta", "noise", "clip", "k", "perplexity", "seconds")
FOOTNOTE = """\
eps: user-level epsilon; "none" where there is no user-level guarantee.  tight: user-level epsilon of the
same run by the tight ELS accountant.  noise: noise multiplier.  clip: clip norm, the first where it
adapts itself.  k: most records of a user.  perplexity: on held-out users, lower is better; not private."""


def result_console() -> Console:
    """Returns a console that is wide enough for the table where the output is no terminal."""
    console = Console()
    return console if console.is_terminal else Console(width=TABLE_WIDTH)


def results_table(rows: Sequence[ResultRow]) -> Table:
    """Returns the rows as a table; a dash stands for "does not apply"."""
    table = Table()
    table.add_column("mechanism", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: ResultRow) -> list[str]:
    """The row's cells."""
    without = "none" if row.rounds else "-"
    return [
        row.mechanism,
        row.unit if row.unit != "none" else "-",
        without if row.epsilon is None else f"{row.epsilon:.2f}",
        "-" if row.epsilon_tight is None else f"{row.epsilon_tight:.2f}",
        "-" if row.delta is None else f"{row.delta:.1e}",
        f"{row.noise_multiplier:.3f}" if row.noise_multiplier else "-",
        "-" if row.clip_norm is None else f"{row.clip_norm:g}",
        str(row.records_per_user) if row.rounds else "-",
        f"{row.perplexity:.1f}",
        f"{row.seconds:.0f}",
    ]
