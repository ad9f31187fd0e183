import pickle
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.owners import OwnerBoundedStore, bound_owners, count_owners
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.settings import TokenSettings

from .sources import MemoryCorpus, StoreOf, WordTokenizer, memory_corpus

owner_lists = st.lists(st.sets(st.integers(0, 6), min_size=1, max_size=4).map(sorted), max_size=25)


def flat(lists: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    offsets = np.concatenate([[0], np.cumsum([len(owners) for owners in lists])]).astype(np.int64)
    return offsets, np.array([owner for owners in lists for owner in owners], np.int64)


@settings(max_examples=100, deadline=None)
@given(lists=owner_lists, k=st.integers(1, 5), seed=st.integers(0, 100))
def test_nobody_owns_more_than_k_used_records_and_no_record_could_be_added(
    lists: list[list[int]], k: int, seed: int
) -> None:
    order = np.random.default_rng(seed).permutation(len(lists))
    used = bound_owners(*flat(lists), k, order=order)
    counts = np.zeros(7, int)
    for owners, is_used in zip(lists, used, strict=True):
        counts[owners] += is_used
    assert (counts <= k).all()
    for owners, is_used in zip(lists, used, strict=True):
        assert is_used or (counts[owners] == k).any()


def test_a_bound_below_one_is_refused() -> None:
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


KEY = bytes(32)


def owner_sets(store: TokenStore) -> list[set[int]]:
    offsets, owners = store.owner_arrays()
    return [set(owners[offsets[s] : offsets[s + 1]].tolist()) for s in range(store.stats.num_sources)]


def test_store_keeps_the_owners_of_each_source_record_with_the_user_among_them(store_of: StoreOf) -> None:
    store = store_of(MemoryCorpus(MAILS))
    assert [store.user_id(user) for user in range(4)] == ["ann", "bob", "cid", "dan"]
    assert store.stats.num_owners == 5
    assert owner_sets(store) == [{0, 1, 4}, {0, 1}, {0, 1}, {2}, {2, 4}, {3, 4}]
    assert store.source_users().tolist() == [0, 0, 1, 2, 2, 3]


def test_source_records_stay_in_the_corpus_order_with_their_windows_wherever_these_are_stored(
    store_of: StoreOf,
) -> None:
    texts = ["a one two three four", "b five", "c six seven eight nine", "a ten", "b"]
    store = store_of(
        MemoryCorpus([Record(text[0], text, (f"reader {n}",)) for n, text in enumerate(texts)]),
        TokenSettings(window=3, min_words=0, min_tokens=2),
    )
    everything = [record for user in range(store.num_places) for record in store.records(user)]
    first, num = store.source_windows()
    found = [np.concatenate(everything[f : f + n]).tolist() for f, n in zip(first, num, strict=True)]
    assert found == [[*ids, 0] for ids in WordTokenizer()(texts)["input_ids"]]
    assert num.tolist() == [2, 1, 2, 1, 1]
    assert [sorted(owners) for owners in owner_sets(store)] == [[0, 3], [1, 4], [2, 5], [0, 6], [1, 7]]


def test_no_user_and_no_record_with_owners_is_left_out_for_its_text_and_that_is_counted(store_of: StoreOf) -> None:
    records = [Record("few", "one two", ("boss",)), Record("none", " ", ("boss",)), Record("many", "a b c d e f g h")]
    store = store_of(MemoryCorpus(records), TokenSettings(window=4, min_tokens=4, min_words=5))
    assert store.records_per_user.tolist() == [0, 0, 2]
    assert owner_sets(store) == [{0, 3}, {1, 3}, {2}]
    assert (store.num_places, store.stats.num_sources, store.stats.num_owners) == (3, 3, 4)
    kept = store_of(MemoryCorpus(records), TokenSettings(window=4, min_words=5, min_tokens=2))
    assert kept.records_per_user.tolist() == [1, 0, 2]
    assert kept.stats.dropped["user with fewer than 5 words, used all the same as others own these records too"] == 1


@pytest.mark.parametrize("k", [1, 2, 3])
def test_the_pool_holds_at_most_k_source_records_of_any_owner_and_gives_each_once(store_of: StoreOf, k: int) -> None:
    plain = store_of(MemoryCorpus(MAILS))
    store = OwnerBoundedStore(plain.path, k, KEY)
    pool = store.pool()
    sets = owner_sets(store)
    assert [record.place for record in pool] == np.flatnonzero(store.used).tolist()
    assert max(sum(owner in sets[record.place] for record in pool) for owner in range(5)) <= k
    whole = [[*ids, 0] for ids in WordTokenizer()([mail.text for mail in MAILS])["input_ids"]]
    assert [(record.user, record.tokens.tolist()) for record in pool] == [
        (int(store.source_users()[place]), whole[place]) for place in np.flatnonzero(store.used)
    ]
    assert [[r.tolist() for r in store.records(user)] for user in range(4)] == [
        [record.tolist() for record in (r.tokens for r in pool if r.user == user)] for user in range(4)
    ]
    assert store.records_per_user.tolist() == [store.num_records(user) for user in range(4)]
    assert store.tokens_per_user.tolist() == [store.num_tokens(user) for user in range(4)]


def test_a_long_source_record_gives_one_window_that_key_and_place_choose(store_of: StoreOf) -> None:
    text = " ".join(chr(65 + n) for n in range(27))
    records = [Record(f"u{n}", text, (f"reader {n}",)) for n in range(60)]
    plain = store_of(MemoryCorpus(records), TokenSettings(window=4, min_words=0, min_tokens=2))
    windows = {tuple(window.tolist()) for window in plain.records(0)}
    pools = [OwnerBoundedStore(plain.path, 5, key).pool() for key in (KEY, KEY, b"another")]
    chosen = [[tuple(record.tokens.tolist()) for record in pool] for pool in pools]
    assert all(len(of) == 60 and set(of) <= windows for of in chosen)
    assert chosen[0] == chosen[1] != chosen[2]
    assert len(set(chosen[0])) > 4  # of 7 windows in 60 draws; four or fewer with probability below 1e-12


def test_the_order_depends_on_the_key(store_of: StoreOf) -> None:
    plain = store_of(MemoryCorpus([Record("ann", f"mail {n}", ("bob",)) for n in range(40)]))
    used = [tuple(np.flatnonzero(OwnerBoundedStore(plain.path, 3, bytes([n])).used)) for n in range(12)]
    assert len(set(used)) > 8


def test_only_records_of_the_given_users_are_used_and_the_others_count_towards_nobody(store_of: StoreOf) -> None:
    plain = store_of(MemoryCorpus(MAILS))
    store = OwnerBoundedStore(plain.path, 2, KEY, users=np.array([1, 2]))
    assert store.records_per_user.tolist() == [0, 1, 2, 0]
    assert [record.user for record in store.pool()] == [1, 2, 2]
    assert pickle.loads(pickle.dumps(store)).used.tolist() == store.used.tolist()  # noqa: S301


def test_everybody_who_owns_a_record_of_some_users_is_counted_once_blank_ones_too(store_of: StoreOf) -> None:
    store = store_of(MemoryCorpus([*MAILS, Record("dan", " ", ("eve",))]))
    assert store.declares_owners
    assert count_owners(store, np.array([0])) == len({"ann", "bob", "zoe"})
    assert count_owners(store, np.array([2, 3])) == len({"cid", "dan", "zoe", "eve"})
    assert count_owners(store, np.arange(4)) == store.stats.num_owners == 6


def test_without_further_owners_a_store_declares_none_and_cannot_be_bounded_by_owner(store_of: StoreOf) -> None:
    store = store_of(memory_corpus())
    assert not store.declares_owners
    assert count_owners(store, np.arange(store.num_users)) == store.num_users
    with pytest.raises(ValueError, match="the corpus declared no owners"):
        OwnerBoundedStore(store.path, 100, KEY)


@pytest.mark.parametrize("key", [0, "seed", b"", bytes(65)])
def test_a_key_of_another_kind_or_length_is_refused(store_of: StoreOf, key: Any) -> None:
    with pytest.raises(ValueError, match="key must be 1 to 64 bytes"):
        OwnerBoundedStore(store_of(MemoryCorpus(MAILS)).path, 1, key)


def test_a_bound_that_nobody_reaches_uses_everything(store_of: StoreOf) -> None:
    plain = store_of(MemoryCorpus(MAILS))
    store = OwnerBoundedStore(plain.path, 100, KEY)
    assert store.used.all()
    assert store.records_per_user.tolist() == plain.records_per_user.tolist()


def test_bounded_store_pickles_with_its_bound_and_key(store_of: StoreOf) -> None:
    store = OwnerBoundedStore(store_of(MemoryCorpus(MAILS)).path, 1, b"key")
    again = pickle.loads(pickle.dumps(store))  # noqa: S301
    assert (again.used == store.used).all()
    assert again.num_records(0) == store.num_records(0)
