import hashlib
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest

from fedsim_userdp.data import writer as writer_module
from fedsim_userdp.data.chitchat import ChitchatCorpus
from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.writer import StoreWriter
from fedsim_userdp.errors import DataError

from .sources import MemoryCorpus, StoreOf

IDS = [f"user {number}" for number in range(60)]
# SHA-256 of the ids in train and heldout of the installed corpus at seed 0, as README's runs had them.
DIGESTS = ["e3e0b090cf9d9fe7", "20c959e8ee98674f"]


class Population(Protocol):
    """The fixture that opens the store of these users."""

    def __call__(self, ids: list[str], text: str = ...) -> TokenStore: ...


@pytest.fixture
def population(store_of: StoreOf) -> Population:
    def make(ids: list[str], text: str = "some words here") -> TokenStore:
        return store_of(MemoryCorpus([Record(user, text) for user in ids], key=repr((ids, text))))

    return make


def ids_of(store: TokenStore, users: np.ndarray) -> set[str]:
    return {store.user_id(int(user)) for user in users}


def test_parts_are_disjoint_and_together_all_users(population: Population) -> None:
    split = split_users(population(IDS), heldout_users=10, validation_users=5, seed=0)
    assert [len(split.heldout), len(split.validation), len(split.train)] == [10, 5, 45]
    joined = np.concatenate([split.train, split.heldout, split.validation])
    assert sorted(joined) == list(range(60))


def test_split_does_not_depend_on_the_order_of_users_or_on_their_text(population: Population) -> None:
    one, other = population(IDS), population(IDS[::-1], text="entirely different words")
    for part in ("train", "heldout", "validation"):
        parts = [
            ids_of(s, getattr(split_users(s, heldout_users=10, validation_users=5, seed=3), part)) for s in (one, other)
        ]
        assert parts[0] == parts[1]


def test_a_joining_user_moves_at_most_one_other_between_parts(population: Population) -> None:
    before, after = population(IDS), population([*IDS, "newcomer"])
    held = [ids_of(s, split_users(s, heldout_users=10, seed=0).heldout) for s in (before, after)]
    assert len(held[0] - held[1]) <= 1


def test_same_seed_repeats_and_another_differs(population: Population) -> None:
    store = population(IDS)
    held = [split_users(store, heldout_users=10, seed=seed).heldout.tolist() for seed in (0, 0, 1, 2)]
    assert held[0] == held[1]
    assert len({tuple(users) for users in held}) == 3


def test_held_out_users_stay_held_out_when_validation_users_are_added(population: Population) -> None:
    store = population(IDS)
    alone = split_users(store, heldout_users=10, seed=0)
    both = split_users(store, heldout_users=10, validation_users=20, seed=0)
    assert alone.heldout.tolist() == both.heldout.tolist()


def test_every_user_is_equally_likely_to_be_held_out(population: Population) -> None:
    # 2,000 seeds, 10 of 60: each count has mean 333 and stddev 17; 6 stddevs over 60 users, failure < 1e-6.
    store = population(IDS)
    counts = np.zeros(60)
    for seed in range(2000):
        counts[split_users(store, heldout_users=10, seed=seed).heldout] += 1
    assert (abs(counts - 2000 / 6) < 6 * 17).all()


@pytest.mark.parametrize(("heldout", "validation"), [(60, 0), (30, 30), (100, 0)])
def test_holding_out_everybody_is_refused_with_the_numbers(
    population: Population, heldout: int, validation: int
) -> None:
    with pytest.raises(DataError, match="leave nobody to train on: the corpus has 60 users"):
        split_users(population(IDS), heldout_users=heldout, validation_users=validation, seed=0)


def test_one_user_cannot_be_split_but_can_be_trained_on(population: Population) -> None:
    store = population(["alone"])
    with pytest.raises(DataError, match="has 1 users"):
        split_users(store, heldout_users=1, seed=0)
    assert split_users(store, heldout_users=0, seed=0).train.tolist() == [0]


def test_negative_numbers_are_refused(population: Population) -> None:
    with pytest.raises(DataError, match=r"split\.heldout_users=-1 must be at least 0"):
        split_users(population(IDS), heldout_users=-1, seed=0)


def with_blanks(blank: set[str]) -> MemoryCorpus:
    return MemoryCorpus([Record(user, "" if user in blank else "one two") for user in IDS], key=repr(sorted(blank)))


def test_with_places_kept_nobodys_text_changes_the_split(store_of: StoreOf) -> None:
    split: dict[str, Any] = {"heldout_users": 10, "validation_users": 5, "seed": 0, "keep_places": True}
    before = split_users(store_of(with_blanks(set())), **split)
    for blank in ({IDS[0]}, set(IDS[7:30])):
        store = store_of(with_blanks(blank))
        assert store.num_users == 60 - len(blank)
        after = split_users(store, **split)
        for part in ("train", "heldout", "validation"):
            assert getattr(after, part).tolist() == getattr(before, part).tolist()


def test_without_places_only_users_with_records_are_split_as_if_the_others_were_not_there(
    store_of: StoreOf, population: Population
) -> None:
    blank = set(IDS[::3])
    split = split_users(store := store_of(with_blanks(blank)), heldout_users=10, validation_users=5, seed=0)
    alone = population([user for user in IDS if user not in blank])
    expected = split_users(alone, heldout_users=10, validation_users=5, seed=0)
    for part in ("train", "heldout", "validation"):
        assert ids_of(store, getattr(split, part)) == ids_of(alone, getattr(expected, part))
    with pytest.raises(DataError, match="the corpus has 40 users after dropping"):
        split_users(store, heldout_users=40, seed=0)
    with pytest.raises(DataError, match=r"the corpus has 60 users; hold out fewer$"):
        split_users(store, heldout_users=60, seed=0, keep_places=True)


@pytest.mark.parametrize("keep_places", [False, True])
def test_users_of_equal_hash_are_told_apart_by_their_id_and_not_by_their_place(
    population: Population, monkeypatch: pytest.MonkeyPatch, keep_places: bool
) -> None:
    monkeypatch.setattr(writer_module, "hash_id", lambda user_id: bytes([user_id[-1] % 4] * 8))
    stores = [population(ids, text) for ids, text in ((IDS, "one two"), (IDS[::-1], "one more"))]
    held = [ids_of(s, split_users(s, heldout_users=10, seed=0, keep_places=keep_places).heldout) for s in stores]
    assert held[0] == held[1]


def test_the_split_of_the_installed_corpus_is_the_one_that_was_published(tmp_path: Path) -> None:
    pytest.importorskip("chitchat_dataset")
    with StoreWriter(tmp_path / "store", vocab_size=2, min_words=64) as writer:
        for record in ChitchatCorpus().records():
            writer.add_words(record.user_id, len(record.text.split()))
            writer.add_source(record.user_id, [[1]] if record.text.strip() else [])
        store = TokenStore(writer.finish(fingerprint="f"))
    split = split_users(store, heldout_users=100, seed=0)
    assert (store.num_users, store.num_places, len(split.train), len(split.heldout)) == (905, 1315, 805, 100)
    joined = ["".join(sorted(ids_of(store, users))) for users in (split.train, split.heldout)]
    assert [hashlib.sha256(ids.encode()).hexdigest()[:16] for ids in joined] == DIGESTS
