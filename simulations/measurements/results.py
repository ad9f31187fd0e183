"""What `fedsim benchmark` leaves behind: comparisons as ratios with the raw figures, a table, CSV and JSON."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.table import Table

from fedsim_userdp.report.files import write_csv, write_json

Value = str | int | float | None


@dataclass(frozen=True)
class Goal:
    """What a ratio is wanted to be: at least or at most `bound`."""

    bound: float
    is_lower: bool

    def is_met_by(self, ratio: float) -> bool:
        """Returns whether the ratio is on the wanted side, the bound included."""
        return ratio >= self.bound if self.is_lower else ratio <= self.bound

    def __str__(self) -> str:
        return f"{'>=' if self.is_lower else '<='} {self.bound:g}"


GOALS = {
    "cohort_vs_plain": Goal(0.95, is_lower=True),
    "cohort_vs_one_by_one": Goal(1.5, is_lower=True),
    "cohort_vs_flower": Goal(4.0, is_lower=True),
    "cohort_vs_pfl": Goal(1.7, is_lower=True),
    "record_vs_opacus": Goal(1.0, is_lower=True),
    "population_1e6_vs_1e3": Goal(1.1, is_lower=False),
    "memory_512_vs_64": Goal(1.2, is_lower=False),
    "overhead_share": Goal(0.05, is_lower=False),
    "two_workers_vs_one": Goal(1.6, is_lower=True),
}
PARTS = (*GOALS, "cost_curves", "startup")
MOST_DRAW_SECONDS, MOST_HELP_SECONDS, MOST_FIRST_ROUND_SECONDS = 0.05, 1.0, 8.0
COLUMNS = ("part", "ratio", "goal", "is_met", "repeats", "least", "most", "over", "over_median", "under",
           "under_median", "unit", "note")  # fmt: skip
LEGEND = """\
ratio: median over the repeats of over / under, which take turns.  spread: its least and largest value."""


@dataclass(frozen=True)
class Comparison:
    """One ratio, measured in repeats in which the sides take turns.

    Attributes:
        name: one of `GOALS`.
        values: what each repeat gave, by side; all sides have the same number of repeats, at least one.
        over: the side in the numerator.
        under: the side in the denominator.
        unit: of the values, "seconds" or "bytes".
        work: what each side did in a repeat, such as {"users": 16}; the same for all of them.
        notes: further facts, such as how far apart the sides' results were.
    """

    name: str
    values: Mapping[str, Sequence[float]]
    over: str
    under: str
    unit: str = "seconds"
    work: Mapping[str, float] = field(default_factory=dict)
    notes: Mapping[str, Value] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """The ratio of each repeat."""
        pairs = zip(self.values[self.over], self.values[self.under], strict=True)
        return [over / under for over, under in pairs]

    @property
    def ratio(self) -> float:
        """The median ratio."""
        return statistics.median(self.ratios)

    @property
    def is_met(self) -> bool:
        """Whether the goal is reached."""
        return GOALS[self.name].is_met_by(self.ratio)

    def medians(self) -> dict[str, float]:
        """Returns the median value of each side."""
        return {side: statistics.median(values) for side, values in self.values.items()}

    def rates(self) -> dict[str, dict[str, float]]:
        """Returns work per second by kind of work and side; empty where seconds were not measured."""
        if self.unit != "seconds":
            return {}
        medians = self.medians()
        return {
            f"{work}_per_second": {side: amount / medians[side] for side in self.values}
            for work, amount in self.work.items()
        }


def speed(
    name: str,
    seconds: Mapping[str, Sequence[float]],
    of: str,
    against: str,
    work: Mapping[str, float] | None = None,
    notes: Mapping[str, Value] | None = None,
) -> Comparison:
    """Returns how many times as fast `of` is as `against`: seconds of `against` over seconds of `of`, for equal work.

    Args:
        name: one of `GOALS`.
        seconds: of each repeat, by side.
        of: the side whose speed is asked for.
        against: the side that it is compared with.
        work: what each side did in a repeat.
        notes: further facts.
    """
    return Comparison(name, seconds, over=against, under=of, work=work or {}, notes=notes or {})


@dataclass(frozen=True)
class CohortDraw:
    """What it takes to begin with a population: medians, in seconds.

    Attributes:
        num_users: the population.
        open_seconds: opening the token store, its content in the system's cache.
        draw_seconds: drawing a Poisson cohort with its users' tokens.
        split_seconds: setting users aside for evaluation, once in a run.
        expected_cohort: expected users of the cohort.
    """

    num_users: int
    open_seconds: float
    draw_seconds: float
    split_seconds: float
    expected_cohort: float


@dataclass(frozen=True)
class CostCurve:
    """Seconds of a round over one setting.

    Attributes:
        axis: what is varied.
        points: value to the seconds of each repeat; at least two values, above 0.
    """

    axis: str
    points: Mapping[int, Sequence[float]]

    @property
    def medians(self) -> list[float]:
        """The median seconds of each value."""
        return [statistics.median(seconds) for seconds in self.points.values()]

    @property
    def slope(self) -> float:
        """The least-squares slope of log seconds over log value: 1 where a round's time grows in proportion."""
        return float(np.polyfit(np.log(list(self.points)), np.log(self.medians), 1)[0])


@dataclass(frozen=True)
class Startup:
    """Seconds that a user waits, each repeat in a process of its own.

    Attributes:
        help_seconds: `fedsim --help`.
        first_round_seconds: `fedsim run` until its first round begins, with the token store in the cache.
    """

    help_seconds: Sequence[float]
    first_round_seconds: Sequence[float]


@dataclass(frozen=True)
class PartResult:
    """What a part found.

    Attributes:
        comparison: its ratio; None for a part without one, or one that cannot be measured here.
        absent: why there is no ratio, in words.
        draws: how long it takes to begin with populations of several sizes.
        curves: cost curves.
        startup: waiting times.
    """

    comparison: Comparison | None = None
    absent: str | None = None
    draws: Sequence[CohortDraw] = ()
    curves: Sequence[CostCurve] = ()
    startup: Startup | None = None


def benchmark_table(findings: Mapping[str, PartResult]) -> Table:
    """Returns the ratios as a table; a dash stands for what was not measured."""
    table = Table()
    table.add_column("part", no_wrap=True)
    for heading in ("ratio", "goal"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    table.add_column("spread", justify="right", no_wrap=True)
    table.add_column("over / under, medians")
    for name in [name for name in GOALS if name in findings]:
        table.add_row(name, *_cells(name, findings[name]))
    return table


def in_words(findings: Mapping[str, PartResult]) -> list[str]:
    """Returns what was found beside the ratios, a line each."""
    lines = []
    for found in findings.values():
        for draw in found.draws:
            lines.append(
                f"{draw.num_users:>9,} users: store opened in {1e3 * draw.open_seconds:.1f} ms, cohort of "
                f"{draw.expected_cohort:g} drawn in {1e3 * draw.draw_seconds:.1f} ms "
                f"(each at most {1e3 * MOST_DRAW_SECONDS:g} ms wanted)"
            )
        for curve in found.curves:
            first, *_, last = curve.points
            lines.append(
                f"seconds of a round over {curve.axis}: {curve.medians[0]:.3g} at {first} to {curve.medians[-1]:.3g} "
                f"at {last}, log-log slope {curve.slope:.2f}"
            )
        if found.startup is not None:
            help_seconds = statistics.median(found.startup.help_seconds)
            first_round = statistics.median(found.startup.first_round_seconds)
            lines.append(f"fedsim --help: {help_seconds:.2f} s (below {MOST_HELP_SECONDS:g} s wanted)")
            lines.append(
                f"fedsim run: first round after {first_round:.2f} s (below {MOST_FIRST_ROUND_SECONDS:g} wanted)"
            )
    return lines


def write_benchmark(folder: Path, findings: Mapping[str, PartResult], machine: Mapping[str, Value]) -> None:
    """Writes `benchmark.csv` (a row for each ratio) and `benchmark.json` (the ratios with all raw figures).

    Args:
        folder: where the files go.
        findings: by part, those measured so far.
        machine: where it was measured, and with what.
    """
    comparisons = {name: found.comparison for name, found in findings.items() if found.comparison is not None}
    rows = [_row(name, findings[name]) for name in GOALS if name in findings]
    write_csv(folder / "benchmark.csv", COLUMNS, rows)
    write_json(
        folder / "benchmark.json",
        {
            "ratios": {name: comparisons[name].ratio if name in comparisons else None for name in GOALS},
            **{unit: _raw(comparisons, unit) for unit in ("seconds", "bytes")},
            "repeats": {name: comparison.ratios for name, comparison in comparisons.items()},
            "sides": {name: [comparison.over, comparison.under] for name, comparison in comparisons.items()},
            "goals": {name: str(goal) for name, goal in GOALS.items()},
            "is_met": {name: comparison.is_met for name, comparison in comparisons.items()},
            "work": {name: dict(comparison.work) for name, comparison in comparisons.items()},
            "rates": {name: comparison.rates() for name, comparison in comparisons.items()},
            "notes": {name: dict(comparison.notes) for name, comparison in comparisons.items()},
            "absent": {name: found.absent for name, found in findings.items() if found.absent is not None},
            "cohort_draw": [vars(draw) for found in findings.values() for draw in found.draws],
            "cost_curves": {curve.axis: _curve(curve) for found in findings.values() for curve in found.curves},
            "startup": next((vars(found.startup) for found in findings.values() if found.startup is not None), None),
            "machine": dict(machine),
        },
    )


def _raw(comparisons: Mapping[str, Comparison], unit: str) -> dict[str, dict[str, list[float]]]:
    """The raw values in one unit, by part and side."""
    return {
        name: {side: list(values) for side, values in comparison.values.items()}
        for name, comparison in comparisons.items()
        if comparison.unit == unit
    }


def _curve(curve: CostCurve) -> dict[str, object]:
    """A curve as JSON values."""
    return {
        "values": list(curve.points),
        "median_seconds": curve.medians,
        "seconds": [list(seconds) for seconds in curve.points.values()],
        "slope": curve.slope,
    }


def _row(name: str, found: PartResult) -> dict[str, object]:
    """A ratio's row of the CSV file."""
    row: dict[str, object] = {"part": name, "goal": str(GOALS[name]), "note": found.absent}
    if (comparison := found.comparison) is None:
        return row
    medians, ratios = comparison.medians(), comparison.ratios
    return row | {
        "ratio": comparison.ratio,
        "is_met": comparison.is_met,
        "repeats": len(ratios),
        "least": min(ratios),
        "most": max(ratios),
        "over": comparison.over,
        "over_median": medians[comparison.over],
        "under": comparison.under,
        "under_median": medians[comparison.under],
        "unit": comparison.unit,
    }


def _cells(name: str, found: PartResult) -> list[str]:
    """A ratio's cells after its name."""
    if (comparison := found.comparison) is None:
        return ["-", str(GOALS[name]), "-", "-", found.absent or ""]
    medians, ratios = comparison.medians(), comparison.ratios
    sides = [f"{side} {_amount(medians[side], comparison.unit)}" for side in (comparison.over, comparison.under)]
    return [
        f"{comparison.ratio:.3g}",
        str(GOALS[name]),
        "yes" if comparison.is_met else "no",
        f"{min(ratios):.3g}-{max(ratios):.3g}",
        " / ".join(sides),
    ]


def _amount(value: float, unit: str) -> str:
    """A value with its unit."""
    return f"{value / 1e6:.0f} MB" if unit == "bytes" else f"{value:.3g} s"
