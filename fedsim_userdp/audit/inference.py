"""User inference: can it be told from a user's text and the model whether the user took part in training?

Source: Kandpal, Pillutla, Oprea, Kairouz, Choquette-Choo and Xu 2023, "User Inference Attacks on Large Language
Models", arXiv 2310.09266: the statistic of a user is the mean over some of their records of log p_tuned(x) / p_base(x).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from fedsim_userdp.training.batches import Unit, micro_batches
from fedsim_userdp.training.losses import token_losses

FALSE_POSITIVE_RATE = 0.05
_RESAMPLES = 2000


@dataclass(frozen=True)
class UserInference:
    """How well the attack tells training users from held-out ones; computed from their text, so not private.

    Attributes:
        num_members: training users that were tried.
        num_others: held-out users that were tried.
        auc: area under the ROC curve; 0.5 is chance.
        auc_interval: 95% bootstrap interval over the users.
        false_positive_rate: share of held-out users taken for members where `true_positive_rate` is measured.
        true_positive_rate: share of training users recognised there.
        true_positive_interval: 95% Clopper-Pearson interval, for that threshold.
        curve: false and true positive rates of all thresholds, each from 0 to 1.
    """

    num_members: int
    num_others: int
    auc: float
    auc_interval: tuple[float, float]
    false_positive_rate: float
    true_positive_rate: float
    true_positive_interval: tuple[float, float]
    curve: tuple[list[float], list[float]]


def infer_users(
    members: NDArray[np.float64], others: NDArray[np.float64], generator: np.random.Generator
) -> UserInference:
    """Returns the attack's success from the statistics of training users and of held-out ones.

    Args:
        members: statistic of each training user, shape [members], at least one.
        others: statistic of each held-out user, shape [others], at least one.
        generator: draws the bootstrap's samples.

    Raises:
        ValueError: when either group is empty.
    """
    if not len(members) or not len(others):
        raise ValueError("user inference needs training users and held-out users with records")
    threshold = _threshold(others)
    found = int((members > threshold).sum())
    return UserInference(
        num_members=len(members),
        num_others=len(others),
        auc=area(members, others),
        auc_interval=_bootstrap(members, others, generator),
        false_positive_rate=float((others > threshold).mean()),
        true_positive_rate=found / len(members),
        true_positive_interval=clopper_pearson(found, len(members), 0.95),
        curve=_curve(members, others),
    )


@torch.inference_mode()
def mean_log_likelihoods(model: nn.Module, units: Sequence[Unit], max_tokens: int) -> NDArray[np.float64]:
    """Returns each user's mean over records of log p(x), in nats, shape [units].

    A user's statistic is the difference between the tuned and the base model.

    Args:
        model: a causal language model, in eval mode.
        units: users with the records that are tried.
        max_tokens: padded tokens of a micro-batch.
    """
    device = next(model.parameters()).device
    owners = np.array([user for user, unit in enumerate(units) for _ in unit.records], dtype=np.int64)
    records = [Unit(i, [record]) for i, record in enumerate(record for unit in units for record in unit.records)]
    likelihoods = np.empty(len(records))
    for batch in micro_batches(records, max_tokens, device):
        likelihoods[list(batch.units)] = -token_losses(model, batch).cpu().double().sum(1).numpy()
    return np.bincount(owners, weights=likelihoods, minlength=len(units)) / np.bincount(owners, minlength=len(units))


def area(members: NDArray[np.float64], others: NDArray[np.float64]) -> float:
    """Returns the probability that a member's statistic is above another's, ties counted half."""
    ranks = stats.rankdata(np.concatenate([members, others]))
    wins = ranks[: len(members)].sum() - len(members) * (len(members) + 1) / 2
    return float(wins / (len(members) * len(others)))


def clopper_pearson(successes: int, trials: int, confidence: float) -> tuple[float, float]:
    """Returns the exact two-sided interval of a binomial probability.

    Source: Clopper and Pearson 1934.
    """
    side = (1 - confidence) / 2
    low = float(stats.beta.ppf(side, successes, trials - successes + 1)) if successes > 0 else 0.0
    high = float(stats.beta.ppf(1 - side, successes + 1, trials - successes)) if successes < trials else 1.0
    return low, high


def _threshold(others: NDArray[np.float64]) -> float:
    """The least of the others' statistics that at most `FALSE_POSITIVE_RATE` of them are above."""
    allowed = int(FALSE_POSITIVE_RATE * len(others))
    return float(np.sort(others)[len(others) - 1 - allowed])


def _bootstrap(
    members: NDArray[np.float64], others: NDArray[np.float64], generator: np.random.Generator
) -> tuple[float, float]:
    """The 2.5% and 97.5% quantiles of the area over resampled users."""
    areas = [
        area(generator.choice(members, len(members)), generator.choice(others, len(others))) for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(areas, [0.025, 0.975])
    return float(low), float(high)


def _curve(members: NDArray[np.float64], others: NDArray[np.float64]) -> tuple[list[float], list[float]]:
    """False and true positive rates at every threshold, from the strictest."""
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([members, others]))[::-1]])
    false = [float((others >= threshold).mean()) for threshold in thresholds]
    true = [float((members >= threshold).mean()) for threshold in thresholds]
    return false, true
