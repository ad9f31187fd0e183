"""How long a user waits: for `fedsim --help`, and for the first round of `fedsim run`."""

import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass

from fedsim_userdp.population import Past, Population
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.simulations.arguments import override_key
from fedsim_userdp.simulations.measurements.results import PartResult, Startup
from fedsim_userdp.simulations.measurements.timing import BenchmarkError, Stopwatch
from fedsim_userdp.simulations.measurements.workbench import Workbench

MARK = "fedsim-benchmark: the first round begins"
_FEDSIM = (sys.executable, "-m", "fedsim_userdp.simulations.cli")
_MOST_RUNS = 3  # of `fedsim run`, the one before not counted
_OWN = ("output_dir", "selection", "hydra", "benchmark")  # settings that are not passed on


def startup(bench: Workbench) -> PartResult:
    """Seconds of `fedsim --help`, and of `fedsim run` with this command's settings until its first round begins."""
    stopwatch = Stopwatch()
    arguments = [o for o in bench.overrides if override_key(o).split(".")[0] not in _OWN]
    seconds_until_first_round(arguments, stopwatch)  # from here on the token store is in the cache
    return PartResult(
        startup=Startup(
            help_seconds=[stopwatch.seconds(print_help) for _ in range(bench.repeats)],
            first_round_seconds=[
                seconds_until_first_round(arguments, stopwatch) for _ in range(min(bench.repeats, _MOST_RUNS))
            ],
        )
    )


def print_help() -> None:
    """Runs `fedsim --help`."""
    subprocess.run([*_FEDSIM, "--help"], check=True, stdout=subprocess.DEVNULL)


def seconds_until_first_round(arguments: Sequence[str], stopwatch: Stopwatch) -> float:
    """Returns how long `fedsim run` takes until it selects its first cohort; it is ended there.

    Raises:
        BenchmarkError: when it ends before.
    """
    announced = f"selection._target_={AnnouncedSelector.__module__}.{AnnouncedSelector.__qualname__}"
    with tempfile.TemporaryDirectory(prefix="fedsim-startup-") as folder:
        command = [*_FEDSIM, "run", *arguments, announced, f"output_dir={folder}/run"]
        start = stopwatch.now()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            lines = []
            for line in process.stdout or ():
                if line.strip() == MARK:
                    seconds = stopwatch.now() - start
                    process.kill()
                    return seconds
                lines.append(line)
    said = lines[-1].strip() if lines else "nothing"
    raise BenchmarkError(f"startup: fedsim run ended before its first round and said {said!r}")


@dataclass(frozen=True)
class AnnouncedSelector(PoissonSelector):
    """Poisson selection that prints a line before the first round."""

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        """Returns `sampling_prob`."""
        if round == 1:
            print(MARK, flush=True)
        return super().probabilities(round, population, past)
