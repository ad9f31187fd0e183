"""The run folder: configuration, results, plot and adapters."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors import SafetensorError

from fedsim_userdp.models.adapters import ADAPTER
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.files import replacing, write_json, write_results, write_rounds, write_text
from fedsim_userdp.report.model_card import AdapterOrigin, model_card
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow, RoundRecord
from fedsim_userdp.report.table import FOOTNOTE, result_console, results_table
from simulations.diary import Outcome


class RunFolder:
    """Collects outcomes and keeps the files of the folder up to date after each."""

    def __init__(self, path: Path, console: Console, choices: Mapping[str, str]) -> None:
        self.path, self.console, self._choices = path, console, choices
        self.rows: list[ResultRow] = []
        self.rounds: list[RoundRecord] = []
        self.statements: list[PrivacyStatement] = []

    @classmethod
    def of_this_job(cls, config: DictConfig) -> "RunFolder":
        """Returns the folder of the running Hydra job, the resolved configuration written to it."""
        runtime = HydraConfig.get().runtime
        folder = cls(Path(runtime.output_dir), result_console(), runtime.choices)
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
            self._save_adapter(self.path / "adapters" / name, outcome)
        self.rows.append(row)
        self.rounds.extend(outcome.rounds)
        self.statements.append(outcome.statement)
        write_results(self.path, self.rows)
        write_rounds(self.path, self.rounds)
        write_json(self.path / "privacy.json", self._statements_by_run())
        paragraphs = [f"## {s.mechanism}\n\n{s.paragraph()}\n" for s in self.statements]
        write_text(self.path / "PRIVACY.md", "\n".join(["# What is guaranteed\n", *paragraphs]))

    def _save_adapter(self, path: Path, outcome: Outcome) -> None:
        """Writes an adapter in PEFT's format, with a card of ours in place of PEFT's empty one."""
        base_model = str(outcome.model.peft_config[ADAPTER].base_model_name_or_path)
        origin = AdapterOrigin(base_model, model=self._choices["model"], data=self._choices["data"])
        with replacing(path) as folder:
            try:
                outcome.model.save_pretrained(str(folder))
            except SafetensorError as error:  # how its writer says that the disk is full
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number.group(1)) if number else errno.EIO, str(error), str(path)) from error
            write_text(folder / "README.md", model_card(outcome.row, outcome.statement, origin))

    def _statements_by_run(self) -> list[dict[str, object]]:
        """The statements, each with its run's seed."""
        pairs = zip(self.rows, self.statements, strict=True)
        return [{"seed": row.seed, **statement.to_json()} for row, statement in pairs]

    def finish(self) -> None:
        """Draws the plot and prints the table."""
        from fedsim_userdp.report.plots import plot_comparison  # here, so that no run waits for it to begin

        with replacing(self.path / "comparison.png") as temporary:
            plot_comparison(temporary, self.rows, self.rounds)
        self.console.print(results_table(self.rows))
        self.console.print(FOOTNOTE, highlight=False, soft_wrap=True)
        self.console.print(f"run folder: {self.path}", highlight=False, soft_wrap=True)
