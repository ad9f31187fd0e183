"""Signals that users send beside their update: bounded, noisy, paid for, and shown to nobody else."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsim_userdp.errors import ConfigError, PluginError
from fedsim_userdp.population import Past, Population, Reported
from fedsim_userdp.privacy.noise import OperatingSystemNoise, SeededNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.signals import PaidSignal, Query, Signal, check_followed, check_told_of_groups, signal_of

SEEDED = SeededNoise(RunKey.seeded(0))
QUERY = Query(4.0, 3, {0: 0, 1: 2, 2: 2})
LOSSES = st.one_of(st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 8))


@given(LOSSES, st.floats(0, 3), st.sampled_from([0, 1, 2]))
def test_a_user_moves_one_group_by_half_the_bound_and_by_one_times_their_weight(
    loss: float, weight: float, user: int
) -> None:
    sums, counts = QUERY.answer(user, loss, weight)
    assert np.abs(sums).sum() <= weight * 2.0
    assert counts.sum() == (0.0 if math.isnan(loss) else weight)
    assert set(np.flatnonzero(counts)) <= {QUERY.group_of[user]}
    assert set(np.flatnonzero(sums)) <= {QUERY.group_of[user]}


def test_the_mean_of_a_group_is_that_of_the_clipped_losses() -> None:
    paid = PaidSignal(Signal(4.0), np.array([0, 1, 1]), 0.0)
    query = paid.query([0, 1, 2])
    answers = [query.answer(user, loss, 1.0) for user, loss in enumerate([3.0, 1.0, 9.0])]
    told = paid.release(np.sum(answers, axis=0), SEEDED, 1)
    assert told.counts.tolist() == [1.0, 2.0]
    assert (told.sums / told.counts).tolist() == [3.0, 2.5]


@pytest.mark.parametrize("source", [SEEDED, OperatingSystemNoise()])
def test_noise_on_sums_and_counts_has_the_stated_stddev_and_half_is_rejected(source: Any) -> None:
    bound, noise_multiplier, groups = 4.0, 3.0, 3000
    paid = PaidSignal(Signal(bound), np.arange(groups), noise_multiplier)
    told = paid.release(np.zeros((2, 1)), source, 1)
    centred = told.sums - told.counts * bound / 2
    low, high = stats.chi2.ppf([5e-10, 1 - 5e-10], groups)
    for values, stddev in ((centred, noise_multiplier * bound / 2), (told.counts, noise_multiplier)):
        assert low < float(np.square(values / stddev).sum()) < high
        for wrong in (0.5, 2.0):
            assert not low < float(np.square(values / (wrong * stddev)).sum()) < high
    correlation = np.corrcoef(centred, told.counts)[0, 1]
    assert abs(correlation) < 6.2 / math.sqrt(groups)


def test_noise_of_the_signal_is_not_that_of_the_update() -> None:
    paid = PaidSignal(Signal(2.0), np.arange(50), 1.0)
    told = paid.release(np.zeros((2, 1)), SEEDED, 1)
    update = SEEDED.standard_normal(100, 1)
    assert np.intersect1d(np.round(told.counts, 9), np.round(update, 9)).size == 0


@pytest.mark.parametrize(
    ("sums", "counts", "is_refused"),
    [
        ([2.0, 0.0, -4.0], [1.0, 0.0, 2.0], False),
        ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0], False),
        ([2.1, 0.0, 0.0], [1.0, 0.0, 2.0], True),
        ([0.0, 0.5, 0.0], [1.0, 0.0, 2.0], True),
        ([0.0, 0.0, 0.0], [2.0, 0.0, 0.0], True),
        ([0.0, 0.0, 0.0], [-1.0, 0.0, 0.0], True),
        ([math.nan, 0.0, 0.0], [1.0, 0.0, 0.0], True),
        ([math.inf, 0.0, 0.0], [1.0, 0.0, 0.0], True),
    ],
)
def test_an_answer_that_passes_its_users_bounds_is_refused(
    sums: Sequence[float], counts: Sequence[float], is_refused: bool
) -> None:
    assert (QUERY.misfit(np.array([sums, counts]), [0, 1, 2]) is not None) is is_refused


def test_an_answer_of_other_groups_or_of_more_weight_is_refused() -> None:
    assert QUERY.misfit(np.ones((2, 4)), [0, 1, 2])
    assert QUERY.misfit(np.ones((2, 1)), [0, 1, 2])
    assert QUERY.misfit(np.zeros((2, 1)), [0, 1, 2]) is None
    assert QUERY.misfit(np.array([[0.0, 0, 0], [1, 0, 0]]), [0, 1, 2], [0.5, 1, 1])
    assert QUERY.misfit(np.array([[0.0, 0, 0], [0.5, 0, 0]]), [0, 1, 2], [0.5, 1, 1]) is None


POPULATION = Population(
    np.arange(5, dtype=np.uint64),
    {"region": np.array(["s", "n", "s", "w", "n"]), "place": np.zeros((5, 2))},
)


def test_groups_are_in_the_order_of_their_values() -> None:
    assert Signal(1.0, "region").group_of(POPULATION).tolist() == [1, 0, 1, 2, 0]
    assert Signal(1.0).group_of(POPULATION).tolist() == [0] * 5
    assert Signal(1.0, "user").group_of(POPULATION).tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("groups", "words"), [("country", "country"), ("place", "one value for each user")])
def test_groups_must_be_a_public_column(groups: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Signal(1.0, groups).group_of(POPULATION)


class Pays:
    def __init__(self, signals: object) -> None:
        self.signals = signals


@pytest.mark.parametrize("signals", [None, {}])
def test_who_pays_for_nothing_has_no_signal(signals: object) -> None:
    assert signal_of(Pays(signals)) is None


def test_a_signal_is_an_object_or_its_settings() -> None:
    wanted = Signal(3.0, "region", 0.2)
    assert signal_of(Pays({"loss": wanted})) == wanted
    assert signal_of(Pays({"loss": {"bound": 3.0, "groups": "region", "share": 0.2}})) == wanted


@pytest.mark.parametrize(
    "signals",
    [
        {"norm": {"bound": 1.0}}, {"loss": 3.0}, {"loss": {}}, {"loss": {"bound": 1.0, "noise": 0.0}}, ["loss"], "loss",
        {"loss": {"bound": 1.0}, "norm": {"bound": 1.0}}, {"loss": {"bound": 0.0}}, {"loss": {"bound": math.inf}},
        {"loss": {"bound": math.nan}}, {"loss": {"bound": "5"}}, {"loss": {"bound": True}},
        {"loss": {"bound": 1.0, "share": 0.0}}, {"loss": {"bound": 1.0, "share": 1.0}},
        {"loss": {"bound": 1.0, "share": math.nan}}, {"loss": {"bound": 1.0, "groups": 3}},
    ],
)  # fmt: skip
def test_what_is_no_signal_is_refused_by_name(signals: object) -> None:
    with pytest.raises(ConfigError, match="loss"):
        signal_of(Pays(signals))


def test_signals_that_raise_name_the_class() -> None:
    class Raises:
        @property
        def signals(self) -> object:
            raise OSError("gone")

    with pytest.raises(PluginError, match=r"Raises.*gone"):
        signal_of(Raises())


def test_who_pays_must_follow() -> None:
    with pytest.raises(PluginError, match="most"):
        check_followed(Pays({"loss": Signal(1.0)}), follows_past=False)
    check_followed(Pays({"loss": Signal(1.0)}), follows_past=True)
    check_followed(Pays(None), follows_past=False)


def test_single_users_are_not_told_apart_by_what_noise_would_hide() -> None:
    with pytest.raises(ConfigError, match=r"groups=user.*2 times the bound.*epsilon=inf"):
        check_told_of_groups(Signal(1.0, "user"), 4.0, "Mine")
    check_told_of_groups(Signal(1.0, "user"), 0.0, "Mine")
    check_told_of_groups(Signal(1.0, "region"), 4.0, "Mine")


def test_means_count_recent_rounds_more_and_say_where_nothing_is_known() -> None:
    told = {
        1: Reported(np.array([8.0, 0.2, 3.0]), np.array([4.0, 0.4, 1.0])),
        3: Reported(np.array([16.0, -1.0, 0.0]), np.array([4.0, 0.2, -2.0])),
    }
    means = Past(3, {}, {"loss": told}).means("loss", half_life=2.0)
    assert means[0] == pytest.approx((0.5 * 8 + 16) / (0.5 * 4 + 4))
    assert np.isnan(means[1:]).all()
    assert np.isnan(Past(3).means("loss")).all()


def test_what_was_told_cannot_be_changed() -> None:
    told = Reported(np.ones(2), np.ones(2))
    with pytest.raises(ValueError, match="read-only"):
        told.sums[0] = 5.0
