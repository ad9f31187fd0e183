"""The table of a study, for a terminal or a notebook."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from fedsim_userdp.printable import printable
from fedsim_userdp.privacy.figures import in_column
from fedsim_userdp.studies.summary import Line


def study_table(lines: Sequence[Line]) -> Table:
    """Returns a line for each mechanism and setting: perplexity with its 95% interval over seeds."""
    axes = list(lines[0].axes) if lines else []
    table = Table()
    table.add_column("mechanism", no_wrap=True)
    for axis in (*axes, "eps", "noise", "k", "seeds", "perplexity"):
        table.add_column(axis, justify="right", no_wrap=True)
    for line in lines:
        shown = ["any" if (value := line.axes[axis]) is None else str(value) for axis in axes]
        epsilon = "none" if line.epsilon is None else in_column(line.epsilon)
        noise = f"{line.noise_multiplier:.3f}" if line.noise_multiplier else "-"
        k = "-" if line.records_per_user is None else str(line.records_per_user)
        seeds = "0" if line.perplexity is None else str(line.perplexity.number)
        cells = [line.mechanism, *shown, epsilon, noise, k, seeds, line.in_words]
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table
