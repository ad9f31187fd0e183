"""`fedsim run` and `fedsim benchmark` on a GPU."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fedsim_userdp.simulations.measurements.workbench import relative_distance
from tests.simulations.benchmark_setup import small_overrides
from tests.simulations.test_commands import fedsim

pytestmark = pytest.mark.gpu


def trained(folder: Path, *overrides: str) -> dict[str, torch.Tensor]:
    """The adapter of a small run."""
    folder.mkdir(parents=True)
    own = [override for override in small_overrides(folder) if not override.startswith(("benchmark.", "model.device"))]
    done = fedsim("run", *own, f"output_dir={folder / 'out'}", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    return load_file(folder / "out" / "adapters" / "user_wise" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The adapter that this process trains on the GPU."""
    return trained(tmp_path_factory.mktemp("gpu") / "in_process", "model.device=cuda")


def test_a_run_on_the_gpu_gives_the_cpus_model(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    assert relative_distance(expected, trained(tmp_path / "cpu", "model.device=cpu")) <= 1e-3


def test_two_workers_share_the_gpu_and_give_the_same_model(tmp_path: Path, expected: dict[str, torch.Tensor]) -> None:
    found = trained(tmp_path / "flower", "model.device=cuda", "engine=flower", "engine.num_nodes=2")
    assert relative_distance(found, expected) <= 1e-4


@pytest.mark.parametrize("precision", ["model.dtype=bfloat16", "model.autocast=bfloat16"])
def test_a_run_in_bfloat16_trains_a_float32_adapter(tmp_path: Path, precision: str) -> None:
    state = trained(tmp_path / "bf16", "model.device=cuda", precision)
    assert all(tensor.dtype == torch.float32 and tensor.isfinite().all() for tensor in state.values())


def test_the_benchmark_runs_on_the_gpu(tmp_path: Path) -> None:
    arguments = [*small_overrides(tmp_path), "model.device=cuda", "benchmark.parts=[cohort_vs_plain,record_vs_opacus]"]
    done = fedsim("benchmark", *arguments, f"output_dir={tmp_path / 'out'}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert stored["ratios"]["cohort_vs_plain"] > 0
    assert stored["machine"]["device"] == torch.cuda.get_device_name()
