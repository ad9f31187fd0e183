"""A metric of one's own: the perplexity of the tenth of users whom the model fits worst.

Beside this file:

    fedsim run +metrics.worst_tenth._target_=metric.WorstTenth

In Python: `Study.of(records, metrics={"worst_tenth": WorstTenth()})`.
"""

from collections.abc import Sequence
from typing import Any

from torch import nn

from fedsim_userdp.training.batches import Unit
from fedsim_userdp.training.evaluation import perplexity


class WorstTenth:
    """The mean perplexity of the worst-fitted tenth of the users, at least one of them."""

    def score(self, model: nn.Module, users: Sequence[Unit], tokenizer: Any) -> float:
        """Returns the mean; each user has `records`, their token ids."""
        each = sorted((perplexity(model, [user]) for user in users), reverse=True)
        worst = each[: max(len(each) // 10, 1)]
        return sum(worst) / len(worst)
