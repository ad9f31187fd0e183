import numpy as np
import pytest

from fedsim_userdp.data.corpus import DataError, Record
from fedsim_userdp.data.split import split_users

from .sources import MemoryCorpus

IDS = [f"user {number}" for number in range(60)]


@pytest.fixture
def population(store_of):
    def make(ids, text="some words here"):
        return store_of(MemoryCorpus([Record(user, text) for user in ids], key=repr((ids, text))))

    return make


def ids_of(store, users):
    return {store.user_id(int(user)) for user in users}


def test_parts_are_disjoint_and_together_all_users(population):
    split = split_users(population(IDS), heldout_users=10, validation_users=5, seed=0)
    assert [len(split.heldout), len(split.validation), len(split.train)] == [10, 5, 45]
    joined = np.concatenate([split.train, split.heldout, split.validation])
    assert sorted(joined) == list(range(60))


def test_split_does_not_depend_on_the_order_of_users_or_on_their_text(population):
    one, other = population(IDS), population(IDS[::-1], text="entirely different words")
    for part in ("train", "heldout", "validation"):
        parts = [
            ids_of(s, getattr(split_users(s, heldout_users=10, validation_users=5, seed=3), part)) for s in (one, other)
        ]
        assert parts[0] == parts[1]


def test_a_joining_user_moves_at_most_one_other_between_parts(population):
    before, after = population(IDS), population([*IDS, "newcomer"])
    held = [ids_of(s, split_users(s, heldout_users=10, seed=0).heldout) for s in (before, after)]
    assert len(held[0] - held[1]) <= 1


def test_same_seed_repeats_and_another_differs(population):
    store = population(IDS)
    held = [split_users(store, heldout_users=10, seed=seed).heldout.tolist() for seed in (0, 0, 1, 2)]
    assert held[0] == held[1]
    assert len({tuple(users) for users in held}) == 3


def test_held_out_users_stay_held_out_when_validation_users_are_added(population):
    store = population(IDS)
    alone = split_users(store, heldout_users=10, seed=0)
    both = split_users(store, heldout_users=10, validation_users=20, seed=0)
    assert alone.heldout.tolist() == both.heldout.tolist()


def test_every_user_is_equally_likely_to_be_held_out(population):
    # 2,000 seeds, 10 of 60: each count has mean 333 and stddev 17; 6 stddevs over 60 users, failure < 1e-6.
    store = population(IDS)
    counts = np.zeros(60)
    for seed in range(2000):
        counts[split_users(store, heldout_users=10, seed=seed).heldout] += 1
    assert (abs(counts - 2000 / 6) < 6 * 17).all()


@pytest.mark.parametrize(("heldout", "validation"), [(60, 0), (30, 30), (100, 0)])
def test_holding_out_everybody_is_refused_with_the_numbers(population, heldout, validation):
    with pytest.raises(DataError, match="leave nobody to train on: the corpus has 60 users"):
        split_users(population(IDS), heldout_users=heldout, validation_users=validation, seed=0)


def test_one_user_cannot_be_split_but_can_be_trained_on(population):
    store = population(["alone"])
    with pytest.raises(DataError, match="has 1 users"):
        split_users(store, heldout_users=1, seed=0)
    assert split_users(store, heldout_users=0, seed=0).train.tolist() == [0]


def test_negative_numbers_are_refused(population):
    with pytest.raises(DataError, match=">= 0, got -1"):
        split_users(population(IDS), heldout_users=-1, seed=0)
