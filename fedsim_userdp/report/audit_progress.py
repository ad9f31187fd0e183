"""Live progress of an audit's steps: a rich bar on a terminal, plain lines elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from fedsim_userdp.printable import printable

_SECONDS_BETWEEN_LINES = 10.0


class StepProgress:
    """Shows how far each step of a known length is, one step after the other.

    Args:
        console: where to write; a terminal gets a live bar.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        columns = (TextColumn("{task.description:<32}", markup=False), BarColumn(bar_width=24), MofNCompleteColumn())
        self._bar = Progress(
            *columns, TextColumn("{task.fields[unit]}"), TimeRemainingColumn(), console=console,
            disable=not console.is_terminal,
        )  # fmt: skip
        self._task: TaskID | None = None
        self._name, self._total, self._unit = "", 0, ""
        self._start = self._last_line = 0.0

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def start(self, name: str, total: int, unit: str) -> None:
        """Begins the step called `name` of `total` things called `unit`."""
        self._name, self._total, self._unit = printable(name), total, unit
        self._start = self._last_line = time.monotonic()
        self._task = self._bar.add_task(self._name, total=total, unit=unit)

    def advance(self, done: int) -> None:
        """Reports that `done` things of the step are done; a plain line every few seconds and at the end."""
        if self._task is not None:
            self._bar.update(self._task, completed=done)
        now = time.monotonic()
        is_due = done == self._total or now - self._last_line >= _SECONDS_BETWEEN_LINES
        if not self.console.is_terminal and is_due:
            left = (now - self._start) / max(done, 1) * (self._total - done)
            line = f"{self._name}: {done}/{self._total} {self._unit}, {left:.0f} s left"
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)
            self._last_line = now

    def warn(self, message: str) -> None:
        """Prints a line above the bar."""
        self.console.print(printable(message), style="yellow", highlight=False, markup=False, soft_wrap=True)
