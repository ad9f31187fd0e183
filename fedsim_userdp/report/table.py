"""The comparison table."""

from collections.abc import Sequence

from rich.table import Table

from fedsim_userdp.report.records import ResultRow


def results_table(rows: Sequence[ResultRow]) -> Table:
    """Returns the rows as a table; a dash stands for "does not apply"."""
    table = Table(title="Held-out users' perplexity at one user-level budget (perplexity is not private)")
    table.add_column("mechanism", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    for heading in ("user-level eps", "delta", "noise mult.", "clip norm", "k", "perplexity", "seconds"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(*_cells(row))
    return table


def _cells(row: ResultRow) -> list[str]:
    """The row's cells."""
    no_guarantee = "none" if row.unit in ("record", "none") and row.mechanism != "zero_shot" else "no training"
    return [
        row.mechanism,
        row.unit if row.unit != "none" else "-",
        no_guarantee if row.epsilon is None else f"{row.epsilon:.3g}",
        "-" if row.delta is None else f"{row.delta:.2g}",
        f"{row.noise_multiplier:.3f}" if row.noise_multiplier else "-",
        "-" if row.clip_norm is None else f"{row.clip_norm:g}",
        str(row.records_per_user) if row.rounds else "-",
        f"{row.perplexity:.1f}",
        f"{row.seconds:.0f}",
    ]
