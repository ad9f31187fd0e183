import itertools

import numpy as np
import pytest
from scipy import stats

from fedsim_userdp.privacy.streams import STREAMS, RunKey

IDS = np.random.default_rng(0).integers(0, 2**63, 20_000).astype(np.uint64)


def test_same_address_gives_the_same_numbers() -> None:
    a = RunKey.seeded(1).generator("noise", round=3, user="x").random(5)
    assert (a == RunKey.seeded(1).generator("noise", round=3, user="x").random(5)).all()


def test_different_addresses_give_different_numbers() -> None:
    addresses = itertools.product([0, 1], ["", "a"], sorted(STREAMS), [0, 1, 12], ["", "1", "a", "a\n", "\ud800"])
    drawn = [RunKey.seeded(s, i).generator(t, round=r, user=u).integers(2**63) for s, i, t, r, u in addresses]
    assert len(set(drawn)) == len(drawn)


def test_runs_of_another_identity_have_unrelated_noise() -> None:
    one, other = (RunKey.seeded(0, name).generator("noise", round=1).standard_normal(10_000) for name in ("a", "b"))
    assert abs(np.corrcoef(one, other)[0, 1]) < 6 / 100
    assert abs(np.corrcoef(one, one + 0.5 * other)[0, 1]) > 6 / 100


def test_a_key_from_the_operating_system_is_another_one_each_time_and_follows_from_no_seed() -> None:
    keys = {RunKey.drawn().secret for _ in range(20)}
    assert len(keys) == 20
    assert RunKey.seeded(0).secret not in keys
    assert not RunKey.drawn().is_seeded


def test_no_secret_is_in_what_is_printed() -> None:
    key = RunKey.drawn()
    assert key.secret.hex() not in repr(key)
    assert repr(key.secret) not in repr(key)


def test_the_nodes_key_tells_neither_cohorts_nor_noise() -> None:
    key = RunKey.seeded(0, "run")
    nodes = key.of_nodes()
    assert nodes.secret != key.secret
    for stream in ("selection", "noise", "count", "hosting"):
        ours, theirs = (k.generator(stream, round=1).standard_normal(10_000) for k in (key, nodes))
        assert abs(np.corrcoef(ours, theirs)[0, 1]) < 6 / 100


def test_a_coin_does_not_depend_on_which_other_ids_there_are() -> None:
    key = RunKey.seeded(0)
    whole = key.coins("selection", IDS, round=4)
    assert (key.coins("selection", IDS[100:], round=4) == whole[100:]).all()
    assert (key.coins("selection", IDS[::-1], round=4) == whole[::-1]).all()


def test_coins_are_uniform_and_independent_between_rounds_streams_places_and_keys() -> None:
    key, places = RunKey.seeded(0), np.ones(len(IDS), dtype=np.uint64)
    drawn = [
        key.coins("selection", IDS, round=1), key.coins("selection", IDS, round=2), key.coins("hosting", IDS, round=1),
        key.coins("selection", IDS, places, round=1), RunKey.seeded(1).coins("selection", IDS, round=1),
    ]  # fmt: skip
    for numbers in drawn:
        assert stats.kstest(numbers, "uniform").pvalue > 1e-6
        assert stats.kstest(numbers**1.1, "uniform").pvalue < 1e-6
    assert np.abs(np.corrcoef(drawn) - np.eye(5)).max() < 6 / np.sqrt(len(IDS))


def test_marks_tell_equal_from_unequal_content_under_one_key_only() -> None:
    key, other = RunKey.drawn(), RunKey.drawn()
    assert key.mark("run", "a") == key.mark("run", "a")
    assert len({key.mark("run", "a"), key.mark("run", "b"), key.mark("answers", "a"), other.mark("run", "a")}) == 4


@pytest.mark.parametrize("bad", [{"seed": -1}, {"round": -1}, {"stream": "nosuch"}])
def test_unknown_addresses_are_refused(bad: dict) -> None:
    arguments = {"seed": 0, "stream": "noise", "round": 0} | bad
    with pytest.raises(ValueError, match=r"seed|stream|round"):
        RunKey.seeded(arguments["seed"]).generator(arguments["stream"], round=arguments["round"])
    with pytest.raises(ValueError, match=r"seed|stream|round"):
        RunKey.seeded(arguments["seed"]).coins(arguments["stream"], IDS, round=arguments["round"])
