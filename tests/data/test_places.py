"""Whose text is empty keeps a place, in every corpus: who is a user follows from ids alone."""

import json
from pathlib import Path

import numpy as np
import pytest

from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.settings import TokenSettings

from .sources import NEED_PYARROW, TEXTS, WRITERS, StoreOf, WriteCorpus

SETTINGS = [
    TokenSettings(window=8, min_words=0, min_tokens=2),
    TokenSettings(window=8, min_words=8, min_tokens=2),
    TokenSettings(window=4, min_tokens=3, min_words=0, long_records="truncate"),
]


@pytest.fixture(params=WRITERS)
def write(request: pytest.FixtureRequest) -> WriteCorpus:
    if request.param in NEED_PYARROW:
        pytest.importorskip("pyarrow")
    return WRITERS[request.param]


def ids_of(store: TokenStore) -> list[str]:
    return [store.user_id(user) for user in range(store.num_places)]


def records_of(store: TokenStore, user: int) -> list[list[int]]:
    return [record.tolist() for record in store.records(user)]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("blank", ["", "  \n ", "one"])
def test_emptying_one_user_changes_nobodys_place_and_nobody_elses_records(
    write: WriteCorpus, tmp_path: Path, store_of: StoreOf, settings: TokenSettings, blank: str
) -> None:
    stores = []
    for name, texts in (("full", TEXTS), ("blanked", {**TEXTS, "cid": [blank for _ in TEXTS["cid"]]})):
        (tmp_path / name).mkdir()
        stores.append(store_of(write(tmp_path / name, texts), settings))
    full, blanked = stores
    assert ids_of(blanked) == ids_of(full)
    (cid,) = (user for user, name in enumerate(ids_of(full)) if name.rpartition("/")[2].lower() == "cid")
    for user in range(full.num_places):
        if user != cid:
            assert records_of(blanked, user) == records_of(full, user)
    if not blank.strip():
        assert (blanked.num_records(cid), blanked.has_records[cid], blanked.records(cid)) == (0, False, [])
        assert blanked.num_users == full.num_users - bool(full.num_records(cid))
    splits = [split_users(store, heldout_users=1, seed=0, keep_places=True) for store in stores]
    assert splits[0].train.tolist() == splits[1].train.tolist()


@pytest.mark.parametrize("text", [None, 3, {"a": 1}, ""])
def test_a_row_without_text_keeps_the_place_of_its_user_and_is_counted_once(
    tmp_path: Path, store_of: StoreOf, text: object
) -> None:
    rows = [{"user_id": "a", "text": text}, {"user_id": "b", "text": "some words"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = store_of(TableCorpus(tmp_path / "mine.jsonl"))
    assert ids_of(store) == ["a", "b"]
    assert store.records_per_user.tolist() == [0, 1]
    reason = "empty record" if text == "" else "row without text"
    assert store.stats.dropped == {reason: 1, "user without a usable record": 1}


def test_counts_of_users_are_of_those_with_records_and_places_are_counted_beside(
    tmp_path: Path, store_of: StoreOf
) -> None:
    store = store_of(WRITERS["jsonl"](tmp_path, {**TEXTS, "dan": [""], "eve": ["", " "]}))
    stats = store.stats
    assert (stats.num_users, stats.num_places, stats.num_sources, stats.num_owners) == (3, 5, 9, 3)
    assert (store.num_users, store.num_places) == (3, 5)
    assert store.has_records.tolist() == [True, True, True, False, False]
    assert store.tokens_per_user.sum() == stats.num_tokens
    assert np.flatnonzero(store.records_per_user == 0).tolist() == [3, 4]
