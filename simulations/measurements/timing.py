"""Taking time: whatever is queued on a device counts, and sides that are compared take turns."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch

from fedsim_userdp.training.batches import Unit

LEAST_USERS = 8  # fewer say little about ragged users


class BenchmarkError(ValueError):
    """A measurement that would not mean what it says, in one sentence."""


@dataclass(frozen=True)
class Stopwatch:
    """Measures seconds, the device's queue drained before and after.

    Attributes:
        device: where the work is done.
        clock: seconds from some point on.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    clock: Callable[[], float] = time.perf_counter

    def now(self) -> float:
        """Returns the time when everything that was asked of the device is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()
        return self.clock()

    def seconds(self, run: Callable[[], object]) -> float:
        """Returns how long `run` takes."""
        start = self.now()
        run()
        return self.now() - start


def take_turns(sides: Mapping[str, Callable[[], object]], repeats: int, stopwatch: Stopwatch) -> dict[str, list[float]]:
    """Returns the seconds of each side in each repeat; every side is run once before, and no side always comes first.

    Args:
        sides: what is compared, by name; each does the same work whenever it is called.
        repeats: at least 1.
        stopwatch: takes the time.
    """
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    names = list(sides)
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(stopwatch.seconds(sides[name]))
    return seconds


def affordable(
    units: Sequence[Unit], run: Callable[[Sequence[Unit]], object], seconds: float, stopwatch: Stopwatch
) -> list[Unit]:
    """Returns as many of the first units as `run` does in about `seconds`, at least `LEAST_USERS` where there are.

    Args:
        units: candidates, in no particular order.
        run: what is to be done with them.
        seconds: that it may take.
        stopwatch: takes the time.
    """
    count, least = min(2, len(units)), min(LEAST_USERS, len(units))
    run(units[:count])  # a first call loads what a device needs, and says nothing about the next
    while (taken := stopwatch.seconds(partial(run, units[:count]))) < seconds / 4 and count < len(units):
        count = min(2 * count, len(units))
    return list(units[: min(max(int(count * seconds / taken), least), len(units))])


class RoundTimes:
    """Takes the times of somebody else's rounds.

    Args:
        name: of whose rounds they are.
        stopwatch: takes the time.
        num_warm: first rounds that do not count.
    """

    def __init__(self, name: str, stopwatch: Stopwatch, num_warm: int) -> None:
        self.seconds: dict[str, list[float]] = {name: []}
        self._name, self._stopwatch, self._num_left, self._mark = name, stopwatch, num_warm, 0.0

    def begin(self) -> None:
        """Says that a round begins now."""
        self._mark = self._stopwatch.now()

    def lap(self) -> None:
        """Takes the time of the round that is over."""
        if self._num_left > 0:
            self._num_left -= 1
        else:
            self.seconds[self._name].append(self._stopwatch.now() - self._mark)
        self._mark = self._stopwatch.now()


class Alternation:
    """Takes turns with something that cannot be called round by round: it calls `lap` after each of its rounds.

    Args:
        own: name of what calls.
        other: name of what is run in between.
        run_other: does the other's round.
        stopwatch: takes the time.
        num_warm: first rounds that do not count.
    """

    def __init__(
        self, own: str, other: str, run_other: Callable[[], object], stopwatch: Stopwatch, num_warm: int
    ) -> None:
        self.seconds: dict[str, list[float]] = {own: [], other: []}
        self._own, self._other, self._run_other = own, other, run_other
        self._stopwatch, self._num_left = stopwatch, num_warm
        self._mark = 0.0

    def begin(self) -> None:
        """Says that the first round begins now."""
        self._mark = self._stopwatch.now()

    def lap(self) -> None:
        """Takes the time of the round that is over, then runs the other's."""
        own = self._stopwatch.now() - self._mark
        other = self._stopwatch.seconds(self._run_other)
        if self._num_left > 0:
            self._num_left -= 1
        else:
            self.seconds[self._own].append(own)
            self.seconds[self._other].append(other)
        self._mark = self._stopwatch.now()
