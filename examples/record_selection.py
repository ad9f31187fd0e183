"""A choice of records of one's own: a user's k records with the most different tokens.

Beside this file:

    fedsim run records._target_=record_selection.MostVaried '~records.fresh'

In Python: `Study.of(records, records=MostVaried())`.
"""

from collections.abc import Sequence

import numpy as np


class MostVaried:
    """The k records with the most different tokens; of equal ones the earlier."""

    fresh = False  # chosen once for all rounds

    def select(self, records: Sequence[np.ndarray], k: int, generator: np.random.Generator) -> list[np.ndarray]:
        """Returns at most k of one user's records, which are all that it is given."""
        return sorted(records, key=lambda record: -len(set(record.tolist())))[:k]
