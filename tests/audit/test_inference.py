import numpy as np
import pytest
import torch
from scipy import stats

from fedsim_userdp.audit.inference import FALSE_POSITIVE_RATE, area, clopper_pearson, infer_users, mean_log_likelihoods
from tests.conftest import ragged_units, small_gpt2


def draws(shift: float, seed: int = 0, members: int = 300, others: int = 100) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return shift + generator.standard_normal(members), generator.standard_normal(others)


def test_the_area_counts_pairs_and_half_of_the_ties() -> None:
    members, others = np.array([0.0, 1.0, 1.0, 3.0]), np.array([0.0, 1.0, 2.0])
    pairs = [(m > o) + (m == o) / 2 for m in members for o in others]
    assert area(members, others) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_auc_and_its_interval_are_those_of_two_shifted_normals(shift: float) -> None:
    """The interval holds the truth in about 95% of draws; this seed is one of them."""
    found = infer_users(*draws(shift), np.random.default_rng(1))
    truth = stats.norm.cdf(shift / 2**0.5)
    assert found.auc_interval[0] < truth < found.auc_interval[1]
    assert found.auc_interval[0] < found.auc < found.auc_interval[1]
    assert found.auc_interval[1] - found.auc_interval[0] < 0.2
    if shift:
        assert found.auc_interval[0] > 0.5


def test_the_true_positive_rate_is_measured_where_few_others_are_taken_for_members() -> None:
    members, others = draws(2.0)
    found = infer_users(members, others, np.random.default_rng(1))
    assert found.false_positive_rate <= FALSE_POSITIVE_RATE
    threshold = np.sort(others)[-6]
    assert found.true_positive_rate == pytest.approx((members > threshold).mean())
    assert found.true_positive_interval[0] < found.true_positive_rate < found.true_positive_interval[1]


@pytest.mark.parametrize(("successes", "trials"), [(0, 10), (10, 10), (3, 10), (50, 400)])
def test_clopper_pearson_is_scipys_exact_interval(successes: int, trials: int) -> None:
    expected = stats.binomtest(successes, trials).proportion_ci(0.95, method="exact")
    assert clopper_pearson(successes, trials, 0.95) == pytest.approx((expected.low, expected.high))


def test_the_curve_rises_from_nobody_to_everybody() -> None:
    false, true = infer_users(*draws(1.0), np.random.default_rng(1)).curve
    assert (false[0], true[0], false[-1], true[-1]) == (0, 0, 1, 1)
    assert false == sorted(false)
    assert true == sorted(true)
    assert np.trapezoid(true, false) == pytest.approx(area(*draws(1.0)))


def test_a_users_log_likelihood_is_the_mean_over_records_of_the_sum_over_tokens() -> None:
    model, units = small_gpt2(), ragged_units(6)
    found = mean_log_likelihoods(model, units, max_tokens=40)
    for user, unit in enumerate(units):
        of_records = []
        for record in unit.records:
            ids = torch.from_numpy(record).unsqueeze(0)
            log_probabilities = model(input_ids=ids).logits[0, :-1].log_softmax(-1).detach()
            of_records.append(float(log_probabilities.gather(1, ids[0, 1:, None]).sum()))
        assert found[user] == pytest.approx(np.mean(of_records), rel=1e-4)


def test_an_empty_group_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out"):
        infer_users(np.array([1.0]), np.array([]), np.random.default_rng(0))
