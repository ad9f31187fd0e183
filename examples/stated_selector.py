"""A client selector of one's own that states probabilities: users of one public region more often, weighed back.

Beside this file, and a table `users.csv` with the columns user_id and region:

    fedsim run selection._target_=stated_selector.Oversampled '~selection.sampling_prob' +selection.region=north selection.public=users.csv

In Python: `Study.of(records, selection=Oversampled("north"), public="users.csv")`.
"""  # noqa: E501

import numpy as np

from fedsim_userdp import Past, Population


class Oversampled:
    """Takes users of `region` with probability 0.6 and others with 0.3, and halves what the former add."""

    def __init__(self, region: str) -> None:
        self.region = region

    def probabilities(self, round: int, population: Population, past: Past) -> np.ndarray:
        """Returns each user's probability; this package draws the coins and accounts for the costliest group."""
        return np.where(population.column("region") == self.region, 0.6, 0.3)

    def weights(self, round: int, population: Population) -> np.ndarray:
        """Returns what each user's clipped update is multiplied by: nobody counts more in expectation."""
        return np.where(population.column("region") == self.region, 0.5, 1.0)
