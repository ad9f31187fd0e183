import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.owners import OwnerBoundedStore, bound_owners, count_owners

from .sources import MemoryCorpus, memory_corpus

owner_lists = st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=4).map(sorted), max_size=25)


def flat(lists):
    offsets = np.concatenate([[0], np.cumsum([len(owners) for owners in lists])]).astype(np.int64)
    return offsets, np.array([owner for owners in lists for owner in owners], np.int64)


@settings(max_examples=100, deadline=None)
@given(lists=owner_lists, k=st.integers(1, 5), seed=st.integers(0, 100))
def test_nobody_owns_more_than_k_used_records_and_no_record_could_be_added(lists, k, seed):
    order = np.random.default_rng(seed).permutation(len(lists))
    used = bound_owners(*flat(lists), k, order=order)
    counts = np.zeros(7, int)
    for owners, is_used in zip(lists, used, strict=True):
        counts[owners] += is_used
    assert (counts <= k).all()
    for owners, is_used in zip(lists, used, strict=True):
        assert is_used or (counts[owners] == k).any()


def test_a_bound_below_one_is_refused():
    with pytest.raises(ValueError, match="at least 1, got 0"):
        bound_owners(*flat([[0]]), 0)


MAILS = [
    Record("ann", "first mail here", ("bob", "zoe")),
    Record("ann", "second mail here", ("bob",)),
    Record("bob", "third mail here", ("ann", "bob")),
    Record("cid", "fourth mail here"),
    Record("cid", "fifth mail here", ("zoe",)),
    Record("dan", "sixth", ("zoe",)),
]


def test_store_keeps_the_owners_of_each_record_with_the_user_among_them(store_of):
    store = store_of(MemoryCorpus(MAILS))
    offsets, owners = store.owner_arrays()
    assert [store.user_id(user) for user in range(4)] == ["ann", "bob", "cid", "dan"]
    assert store.stats.num_owners == 5
    expected = [{0, 1, 4}, {0, 1}, {0, 1}, {2}, {2, 4}, {3, 4}]
    assert [set(owners[offsets[r] : offsets[r + 1]]) for r in range(6)] == expected


def test_owners_follow_their_record_when_records_come_apart_and_users_are_left_out(store_of):
    texts = {"a": "one two three four", "b": "five", "c": "six seven eight nine"}
    order = ["a", "b", "c", "a"]
    records = [Record(user, texts[user], (f"reader {n}",)) for n, user in enumerate(order)]
    from fedsim_userdp.data.tokens import TokenSettings

    store = store_of(MemoryCorpus(records), TokenSettings(window=3, min_words=2))
    offsets, owners = store.owner_arrays()
    sets = [frozenset(owners[offsets[r] : offsets[r + 1]].tolist()) for r in range(store.stats.num_records)]
    readers = {0: 2, 3: 3, 2: 4}
    assert [store.user_id(user) for user in (0, 1)] == ["a", "c"]
    assert len(sets) == 6
    assert len(set(sets)) == len(readers)
    assert sets[0] == sets[1] != sets[2] == sets[3] != sets[4]
    assert all(len(one) == 2 for one in sets)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_bounded_store_gives_only_records_within_the_bound(store_of, k):
    plain = store_of(MemoryCorpus(MAILS))
    store = OwnerBoundedStore(plain.path, k, seed=0)
    offsets, owners = store.owner_arrays()
    counts = np.bincount(np.concatenate([owners[offsets[r] : offsets[r + 1]] for r in np.flatnonzero(store.used)]))
    assert counts.max() <= k
    listed = [record.tolist() for user in range(4) for record in store.records(user)]
    everything = [record.tolist() for user in range(4) for record in plain.records(user)]
    assert listed == [record for record, used in zip(everything, store.used, strict=True) if used]
    assert store.records_per_user.tolist() == [store.num_records(user) for user in range(4)]
    assert store.tokens_per_user.tolist() == [store.num_tokens(user) for user in range(4)]


def test_only_records_of_the_given_users_are_used_and_the_others_count_towards_nobody(store_of):
    plain = store_of(MemoryCorpus(MAILS))
    store = OwnerBoundedStore(plain.path, 2, seed=0, users=np.array([1, 2]))
    assert store.records_per_user.tolist() == [0, 1, 2, 0]
    assert pickle.loads(pickle.dumps(store)).used.tolist() == store.used.tolist()  # noqa: S301


def test_everybody_who_owns_a_record_of_some_users_is_counted_once(store_of):
    store = store_of(MemoryCorpus(MAILS))
    assert store.declares_owners
    assert count_owners(store, np.array([0])) == len({"ann", "bob", "zoe"})
    assert count_owners(store, np.array([2, 3])) == len({"cid", "dan", "zoe"})
    assert count_owners(store, np.arange(4)) == store.stats.num_owners


def test_without_further_owners_a_store_declares_none(store_of):
    store = store_of(memory_corpus())
    assert not store.declares_owners
    assert count_owners(store, np.arange(store.num_users)) == store.num_users


def test_a_bound_that_nobody_reaches_changes_nothing(store_of):
    plain = store_of(memory_corpus())
    store = OwnerBoundedStore(plain.path, 100, seed=0)
    assert store.records_per_user.tolist() == plain.records_per_user.tolist()


def test_bounded_store_pickles_with_its_bound(store_of):
    store = OwnerBoundedStore(store_of(MemoryCorpus(MAILS)).path, 1, seed=4)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert (again.used == store.used).all()
    assert again.num_records(0) == store.num_records(0)
