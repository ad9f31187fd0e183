"""The parts of a benchmark by name."""

from collections.abc import Callable, Mapping

from fedsim_userdp.simulations.measurements.curves import cost_curves
from fedsim_userdp.simulations.measurements.memory import memory_512_vs_64
from fedsim_userdp.simulations.measurements.overhead import overhead_share
from fedsim_userdp.simulations.measurements.population import population_1e6_vs_1e3
from fedsim_userdp.simulations.measurements.results import PartResult
from fedsim_userdp.simulations.measurements.runtimes import cohort_vs_flower, cohort_vs_pfl, two_workers_vs_one
from fedsim_userdp.simulations.measurements.startup import startup
from fedsim_userdp.simulations.measurements.updates import cohort_vs_one_by_one, cohort_vs_plain, record_vs_opacus
from fedsim_userdp.simulations.measurements.workbench import Workbench

MEASURE: Mapping[str, Callable[[Workbench], PartResult]] = {
    part.__name__: part
    for part in (
        cohort_vs_plain,
        cohort_vs_one_by_one,
        cohort_vs_flower,
        cohort_vs_pfl,
        record_vs_opacus,
        population_1e6_vs_1e3,
        memory_512_vs_64,
        overhead_share,
        two_workers_vs_one,
        cost_curves,
        startup,
    )
}
