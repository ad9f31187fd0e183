"""The run folder: configuration, results, plot and adapters."""

import errno
import re
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from safetensors import SafetensorError

from fedsim_userdp.mechanisms.history import Outcome
from fedsim_userdp.mechanisms.keys import mark_of_draw
from fedsim_userdp.mechanisms.run_files import CARD, WEIGHTS, adapter_folder, ledger_file, tokenizer_digest
from fedsim_userdp.mechanisms.sweep import draws_in, path_to, update_sweep
from fedsim_userdp.models.adapters import ADAPTER, trainable_state
from fedsim_userdp.plain_files import make_folder, read_file
from fedsim_userdp.printable import printable
from fedsim_userdp.privacy import ledger
from fedsim_userdp.privacy.joint import StatedRun
from fedsim_userdp.report.files import replacing, write_results, write_rounds, write_text
from fedsim_userdp.report.model_card import AdapterOrigin, model_card
from fedsim_userdp.report.participation import RunParticipation, write_participation
from fedsim_userdp.report.privacy_files import digest_of, write_privacy
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.report.records import ResultRow, RoundRecord
from fedsim_userdp.report.table import footnote, results_table


class RunFolder:
    """Collects outcomes and keeps the files of the folder up to date after each.

    Args:
        path: the folder.
        console: where tables are printed.
        labels: what model and corpus are called; see `written.labels`.
        sweep: the folder of the sweep that this one is a job of; None outside of one.
        planned: names of the runs to come, in their order; those that have not ended yet are no part of what is stated.
    """

    def __init__(
        self,
        path: Path,
        console: Console,
        labels: tuple[str, str],
        sweep: Path | None = None,
        planned: Sequence[str] = (),
    ) -> None:
        self.path, self.console, self._labels, self._sweep = path, console, labels, sweep
        self._planned = tuple(planned)
        self.rows: list[ResultRow] = []
        self.rounds: list[RoundRecord] = []
        self.runs: list[StatedRun] = []
        self._participation: list[RunParticipation] = []

    def progress(self) -> RunProgress:
        """Returns the display of progress on this folder's console."""
        return RunProgress(self.console)

    def add(self, outcome: Outcome) -> None:
        """Adds a finished run: its adapter, and the result files written anew."""
        row, adapter = outcome.row, ""
        if row.rounds:
            before = [other.mechanism for other in self.rows]
            adapter = self._save_adapter(adapter_folder(self.path, row.mechanism, row.seed, before), outcome)
        draws = draws_in(ledger_file(self.path, row.mechanism, row.seed))
        draws = draws or (mark_of_draw(self._sweep or self.path, outcome.key),)
        self.rows.append(row)
        self.rounds.extend(outcome.rounds)
        self.runs.append(StatedRun(outcome.statement, row.seed, draws=draws, adapter=adapter))
        write_results(self.path, self.rows)
        write_rounds(self.path, self.rounds)
        if outcome.participation is not None or outcome.by_group:
            of_run = RunParticipation(row.mechanism, row.seed, outcome.participation, outcome.by_group)
            self._participation.append(of_run)
            write_participation(self.path, self._participation)
        sweep = None if self._sweep is None else path_to(self._sweep, self.path)
        write_privacy(self.path, self.runs, sweep, self._planned[len(self.runs) :])
        if self._sweep is not None:
            update_sweep(self._sweep)

    def _save_adapter(self, path: Path, outcome: Outcome) -> str:
        """Writes an adapter in PEFT's format, the tokenizer and a card of its own, and closes its ledger.

        Returns:
            sha256 of the file with the weights; empty where some are not finite, so that there is nothing to load.
        """
        is_private = outcome.statement.release is not None
        ledger_path = ledger_file(self.path, outcome.row.mechanism, outcome.row.seed)
        if not all(bool(tensor.isfinite().all()) for tensor in trainable_state(outcome.model).values()):
            if is_private:
                ledger.seal(ledger_path, "")
            return ""
        settings = outcome.model.peft_config[ADAPTER]
        settings.base_model_name_or_path = _without_place(str(settings.base_model_name_or_path))
        with replacing(path) as folder:
            make_folder(folder)
            try:
                # Into a folder just made, where nothing is in the way of these writers, which would follow it.
                # Of the base nothing: it is frozen, and PEFT would add layers whose adapters are embeddings'.
                outcome.model.save_pretrained(str(folder), save_embedding_layers=False)
                outcome.source.load_tokenizer().save_pretrained(str(folder))
            except Exception as error:  # how writers in Rust say that the disk is full
                number = re.search(r"os error (\d+)", str(error))
                if number is None and not isinstance(error, SafetensorError):
                    raise
                raise OSError(int(number.group(1)) if number else errno.EIO, str(error), str(path)) from error
            origin = AdapterOrigin(
                settings.base_model_name_or_path,
                *self._labels,
                is_on_hub=not Path(outcome.source.location).exists(),
                licence=outcome.licence,
                tokenizer=tokenizer_digest(folder),
            )
            write_text(folder / CARD, model_card(outcome.row, outcome.statement, origin))
        digest = digest_of(read_file(path / WEIGHTS))
        if is_private:
            ledger.seal(ledger_path, digest)
        return digest

    @property
    def diverged(self) -> list[str]:
        """The runs whose training diverged: their perplexity is not finite."""
        return [f"{row.mechanism}, seed {row.seed}" for row in self.rows if row.perplexity is None]

    def draw(self) -> None:
        """Draws the plot."""
        from fedsim_userdp.report.plots import plot_comparison  # here, so that no run waits for it to begin

        plot_comparison(self.path / "comparison.png", self.rows, self.rounds)

    def finish(self) -> None:
        """Draws the plot and prints the table."""
        self.draw()
        self.console.print(results_table(self.rows, self.console.width))
        self.console.print(footnote(self.rows), highlight=False, markup=False, soft_wrap=True)
        self.console.print(f"run folder: {printable(str(self.path))}", highlight=False, markup=False, soft_wrap=True)


def _without_place(base_model: str) -> str:
    """The name of a base model without its place on this machine, which nobody else has and which may name a person."""
    return Path(base_model).name if Path(base_model).exists() else base_model
