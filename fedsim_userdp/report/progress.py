"""Live progress of long work: a rich bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedsim_userdp.printable import printable
from fedsim_userdp.privacy.figures import in_column

_SECONDS_BETWEEN_LINES = 5.0


class RunProgress:
    """Shows round, epsilon so far, users (or records) per second and the time left.

    Args:
        console: where to write; a terminal gets a live bar.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._bar = Progress(
            TextColumn("{task.description:<20}", style="bold", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID | None = None
        self._name, self._total, self._unit = "", 0, "users"
        self._start = self._last_line = 0.0
        self._num_units = 0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, name: str, total: int, unit: str, first: int = 0) -> None:
        """Begins the run called `name` of `total` rounds over `unit` ("users" or "records") after round `first`."""
        self._name, self._total, self._unit, self._num_units = printable(name), total, unit, 0
        self._start = self._last_line = time.monotonic()
        self._task = self._bar.add_task(self._name, total=total, completed=first, note="")
        if not self.console.is_terminal and total:
            self.console.print(f"{self._name}: {total} rounds", highlight=False, markup=False)

    def advance(self, round: int, num_units: int, epsilon: float | None, perplexity: float | None) -> None:
        """Reports that `round` is done with `num_units` units; a plain line every few seconds and at the end."""
        self._num_units += num_units
        seconds = time.monotonic() - self._start
        note = self._note(epsilon, perplexity, self._num_units / max(seconds, 1e-9))
        if self._task is not None:
            self._bar.update(self._task, completed=round, note=note)
        due = time.monotonic() - self._last_line >= _SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and (due or round == self._total):
            left = seconds / max(round, 1) * (self._total - round)
            line = f"{self._name}: round {round}/{self._total}  {note}  {left:.0f} s left"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._last_line = time.monotonic()

    def warn(self, message: str) -> None:
        """Prints a line above the bar."""
        self.console.print(printable(message), style="yellow", highlight=False, markup=False, soft_wrap=True)

    def _note(self, epsilon: float | None, perplexity: float | None, rate: float) -> str:
        """What stands beside the bar."""
        parts = [
            f"eps {in_column(epsilon)}" if epsilon is not None else "no user-level eps",
            f"{rate:.0f} {self._unit}/s",
        ]
        if perplexity is not None:
            parts.append(f"perplexity {perplexity:.1f}")
        return "  ".join(parts)
