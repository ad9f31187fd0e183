import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.records import LongestRecords, RandomChunks, RandomRecords
from fedsim_userdp.data.store import TokenStore, open_store
from fedsim_userdp.errors import DataError, RecordChoiceError
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import TokenSettings
from fedsim_userdp.training.users import TrainingUsers, TrainingUsersRecipe, in_order_of_ids
from tests.data.sources import MemoryCorpus, WordTokenizer

WINDOW = 16
Opened = Callable[..., TrainingUsers]


def corpus_of(texts: dict[str, list[str]]) -> MemoryCorpus:
    return MemoryCorpus([Record(user, text) for user, own in texts.items() for text in own], key=repr(texts))


def texts_of(num_users: int) -> dict[str, list[str]]:
    return {f"user {u}": [f"{chr(97 + i)} {'b' * (u + 1)} again" for i in range(1 + u % 7)] for u in range(num_users)}


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    def open_it(texts: dict[str, list[str]], selector: Any, k: int = 2, seed: int = 0) -> TrainingUsers:
        store = open_store(
            corpus_of(texts), WordTokenizer(), TokenSettings(window=WINDOW, min_words=0, min_tokens=2), tmp_path
        )
        return TrainingUsers(store, np.arange(store.num_users), selector, k, WINDOW, RunKey.seeded(seed))

    return open_it


def by_id(users: TrainingUsers, round: int) -> dict[str, list[list[int]]]:
    return {
        users.store.user_id(int(users.users[u])): [list(r) for r in users.chosen_records(u, round)]
        for u in range(len(users))
    }


def test_no_user_contributes_more_than_k_records(opened: Opened) -> None:
    users = opened(texts_of(20), RandomRecords(), k=3)
    assert all(len(unit.records) <= 3 for unit in users.units(range(20), round=4))
    assert len(users.pool()) == sum(min(3, 1 + u % 7) for u in range(20))


def test_editing_one_user_changes_nobody_elses_records(opened: Opened) -> None:
    before = by_id(opened(texts_of(12), RandomRecords()), round=5)
    edited = texts_of(12) | {"user 5": ["something else entirely", "and more"]}
    after = by_id(opened(edited, RandomRecords()), round=5)
    assert before.pop("user 5") != after.pop("user 5")
    assert before == after


def test_fresh_records_differ_between_rounds_and_repeat_for_the_same_seed(opened: Opened) -> None:
    users = opened(texts_of(30), RandomRecords(fresh=True), k=2)
    assert by_id(users, 1) == by_id(users, 1)
    assert by_id(users, 1) != by_id(users, 2)
    assert by_id(users, 1) != by_id(opened(texts_of(30), RandomRecords(fresh=True), k=2, seed=1), 1)


def test_the_centralized_pool_is_drawn_once(opened: Opened) -> None:
    users = opened(texts_of(30), RandomRecords(fresh=True), k=2)
    first, second = users.pool(), users.pool()
    assert all((a.records[0] == b.records[0]).all() for a, b in zip(first.units, second.units, strict=True))


def test_selectors_that_are_not_fresh_answer_the_same_in_every_round(opened: Opened) -> None:
    users = opened(texts_of(10), LongestRecords(), k=2)
    assert by_id(users, 1) == by_id(users, 9)


def test_a_recipe_opens_the_same_users_elsewhere(opened: Opened, tmp_path: Path) -> None:
    store: TokenStore = opened(texts_of(20), RandomRecords()).store
    recipe = TrainingUsersRecipe(store.path, 5, 3, 1, False, RandomRecords(), 2, WINDOW, RunKey.seeded(0))
    users = recipe.open()
    assert len(users) == 12
    assert (recipe.open().users == users.users).all()


class Misbehaving:
    """Answers with what it is told to."""

    fresh = True

    def __init__(self, answer_fn: Callable[[list[np.ndarray], int], object]) -> None:
        self.answer_fn = answer_fn

    def select(self, records: list[np.ndarray], k: int, generator: np.random.Generator) -> object:
        return self.answer_fn(records, k)


@pytest.mark.parametrize(
    ("answer_fn", "said"),
    [
        (lambda records, k: records[: k + 1], r"returned 3 records of a user, more than k = 2"),
        (lambda records, k: [records[0], records[0]], "more often than the user has it"),
        (lambda records, k: [records[0][1:], records[0][1:]], "more often than the user has it"),
        (lambda records, k: [records[0] + 1], "one that is not the user's"),
        (lambda records, k: [records[0][::-1]], "one that is not the user's"),
        (lambda records, k: [records[0][:0]], "no list of token ids"),
        (lambda records, k: [np.concatenate(records)], "a record of more than tokens.window = 16 tokens"),
        (lambda records, k: [records[0].astype(float)], "no list of token ids"),
        (lambda records, k: np.array([1, 2]), "must return a list"),
    ],
)
def test_a_choice_of_records_that_breaks_its_rules_is_refused_by_name(
    opened: Opened, answer_fn: Callable[[list[np.ndarray], int], object], said: str
) -> None:
    texts = ["one two three", "four five six", "seven eight nine ten", "and so on and on and on"]
    users = opened({"user 0": texts}, Misbehaving(answer_fn))
    for chosen in (lambda: users.units([0], round=1), users.pool):
        with pytest.raises(RecordChoiceError, match=f"records=Misbehaving .*{said}"):
            chosen()


def test_nobody_has_a_record_longer_than_the_window_whatever_the_selection(opened: Opened) -> None:
    texts = {"a": ["word " * 40], "b": ["one two three"]}
    exact, longer = (opened(texts, RandomChunks(window=window)) for window in (WINDOW, WINDOW + 1))
    assert max(len(record) for unit in exact.units([0, 1], round=1) for record in unit.records) == WINDOW
    for chosen in (lambda: longer.units([0, 1], round=1), longer.pool):
        with pytest.raises(RecordChoiceError, match=r"records=RandomChunks .*tokens\.window = 16"):
            chosen()


class EachTextOnce:
    """Leaves out what it has seen before, in whatever keeps what it has seen."""

    fresh = False

    def __init__(self) -> None:
        self.seen: set[bytes] = set()

    def select(self, records: list[np.ndarray], k: int, generator: np.random.Generator) -> list[np.ndarray]:
        new = [record for record in records if record.tobytes() not in self.seen][:k]
        self.seen |= {record.tobytes() for record in new}
        return new


class EachTextOnceInAClass(EachTextOnce):
    """The same, where no copy helps."""

    shared: ClassVar[set[bytes]] = set()

    def __init__(self) -> None:
        self.seen = self.shared

    def __deepcopy__(self, memo: object) -> "EachTextOnceInAClass":
        return self


class EveryOtherCall(EachTextOnceInAClass):
    """Gives one record more in every other call, whoever is asked."""

    calls = 0

    def select(self, records: list[np.ndarray], k: int, generator: np.random.Generator) -> list[np.ndarray]:
        type(self).calls += 1
        return records[: 1 + self.calls % k]


class DrawsByItself(EachTextOnce):
    """Takes no notice of the generator that it is given."""

    def select(self, records: list[np.ndarray], k: int, generator: np.random.Generator) -> list[np.ndarray]:
        return list(np.random.default_rng().permutation(np.array(records, dtype=object)))[:1]


class Uncopyable(EachTextOnce):
    def __init__(self) -> None:
        self.lock = threading.Lock()


SAME = ["one two three", "four five six", "seven eight nine ten", "eleven twelve", "and so on", "on and on"]


def test_a_selection_with_a_memory_of_its_own_lets_no_user_change_anothers_records(opened: Opened) -> None:
    with_bot = {"a bot": SAME} | {name: SAME[at:] for at, name in enumerate("abcd")}
    without = {user: own for user, own in with_bot.items() if user != "a bot"}
    both = [opened(texts, EachTextOnce(), k=6) for texts in (with_bot, without)]

    def contributed(users: TrainingUsers) -> list[dict[str, list[list[int]]]]:
        rounds = [users.units(range(len(users)), round) for round in (1, 2)]
        return [
            {one.owner: [list(record) for record in one.records] for one in units if one.owner != "a bot"}
            for units in (*rounds, users.pool().units)
        ]

    assert contributed(both[0]) == contributed(both[1])
    assert [len(own) for own in contributed(both[0])[0].values()] == [6, 5, 4, 3]


@pytest.mark.parametrize("kind", [EachTextOnceInAClass, EveryOtherCall, DrawsByItself])
def test_a_selection_whose_class_or_module_remembers_is_refused(opened: Opened, kind: type[EachTextOnce]) -> None:
    users = opened(dict.fromkeys("abc", SAME), kind(), k=2)
    for chosen in (lambda: users.units(range(3), round=1), users.pool):
        EachTextOnceInAClass.shared.clear()
        with pytest.raises(RecordChoiceError, match=f"records={kind.__name__} chose other records .* asked again"):
            chosen()


def test_a_selection_that_cannot_be_copied_is_refused(opened: Opened) -> None:
    users = opened({"a": SAME}, Uncopyable())
    for chosen in (lambda: users.units([0], round=1), users.pool):
        with pytest.raises(RecordChoiceError, match=r"records=Uncopyable cannot be copied .TypeError: .*every user is"):
            chosen()


def test_this_packages_own_selections_are_asked_once_and_never_copied(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    select = LongestRecords.select

    def counted(*args: Any) -> list[np.ndarray]:
        asked.append(1)
        return select(*args)

    monkeypatch.setattr(LongestRecords, "select", counted)
    monkeypatch.setattr(LongestRecords, "__deepcopy__", None, raising=False)
    assert len(opened({"a": SAME, "b": SAME}, LongestRecords()).units([0, 1], round=1)) == 2
    assert len(asked) == 2


def test_records_remembered_from_another_user_are_refused(opened: Opened) -> None:
    seen: list[np.ndarray] = []

    def leak(records: list[np.ndarray], k: int) -> object:
        seen.extend(records)
        return seen[:1]

    users = opened({"a": ["one two three"], "b": ["four five six"]}, Misbehaving(leak))
    with pytest.raises(RecordChoiceError, match="one that is not the user's"):
        users.units([0, 1], round=1)


def test_pieces_of_a_users_own_text_and_records_that_the_user_has_twice_are_accepted(opened: Opened) -> None:
    texts = {"a": ["one two three four", "one two three four", "five six"]}
    for answer_fn in (
        lambda records, k: records[:2],
        lambda records, k: [records[0][1:3]],
        lambda records, k: [np.concatenate(records)[2:6], records[2]],
    ):
        assert len(opened(texts, Misbehaving(answer_fn), k=2).units([0], round=1)) == 1


def test_a_selection_that_changes_what_it_is_given_changes_nothing_in_the_store(opened: Opened) -> None:
    def overwrite(records: list[np.ndarray], k: int) -> object:
        for record in records:
            record[:] = 1
        return records[:1]

    users = opened({"a": ["one two three"]}, Misbehaving(overwrite))
    with pytest.raises(RecordChoiceError, match="not the user's"):
        users.units([0], round=1)


def test_a_users_number_and_records_do_not_depend_on_the_place_in_the_corpus(opened: Opened) -> None:
    def units(texts: dict[str, list[str]]) -> dict[str, tuple[int, list[list[int]]]]:
        users = opened(texts, RandomRecords(), k=2)
        users = replace(users, users=in_order_of_ids(users.store, users.users))
        return {u.owner: (u.index, [list(r) for r in u.records]) for u in users.units(range(len(users)), round=3)}

    texts = texts_of(15)
    backwards = dict(reversed(texts.items()))
    assert list(texts) != list(backwards)
    assert {k: v[0] for k, v in units(texts).items()} == {k: v[0] for k, v in units(backwards).items()}
    more = units({"in front": ["some text here"]} | texts)
    assert {k: len(v[1]) for k, v in more.items() if k != "in front"} == {k: len(v[1]) for k, v in units(texts).items()}


def test_two_ids_of_one_hash_are_refused(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their coins would be one: whoever sees that one of them took part knows it of the other."""
    store = opened(texts_of(6), RandomRecords()).store
    assert len(in_order_of_ids(store, np.arange(6))) == 6
    hashes = np.asarray(store.id_hashes).copy()
    hashes[4] = hashes[1]
    monkeypatch.setattr(TokenStore, "id_hashes", hashes)
    with pytest.raises(DataError, match="the same 64-bit hash"):
        in_order_of_ids(store, np.arange(6))


def test_k_must_be_at_least_one(opened: Opened) -> None:
    with pytest.raises(ValueError, match="records_per_user=0"):
        opened(texts_of(3), RandomRecords(), k=0)
