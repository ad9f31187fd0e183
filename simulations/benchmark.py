"""`fedsim benchmark`: speed and memory as ratios measured in one run, and what a round costs."""

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.printable import printable
from fedsim_userdp.simulations.arguments import check_types
from fedsim_userdp.simulations.job_folder import folder_of_job
from fedsim_userdp.simulations.measurements.results import PARTS, Value

if TYPE_CHECKING:
    from fedsim_userdp.simulations.measurements.workbench import Workbench

_PACKAGES = ("fedsim-userdp", "torch", "transformers", "peft", "flwr", "opacus", "pfl")


@hydra.main(version_base="1.3", config_path="pkg://fedsim_userdp.conf", config_name="benchmark")
def main(config: DictConfig) -> None:
    """Measures part by part; writes `benchmark.json`, `benchmark.csv` and `cost_curves.png`, and prints the table."""
    with folder_of_job() as folder:
        measure(config, folder)


def measure(config: DictConfig, folder: Path) -> None:
    """Measures into a folder."""
    check_types(config, "benchmark")
    parts = parts_of(config)
    check_settings(config)
    from fedsim_userdp.report.files import write_text
    from fedsim_userdp.report.table import result_console
    from fedsim_userdp.simulations.measurements import (
        results as report,  # here, so that --help and refusals need not load torch
    )
    from fedsim_userdp.simulations.measurements.parts import MEASURE
    from fedsim_userdp.simulations.measurements.plot import plot_cost_curves

    console = result_console()
    bench = open_workbench(config, folder)
    write_text(folder / "benchmark.yaml", OmegaConf.to_yaml(config, resolve=True))
    machine, findings = describe_machine(bench), dict[str, report.PartResult]()
    for number, part in enumerate(parts, start=1):
        with console.status(f"measuring {part} ({number} of {len(parts)})"):
            findings[part] = MEASURE[part](bench)
        report.write_benchmark(folder, findings, machine)
        if not console.is_terminal:
            console.print(f"{part}: measured ({number} of {len(parts)})", highlight=False, markup=False)
    if curves := [curve for found in findings.values() for curve in found.curves]:
        plot_cost_curves(folder / "cost_curves.png", curves)
    for line in (*report.in_words(findings), f"measured on {machine_in_words(machine)}", f"folder: {folder}"):
        console.print(printable(line), highlight=False, markup=False, soft_wrap=True)
    console.print(report.benchmark_table(findings))
    console.print(report.LEGEND, highlight=False, markup=False, soft_wrap=True)


def parts_of(config: DictConfig) -> list[str]:
    """Returns the parts to measure, each once, in the order of `PARTS`.

    Raises:
        ConfigError: when there is none, or one is unknown.
    """
    listed = config.benchmark.parts
    names = [str(name) for name in listed] if isinstance(listed, ListConfig) else [str(listed)]
    if unknown := [name for name in names if name not in PARTS]:
        raise ConfigError(f"benchmark.parts: {unknown[0]!r} is unknown; expected some of {', '.join(PARTS)}")
    if not names:
        raise ConfigError(f"benchmark.parts is empty; expected some of {', '.join(PARTS)}")
    return [part for part in PARTS if part in names]


def check_settings(config: DictConfig) -> None:
    """Raises ConfigError when a number of the benchmark is out of range."""
    node = config.benchmark
    if not isinstance(node.repeats, int) or node.repeats < 1:
        raise ConfigError(f"benchmark.repeats={node.repeats} must be a whole number of at least 1")
    if not isinstance(node.seconds, int | float) or not 0 < node.seconds < float("inf"):
        raise ConfigError(f"benchmark.seconds={node.seconds} must be a finite number above 0")


def open_workbench(config: DictConfig, folder: Path) -> "Workbench":
    """Returns what the parts share, the mechanism's settings checked."""
    from fedsim_userdp.simulations.measurements.workbench import Workbench, use_threads

    use_threads(config.threads)
    node, overrides = config.benchmark, tuple(HydraConfig.get().overrides.task)
    bench = Workbench(config, folder, int(node.repeats), float(node.seconds), overrides)
    bench.mechanism  # noqa: B018 - refused before anything is measured
    return bench


def describe_machine(bench: "Workbench") -> dict[str, Value]:
    """Returns where the figures come from: device, processor cores, load at the start, versions, model, data."""
    import torch

    device = bench.model.torch_device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_at_start": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.platform(),
        "python": platform.python_version(),
        "model": bench.model.name,
        "data": str(HydraConfig.get().runtime.choices["data"]),
        "seconds": bench.seconds,
        **{package: _version(package) for package in _PACKAGES},
    }


def machine_in_words(machine: dict[str, Value]) -> str:
    """Returns the machine as one line."""
    load = machine["load_at_start"]
    busy = "" if load is None else f", load {load:.1f} at the start"
    return f"{machine['device']}, {machine['cpu_cores']} CPU cores{busy}; model={machine['model']}"


def _version(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
