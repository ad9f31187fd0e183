"""Ten client selectors, each in a few lines: seven state probabilities, three choose by themselves and declare a law.

Beside this file:

    fedsim run selection._target_=ten_selectors.Stratified '~selection.sampling_prob' selection.public=users.csv

In Python: `Study.of(records, selection=Stratified(), public=facts)`.  docs/selection.md says what each promises.
"""

# ruff: noqa: D101, D102
# mypy: disallow-untyped-defs=False, disallow-untyped-calls=False, disallow-incomplete-defs=False

import numpy as np

from fedsim_userdp import acc
from fedsim_userdp.signals import Signal


class Poisson:
    def probabilities(self, round, population, past):
        return 0.2


class FixedSize:
    def select(self, num_users, round, generator):
        return generator.choice(num_users, size=4, replace=False)

    def expected_cohort_size(self, num_users):
        return 4

    def release(self, noise_multiplier, num_users, rounds):
        return acc.FixedSize(noise_multiplier, num_users, 4, rounds)


class Cyclic:
    def select(self, num_users, round, generator):
        return np.arange((round - 1) * 4, round * 4) % num_users

    def expected_cohort_size(self, num_users):
        return 4

    def release(self, noise_multiplier, num_users, rounds):
        return acc.Unamplified(noise_multiplier, -(-rounds * 4 // num_users))


class Stratified:
    def probabilities(self, round, population, past):
        _, group, sizes = np.unique(population.column("region"), return_inverse=True, return_counts=True)
        return np.minimum(3 / sizes, 1.0)[group]


class Availability:
    def probabilities(self, round, population, past):
        hour, begin, end = (round - 1) % 24, population.column("available_from"), population.column("available_to")
        is_there = np.where(begin <= end, (begin <= hour) & (hour < end), (begin <= hour) | (hour < end))
        return np.where(is_there, 0.4, 0.0)

    def denominator(self, round, population):
        return 0.2 * len(population)


class Importance:
    def probabilities(self, round, population, past):
        share = np.maximum(population.numbers("records") / population.numbers("records").mean(), 0.5)
        return np.minimum(0.2 * share / share.mean(), 1.0)

    def weights(self, round, population):
        return 0.2 / self.probabilities(round, population, None)


class Growing:
    def probabilities(self, round, population, past):
        return min(0.05 + 0.01 * round, 0.3)


class RoundRobin:
    def probabilities(self, round, population, past):
        return np.where(population.id_hashes % np.uint64(3) == round % 3, 0.6, 0.0)

    def denominator(self, round, population):
        return 0.2 * len(population)


class PowerOfChoice:
    signals = {"loss": Signal(bound=8.0, groups="region", share=0.1)}  # noqa: RUF012 - it does not change

    def most(self, round, population):
        return 0.4

    def probabilities(self, round, population, past):
        means = past.means("loss")  # of each region, in the order of their names
        region = np.unique(population.column("region"), return_inverse=True)[1]
        return np.where(means[region] >= np.nanmax(means), 0.4, 0.1) if past.signals else 0.2


class LongestAgo:
    def cohort(self, round, population, past, rng_round, rng_run):
        order = rng_run.permutation(len(population))  # the same in every round: nobody again before all others were
        return order[np.arange((round - 1) * 4, round * 4) % len(population)]

    def expected_cohort_size(self, population):
        return 4

    def release(self, noise_multiplier, population, rounds):
        return acc.Unamplified(noise_multiplier, -(-rounds * 4 // len(population)))
