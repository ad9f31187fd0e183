"""Mistakes that break user-level privacy while everything still runs: planted to see whether the audit catches them.

Each keeps what it claims: the accounting of the correct run.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord

from fedsim_userdp.federation.messages import TrainRequest, read_reply, to_arrays
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.noise import NoiseStream, SeededNoise, add_noise, noise_stddev
from fedsim_userdp.strategies.user_level_dp import ServerState, UserLevelDP, UserLevelSettings
from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.cohort import CohortUpdate, clipped_update_sum


class TenthOfTheNoise(UserLevelDP):
    """Adds a tenth of the noise that is accounted."""

    def noise_stddev(self, clip_norm: float) -> float:
        return super().noise_stddev(clip_norm) / 10


class NoClipping(UserLevelDP):
    """Asks the nodes for unclipped updates, and adds the noise that would do for clipped ones."""

    def __init__(self, settings: UserLevelSettings, *others: Any) -> None:
        self._believed = settings
        super().__init__(replace(settings, clip_norm=math.inf, noise_multiplier=0.0), *others)

    def noise_stddev(self, clip_norm: float) -> float:
        return noise_stddev(self._believed.noise_multiplier, self._believed.clip_norm)


class WeightedByData(UserLevelDP):
    """Weights each node's answer by the tokens that it reports, and takes the noise of an unweighted mean."""

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord, MetricRecord]:
        kept = list(replies)
        updates = [read_reply(reply.content) for reply in kept]
        weights = np.array([update.num_tokens for update in updates], dtype=float)
        shares = weights / max(weights.sum(), 1.0)
        state = self.optimizer.state
        mean = {
            name: sum(
                (update.clipped.total[name] * share for update, share in zip(updates, shares, strict=True)), 0 * tensor
            )
            for name, tensor in state.items()
        }
        self._before_release(server_round, "")
        noisy = add_noise(mean, self.noise_stddev(self.clip_norm) / max(len(updates), 1), self.noise, server_round)
        state = self.optimizer.step(noisy, server_round)
        self._after_round(server_round, self._exchange.finish(kept), ServerState(state, self.clip_norm))
        return to_arrays(state), MetricRecord({})


class ClipsEveryRecord(Worker):
    """Clips the gradient of every record instead of the user's, so that a user's norm may be k * clip_norm."""

    def train(self, request: TrainRequest) -> CohortUpdate:
        users = self.users.units(request.users, request.round)
        records = [Unit(user.index, [record]) for user in users for record in user.records]
        update = clipped_update_sum(self.gradients, request.state, records, self.local, request.clip_norm)
        return replace(update, clipped=replace(update.clipped, num_units=len(users), num_clipped=0))


@dataclass(frozen=True)
class SameNoise(SeededNoise):
    """Draws the noise of every round from the address of the first."""

    def standard_normal(self, size: int, round: int, stream: NoiseStream = "noise") -> np.ndarray:
        return super().standard_normal(size, 1, stream)


@dataclass(frozen=True)
class ClaimsPoisson:
    """Claims Poisson sampling, whatever it does."""

    sampling_prob: float

    def expected_cohort_size(self, num_users: int) -> float:
        return self.sampling_prob * num_users

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        return acc.PoissonUsers(noise_multiplier=noise_multiplier, sampling_prob=self.sampling_prob, rounds=rounds)


@dataclass(frozen=True)
class SomeAlways(ClaimsPoisson):
    """Takes every second user in every round, and the others by Poisson sampling."""

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        drawn = np.flatnonzero(generator.random(num_users) < self.sampling_prob)
        return np.union1d(np.arange(0, num_users, 2), drawn)
