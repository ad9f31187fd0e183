"""The run folder: configuration, results, plot and adapters."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.files import write_json, write_results, write_rounds, write_text
from fedsim_userdp.report.plots import plot_comparison
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow, RoundRecord
from fedsim_userdp.report.table import FOOTNOTE, result_console, results_table
from simulations.arguments import check_continues
from simulations.diary import Outcome


class RunFolder:
    """Collects outcomes and keeps the files of the folder up to date after each."""

    def __init__(self, path: Path, console: Console) -> None:
        self.path, self.console = path, console
        self.rows: list[ResultRow] = []
        self.rounds: list[RoundRecord] = []
        self.statements: list[PrivacyStatement] = []

    @classmethod
    def of_this_job(cls, config: DictConfig) -> "RunFolder":
        """Returns the folder of the running Hydra job, the resolved configuration written to it."""
        folder = cls(Path(HydraConfig.get().runtime.output_dir), result_console())
        if config.resume is not None:
            check_continues(config, folder.path)
        write_text(folder.path / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        return folder

    def progress(self) -> RunProgress:
        """Returns the display of progress on this folder's console."""
        return RunProgress(self.console)

    def add(self, outcome: Outcome) -> None:
        """Adds a finished run: its adapter, and the result files written anew."""
        row = outcome.row
        if row.rounds:
            repeated = any(other.mechanism == row.mechanism for other in self.rows)
            name = f"{row.mechanism}-seed{row.seed}" if repeated else row.mechanism
            outcome.model.save_pretrained(str(self.path / "adapters" / name))
        self.rows.append(row)
        self.rounds.extend(outcome.rounds)
        self.statements.append(outcome.statement)
        write_results(self.path, self.rows)
        write_rounds(self.path, self.rounds)
        write_json(self.path / "privacy.json", self._statements_by_run())
        paragraphs = [f"## {s.mechanism}\n\n{s.paragraph()}\n" for s in self.statements]
        write_text(self.path / "PRIVACY.md", "\n".join(["# What is guaranteed\n", *paragraphs]))

    def _statements_by_run(self) -> list[dict[str, object]]:
        """The statements, each with its run's seed."""
        pairs = zip(self.rows, self.statements, strict=True)
        return [{"seed": row.seed, **statement.to_json()} for row, statement in pairs]

    def finish(self) -> None:
        """Draws the plot and prints the table."""
        plot_comparison(self.path / "comparison.png", self.rows, self.rounds)
        self.console.print(results_table(self.rows))
        self.console.print(FOOTNOTE, highlight=False, soft_wrap=True)
        self.console.print(f"run folder: {self.path}", highlight=False, soft_wrap=True)
