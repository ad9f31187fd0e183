"""Declared owners: the data set and its neighbour, in which one owner's texts are blank, both built from files."""

import csv
import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.enron import EnronCorpus
from fedsim_userdp.data.owners import OwnerBoundedStore, PoolRecord, count_owners
from fedsim_userdp.data.split import split_users
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.settings import TokenSettings

from .sources import StoreOf, WordTokenizer, email

NUM_SENDERS, NUM_PEOPLE, NUM_MAILS = 12, 18, 90
SETTINGS = [
    TokenSettings(window=8, min_words=0, min_tokens=2),
    TokenSettings(window=8, min_tokens=8, min_words=0),
    TokenSettings(window=6, min_tokens=4, min_words=60),
    TokenSettings(window=16, min_words=40, long_records="truncate", min_tokens=2),
]


Mail = tuple[str, list[str], str]
WriteMails = Callable[[Path, list[Mail]], Corpus]


def messages(seed: int) -> list[Mail]:
    """(sender, recipients, text) of mails, some filed twice, some long, some empty; one person is in many."""
    generator = np.random.default_rng(seed)
    found = []
    for number in range(NUM_MAILS):
        to = {f"p{person}" for person in generator.integers(NUM_PEOPLE, size=generator.integers(4))}
        to |= {"p1"} if generator.random() < 0.3 else set()
        words = [
            chr(97 + word % 26) + "x" * (word // 26)
            for word in generator.integers(50, size=generator.choice([0, 1, 5, 9, 40]))
        ]
        found.append((f"p{number % NUM_SENDERS}", sorted(to), " ".join(words)))
    return found + found[::7]


def blanked(mails: list[Mail], owner: str) -> list[Mail]:
    return [(sender, to, "" if owner in {sender, *to} else text) for sender, to, text in mails]


def write_jsonl(folder: Path, mails: list[Mail]) -> Corpus:
    rows = [{"user_id": sender, "to": to, "text": text} for sender, to, text in mails]
    (folder / "mail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableCorpus(folder / "mail.jsonl", owners_column="to")


def write_csv(folder: Path, mails: list[Mail]) -> Corpus:
    with (folder / "mail.csv").open("w", newline="") as file:
        rows = [(sender, "; ".join(to), text) for sender, to, text in mails]
        csv.writer(file).writerows([("user_id", "to", "text"), *rows])
    return TableCorpus(folder / "mail.csv", "csv", owners_column="to")


def write_parquet(folder: Path, mails: list[Mail]) -> Corpus:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    rows = [{"user_id": sender, "to": to, "text": text or None} for sender, to, text in mails]
    parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "mail.parquet")
    return TableCorpus(folder / "mail.parquet", "parquet", owners_column="to")


def enron_mails(mails: list[Mail]) -> Iterator[tuple[str, str]]:
    """File and content; the last mail of each sender also with a recipient who has no address."""
    for number, (sender, to, text) in enumerate(mails):
        named = ", ".join(f"{person}@enron.com" for person in to) + (", Somebody" if number % 11 == 5 else "")
        yield f"{sender}/sent/{number:04d}.", email(sender, text, to=named, number=number)


def write_maildir(folder: Path, mails: list[Mail]) -> Corpus:
    for name, content in enron_mails(mails):
        file = folder / "maildir" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return EnronCorpus(folder / "maildir", owners="all")


def write_emails_csv(folder: Path, mails: list[Mail]) -> Corpus:
    with (folder / "emails.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "message"), *enron_mails(mails)])
    return EnronCorpus(folder / "emails.csv", owners="all")


FORMS = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "maildir": write_maildir,
    "emails.csv": write_emails_csv,
}


def built(
    tmp_path: Path, store_of: StoreOf, write: WriteMails, mails: list[Mail], name: str, settings: TokenSettings
) -> TokenStore:
    (tmp_path / name).mkdir()
    return store_of(write(tmp_path / name, mails), settings, WordTokenizer())


def pool_of(store: TokenStore, k: int, users: np.ndarray | None) -> dict[int, PoolRecord]:
    return {record.place: record for record in OwnerBoundedStore(store.path, k, b"a key", users).pool()}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("k", "seed"), [(2, 0), (5, 1)])
def test_blanking_one_owner_changes_at_most_k_pool_records_all_of_them_that_owners(
    tmp_path: Path, store_of: StoreOf, form: str, settings: TokenSettings, k: int, seed: int
) -> None:
    mails = messages(seed)
    build = partial(built, tmp_path, store_of, FORMS[form], settings=settings)
    full = build(mails=mails, name="full")
    split = partial(split_users, heldout_users=3, seed=0, keep_places=True)
    users = split(full).train
    before = pool_of(full, k, users)
    ids = [full.user_id(user) for user in range(full.num_places)]
    offsets, owners = full.owner_arrays()
    for owner in ("p0", "p1", "p5"):
        empty = build(mails=blanked(mails, owner), name=f"without {owner}")
        assert [empty.user_id(user) for user in range(empty.num_places)] == ids
        assert all((a == b).all() for a, b in zip(full.owner_arrays(), empty.owner_arrays(), strict=True))
        assert split(empty).train.tolist() == users.tolist()
        assert count_owners(empty, users) == count_owners(full, users)
        after = pool_of(empty, k, users)
        assert after.keys() == before.keys()
        owned = [place for place in before if ids.index(owner) in owners[offsets[place] : offsets[place + 1]]]
        assert len(owned) <= k
        for place, record in before.items():
            if place in owned:
                assert after[place].tokens.size == 0
            else:
                assert after[place].user == record.user
                assert after[place].tokens.tolist() == record.tokens.tolist()


@pytest.mark.parametrize("form", FORMS)
def test_every_source_record_is_a_place_with_the_owners_that_the_file_names(
    tmp_path: Path, store_of: StoreOf, form: str
) -> None:
    mails = messages(3)
    store = built(tmp_path, store_of, FORMS[form], mails, "full", SETTINGS[2])
    offsets, owners = store.owner_arrays()
    ids = [store.user_id(user) for user in range(store.num_places)]
    assert store.stats.num_sources == len(mails)
    expected = [{sender, *to} for sender, to, _ in mails]
    if form == "maildir":
        expected = [expected[n] for n in sorted(range(len(mails)), key=lambda n: (mails[n][0], n))]
    for place, people in enumerate(expected):
        of = owners[offsets[place] : offsets[place + 1]]
        assert len(of) == len(people)
        assert {ids[owner] for owner in of if owner < len(ids)} == people & set(ids)


@pytest.mark.parametrize("form", ["maildir", "emails.csv"])
def test_a_message_whose_people_cannot_be_told_is_in_no_pool_with_text_and_is_counted(
    tmp_path: Path, store_of: StoreOf, form: str
) -> None:
    mails = [("p0", ["p1"], f"some words of mail {n}") for n in range(12)]
    store = built(tmp_path, store_of, FORMS[form], mails, "full", SETTINGS[0])
    pool = OwnerBoundedStore(store.path, 100, b"a key").pool()
    assert [record.place for record in pool if not record.tokens.size] == [5]
    reason = "message whose sender and recipients cannot all be told from its headers, counted as blank"
    assert store.stats.dropped == {reason: 1}


def test_with_all_owners_mail_filed_twice_is_given_twice_whatever_its_text(tmp_path: Path) -> None:
    mails = [("p0", ["p1"], "same words"), ("p0", [], "same words")]
    assert [record.text for record in write_maildir(tmp_path, mails).records()] == ["same words"] * 2
    alone = EnronCorpus(tmp_path / "maildir")
    assert [record.text for record in alone.records()] == ["same words"]
    assert alone.dropped.counts == {"repeated message of a mailbox": 1}
