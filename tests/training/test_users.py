from pathlib import Path

import numpy as np
import pytest

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.records import LongestRecords, RandomRecords
from fedsim_userdp.data.store import TokenStore, open_store
from fedsim_userdp.data.tokens import TokenSettings
from fedsim_userdp.training.users import TrainingUsers, TrainingUsersRecipe
from tests.data.sources import MemoryCorpus, WordTokenizer


def corpus_of(texts: dict[str, list[str]]) -> MemoryCorpus:
    return MemoryCorpus([Record(user, text) for user, own in texts.items() for text in own], key=repr(texts))


def texts_of(num_users: int) -> dict[str, list[str]]:
    return {f"user {u}": [f"{chr(97 + i)} {'b' * (u + 1)} again" for i in range(1 + u % 7)] for u in range(num_users)}


@pytest.fixture
def opened(tmp_path: Path):
    def open_it(texts: dict[str, list[str]], selector: object, k: int = 2, seed: int = 0) -> TrainingUsers:
        store = open_store(corpus_of(texts), WordTokenizer(), TokenSettings(window=16, min_words=0), tmp_path)
        return TrainingUsers(store, np.arange(store.num_users), selector, k, seed)

    return open_it


def by_id(users: TrainingUsers, round: int) -> dict[str, list[list[int]]]:
    return {
        users.store.user_id(int(users.users[u])): [list(r) for r in users.chosen_records(u, round)]
        for u in range(len(users))
    }


def test_no_user_contributes_more_than_k_records(opened) -> None:
    users = opened(texts_of(20), RandomRecords(), k=3)
    assert all(len(unit.records) <= 3 for unit in users.units(range(20), round=4))
    assert len(users.capped_records()) == sum(min(3, 1 + u % 7) for u in range(20))


def test_editing_one_user_changes_nobody_elses_records(opened) -> None:
    before = by_id(opened(texts_of(12), RandomRecords()), round=5)
    edited = texts_of(12) | {"user 5": ["something else entirely", "and more"]}
    after = by_id(opened(edited, RandomRecords()), round=5)
    assert before.pop("user 5") != after.pop("user 5")
    assert before == after


def test_fresh_records_differ_between_rounds_and_repeat_for_the_same_seed(opened) -> None:
    users = opened(texts_of(30), RandomRecords(fresh=True), k=2)
    assert by_id(users, 1) == by_id(users, 1)
    assert by_id(users, 1) != by_id(users, 2)
    assert by_id(users, 1) != by_id(opened(texts_of(30), RandomRecords(fresh=True), k=2, seed=1), 1)


def test_the_centralized_pool_is_drawn_once(opened) -> None:
    users = opened(texts_of(30), RandomRecords(fresh=True), k=2)
    first, second = users.capped_records(), users.capped_records()
    assert all((a == b).all() for a, b in zip(first, second, strict=True))


def test_selectors_that_are_not_fresh_answer_the_same_in_every_round(opened) -> None:
    users = opened(texts_of(10), LongestRecords(), k=2)
    assert by_id(users, 1) == by_id(users, 9)


def test_a_recipe_opens_the_same_users_elsewhere(opened, tmp_path: Path) -> None:
    store: TokenStore = opened(texts_of(20), RandomRecords()).store
    recipe = TrainingUsersRecipe(store.path, 5, 3, 1, RandomRecords(), 2, 0)
    users = recipe.open()
    assert len(users) == 12
    assert (recipe.open().users == users.users).all()


def test_k_must_be_at_least_one(opened) -> None:
    with pytest.raises(ValueError, match="records_per_user=0"):
        opened(texts_of(3), RandomRecords(), k=0)
