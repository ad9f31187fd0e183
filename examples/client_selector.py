"""A client selector of one's own: even-numbered users in odd rounds, odd-numbered users in even rounds.

Beside this file:

    fedsim run selection._target_=client_selector.EveryOtherUser '~selection.sampling_prob'

In Python: `Study.of(records, selection=EveryOtherUser())`.
"""

import numpy as np

from fedsim_userdp import acc


class EveryOtherUser:
    """Selects half of the users in turn.  Nothing is random, so nothing is amplified, and it says so."""

    def select(self, num_users: int, round: int, generator: np.random.Generator) -> np.ndarray:
        """Returns the users whose number has the other parity than the round."""
        return np.arange((round + 1) % 2, num_users, 2)

    def expected_cohort_size(self, num_users: int) -> float:
        """Returns half of the users: the mean update is the sum divided by this."""
        return num_users / 2

    def release(self, noise_multiplier: float, num_users: int, rounds: int) -> acc.Description:
        """Returns what a run is worth: each user takes part in at most every second round, rounded up."""
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=-(-rounds // 2))
