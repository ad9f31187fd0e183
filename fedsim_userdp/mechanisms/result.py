"""What a comparison made in Python gives back: rows, statements, rounds, adapters."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsim_userdp.mechanisms.history import Outcome
from fedsim_userdp.mechanisms.run_files import adapter_folder
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.records import ResultRow, RoundRecord
from fedsim_userdp.report.table import ResultsTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from peft import PeftModel


@dataclass(frozen=True, repr=False)
class Result:
    """The result of a comparison; everything in it is in the folder, too.

    Attributes:
        folder: the run folder.
        outcomes: the finished runs, in their order.
    """

    folder: Path
    outcomes: tuple[Outcome, ...]

    @property
    def rows(self) -> list[ResultRow]:
        """One row for each mechanism, as in `results.json`; perplexities are not private."""
        return [one.row for one in self.outcomes]

    def table(self) -> ResultsTable:
        """Returns the rows as a table that shows itself in a terminal (`rich.print`) and in a notebook."""
        return ResultsTable(self.rows)

    def figure(self) -> "Figure":
        """Returns the plot of perplexities as a matplotlib figure; it is not private."""
        from fedsim_userdp.report.plots import comparison_figure

        return comparison_figure(self.rows, [record for one in self.outcomes for record in one.rounds])

    def statement(self, mechanism: str) -> PrivacyStatement:
        """Returns what a mechanism's run promises."""
        return self._outcome(mechanism).statement

    def rounds(self, mechanism: str) -> Sequence[RoundRecord]:
        """Returns the rounds of a mechanism's run, the state before training first; not private."""
        return self._outcome(mechanism).rounds

    def model(self, mechanism: str) -> "PeftModel":
        """Returns the base model with a mechanism's trained adapter."""
        return self._outcome(mechanism).model

    def adapter(self, mechanism: str) -> Path:
        """Returns the folder of a mechanism's adapter, in PEFT's format.

        Raises:
            KeyError: there is no such mechanism, or it has trained no adapter.
        """
        row = self._outcome(mechanism).row
        path = adapter_folder(self.folder, row.mechanism, row.seed, [])
        if not path.is_dir():
            raise KeyError(f"{mechanism} has no adapter: it was not trained, or training diverged")
        return path

    def __repr__(self) -> str:
        """Names folder and mechanisms."""
        names = ", ".join(row.mechanism for row in self.rows)
        return f"<Result of {names} in {self.folder}>"

    def _outcome(self, mechanism: str) -> Outcome:
        """The outcome of a mechanism."""
        found = {one.row.mechanism: one for one in self.outcomes}
        if mechanism not in found:
            raise KeyError(f"{mechanism} was not compared; there are {', '.join(found)}")
        return found[mechanism]
