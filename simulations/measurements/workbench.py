"""What the parts of a benchmark share: the configured model and users, and what they check."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from peft import PeftModel
from torch import Tensor

from fedsim_userdp.cache import default_cache_dir, folder_of
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.user_wise import UserWise
from fedsim_userdp.models.adapters import attach_lora
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.simulations.configured import configured_run
from fedsim_userdp.simulations.measurements.timing import BenchmarkError, Stopwatch
from fedsim_userdp.simulations.names import made
from fedsim_userdp.training.batches import Unit

MOST_USERS = 2048  # that a part looks at
# Largest relative difference between two ways to compute the same, by what products are done in; a GPU adds up in
# another order for every shape.
_TOLERANCE = {"float32": 1e-5, "bfloat16": 0.1}
_GPU_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Workbench:
    """The configuration of a benchmark and what is built from it, at the first use.

    Attributes:
        config: resolved configuration.
        folder: the run folder.
        repeats: of each comparison.
        seconds: of measuring that a part aims at where it chooses its users.
        overrides: the command line's overrides, for parts that run `fedsim run`.
    """

    config: DictConfig
    folder: Path
    repeats: int
    seconds: float
    overrides: tuple[str, ...] = ()

    @cached_property
    def model(self) -> ModelSource:
        """The configured base model."""
        source: ModelSource = made("model", self.config.model)
        return source

    @cached_property
    def stopwatch(self) -> Stopwatch:
        """Takes the time on the model's device."""
        return Stopwatch(self.model.torch_device)

    @cached_property
    def run(self) -> Run:
        """The configured run."""
        return configured_run(self.config, self.folder)

    @cached_property
    def mechanism(self) -> UserWise:
        """The configured mechanism.

        Raises:
            ConfigError: when it is not user-wise.
        """
        found = made("mechanism", self.config.mechanism)
        if not isinstance(found, UserWise):
            raise ConfigError(f"mechanism={self.config.mechanism.name}: a benchmark is of mechanism=user_wise")
        return found

    @property
    def cache_dir(self) -> Path:
        """Where synthetic users are kept between runs."""
        return default_cache_dir() if self.config.cache_dir is None else folder_of(self.config.cache_dir, "cache_dir")

    def fresh_model(self) -> PeftModel:
        """Returns the run's base model with the run's adapter, newly loaded."""
        return attach_lora(self.run.study.model.load(), self.run.study.lora, self.run.study.seed)

    def users(self) -> list[Unit]:
        """Returns training users of the configured corpus in random order, each with at most k records."""
        order = (
            RunKey.seeded(self.run.study.seed).generator("selection").permutation(self.run.study.num_users)[:MOST_USERS]
        )
        return self.run.training_users(self.mechanism.records_per_user).units((int(user) for user in order), round=0)

    def seconds_each(self, num_sides: int) -> float:
        """Returns how long a side may take in a repeat, the warm-up counted as one more."""
        return self.seconds / (num_sides * (self.repeats + 1))


def relative_distance(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Returns the L2 distance of two sets of tensors, relative to the norm of `expected`; 0 where both are zero."""
    pairs = [(found[name].double().cpu(), expected[name].double().cpu()) for name in expected]
    distance = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    norm = math.sqrt(sum(float(b.square().sum()) for _, b in pairs))
    return distance / norm if norm else distance


def check_agreement(
    name: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor], model: ModelSource
) -> float:
    """Returns the L2 distance of two sides' results, relative to the norm of `expected`.

    Args:
        name: the part.
        found: one side's result.
        expected: the other's.
        model: the base model, whose device and precision say what rounding may do.

    Raises:
        BenchmarkError: when rounding does not explain it, so that the sides would not do the same work.
    """
    distance, allowed = relative_distance(found, expected), _TOLERANCE[model.product_dtype]
    if model.torch_device.type != "cpu":
        allowed = max(allowed, _GPU_TOLERANCE)
    if not distance <= allowed:
        raise BenchmarkError(
            f"{name}: the two sides' results differ by {distance:.2g} of their norm, more than {allowed:g}"
        )
    return distance


def num_tokens(units: list[Unit]) -> int:
    """Returns the predicted tokens of the units, padding not counted."""
    return sum(len(record) - 1 for unit in units for record in unit.records)


def shortened(unit: Unit, *, most_records: int, most_tokens: int) -> Unit:
    """Returns the unit with its first records only, cut short."""
    records = [np.asarray(record[:most_tokens]) for record in unit.records[:most_records]]
    return Unit(unit.index, records)


def use_threads(threads: int | None) -> None:
    """Sets torch's CPU threads, where configured."""
    if threads is not None:
        torch.set_num_threads(int(threads))
