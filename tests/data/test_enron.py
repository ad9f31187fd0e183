import csv
import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from fedsim_userdp.data.corpus import Corpus
from fedsim_userdp.data.enron import EnronCorpus
from fedsim_userdp.errors import DataError

from .sources import TEXTS, StoreOf, WriteCorpus, email, texts_of_real_authors, write_enron, write_enron_csv


def mail(root: Path, name: str, content: str | bytes) -> None:
    file = root / "maildir" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content.encode("latin-1") if isinstance(content, str) else content)


def texts(corpus: Corpus) -> list[tuple[str, str]]:
    return [(record.user_id, record.text) for record in corpus.records() if record.text]


@pytest.mark.parametrize(
    "folder", ["sent", "Sent", "_sent_mail", "sent_items", "Sent Items", "sent-mail", "_sent", "sent/old"]
)
def test_folders_of_sent_mail_are_read(tmp_path: Path, folder: str) -> None:
    mail(tmp_path, f"ann/{folder}/1.", email("ann", "mine"))
    assert texts(EnronCorpus(tmp_path / "maildir")) == [("ann", "mine")]


@pytest.mark.parametrize("folder", ["inbox", "all_documents", "discussion_threads", "deleted_items/sent", "notsent"])
def test_other_folders_are_not_read(tmp_path: Path, folder: str) -> None:
    mail(tmp_path, f"ann/{folder}/1.", email("bob", "not mine"))
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    assert texts(EnronCorpus(tmp_path / "maildir")) == [("ann", "mine")]


@pytest.mark.parametrize("write", [write_enron, write_enron_csv])
def test_messages_in_other_folders_and_cut_ones_are_counted(tmp_path: Path, write: WriteCorpus) -> None:
    corpus = write(tmp_path, TEXTS)
    list(corpus.records())
    num_texts = sum(map(len, TEXTS.values()))
    assert corpus.dropped.counts == {
        "message in another folder than sent mail": len(TEXTS),
        "message from which quoted or forwarded text was cut": num_texts + len(TEXTS),
        "repeated message of a mailbox": num_texts,
    }


def test_files_outside_a_folder_of_a_mailbox_are_counted(tmp_path: Path) -> None:
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    mail(tmp_path, "ann/notes.txt", "x")
    mail(tmp_path, "README", "x")
    corpus = EnronCorpus(tmp_path / "maildir")
    assert texts(corpus) == [("ann", "mine")]
    assert corpus.dropped.counts == {"file that lies in no folder of a mailbox": 2}


def test_a_folder_that_cannot_be_read_is_refused_rather_than_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    mail(tmp_path, "ann/sent/locked/1.", email("ann", "more"))
    real = os.scandir

    def scandir(path: str) -> Iterator[os.DirEntry[str]]:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(PermissionError, match="locked"):
        texts(EnronCorpus(tmp_path / "maildir"))


def test_the_packed_archive_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "enron_mail.tar.gz").write_bytes(b"x")
    with pytest.raises(DataError, match=r"enron_mail\.tar\.gz: expected the unpacked maildir folder or emails\.csv"):
        texts(EnronCorpus(tmp_path / "enron_mail.tar.gz"))


def test_a_text_is_used_once_per_mailbox_but_in_every_mailbox(tmp_path: Path) -> None:
    for user in ("ann", "bob"):
        for number, text in enumerate(["same  text", "same text\n", "other"]):
            mail(tmp_path, f"{user}/sent/{number}.", email(user, text))
        mail(tmp_path, f"{user}/_sent_mail/1.", email(user, "other"))
    corpus = EnronCorpus(tmp_path / "maildir")
    assert texts(corpus) == [(user, text) for user in ("ann", "bob") for text in ("other", "same  text")]
    assert corpus.dropped.counts == {"repeated message of a mailbox": 4}


def test_maildir_and_csv_of_the_same_mail_give_the_same_texts(tmp_path: Path) -> None:
    one, other = sorted(texts(write_enron(tmp_path, TEXTS))), sorted(texts(write_enron_csv(tmp_path, TEXTS)))
    assert [(user, " ".join(text.split())) for user, text in one] == [
        (user, " ".join(text.split())) for user, text in other
    ]


def test_messages_in_latin1_are_read_and_counted(tmp_path: Path) -> None:
    mail(tmp_path, "ann/sent/1.", email("ann", "a café"))
    corpus = EnronCorpus(tmp_path / "maildir")
    assert texts(corpus) == [("ann", "a café")]
    assert corpus.dropped.counts == {"text that is not UTF-8, read as latin-1": 1}


BAD_MAIL = [
    "Content-Type: text/plain; charset=undefined\n\nwords",
    "Content-Type: text/plain; charset=x\0y\n\nwords",
    "Content-Type: text/plain; charset*0=a; charset*=b; charset*1*=c\n\nwords",
    "Content-Type: text/plain; charset=a; charset=b\n\nwords",
    "Content-Type: multipart/mixed; boundary=A\n\n--B\n\nwords\n--B--",
    "Content-Type: multipart/mixed\n\nwords",
    "Content-Type: text/html\n\n<p>words</p>",
    "Content-Transfer-Encoding: base64\n\nAAAAA",
    "".join(f"Content-Type: multipart/mixed; boundary=B{n}\n\n--B{n}\n" for n in range(2000)),
    "Content-Type: message/rfc822\n\nTo: eve@x.com\n\nwords",
    "To: =?x\0y?q?a?= <a@x.com>\n: \n\nwords",
    "\0",
    "",
]


@pytest.mark.parametrize("owners", ["sender", "all"])
@pytest.mark.parametrize("bad", BAD_MAIL)
def test_one_bad_mail_stops_nothing_and_changes_no_other_record(
    tmp_path: Path, owners: Literal["sender", "all"], bad: str
) -> None:
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    mail(tmp_path, "bob/sent/1.", email("bob", "", to="ann@enron.com"))
    mail(tmp_path, "cid/sent/1.", email("cid", "his own"))
    corpus = EnronCorpus(tmp_path / "maildir", owners=owners)
    before = list(corpus.records())
    mail(tmp_path, "bob/sent/1.", bad)
    after = list(corpus.records())
    assert [record.user_id for record in after] == ["ann", "bob", "cid"]
    assert (after[0], after[2]) == (before[0], before[2])


@pytest.mark.parametrize("bad", BAD_MAIL)
def test_whatever_a_text_is_its_owners_follow_from_the_headers(tmp_path: Path, bad: str) -> None:
    head = email("ann", "", to="bob@enron.com").strip()
    mail(tmp_path, "ann/sent/1.", f"{head}\n\n{bad}")
    (record,) = EnronCorpus(tmp_path / "maildir", owners="all").records()
    assert record.owners == ("bob@enron.com",)


def test_mail_in_html_and_mail_that_cannot_be_read_is_blank_for_that_reason_alone(
    tmp_path: Path, store_of: StoreOf
) -> None:
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    mail(tmp_path, "ann/sent/2.", BAD_MAIL[6])
    mail(tmp_path, "ann/sent/3.", BAD_MAIL[7])
    assert store_of(EnronCorpus(tmp_path / "maildir")).stats.dropped == {
        "message with text in HTML only, counted as blank": 1,
        "message that cannot be read, counted as blank": 1,
    }


def test_messages_beyond_the_csv_limit_of_python_are_read(tmp_path: Path) -> None:
    with (tmp_path / "emails.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "message"], ["ann/sent/1.", email("ann", "word " * 100_000)]])
    ((_, text),) = texts(EnronCorpus(tmp_path / "emails.csv"))
    assert len(text.split()) == 100_000


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(email("eve", "secret"))
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    (tmp_path / "maildir/ann/sent/2.").symlink_to(tmp_path / "secret")
    (tmp_path / "maildir/ann/sent/3.").symlink_to(tmp_path / "nowhere")
    (tmp_path / "maildir/ann/sent/old").symlink_to(tmp_path)
    (tmp_path / "maildir/eve").symlink_to(tmp_path / "maildir/ann")
    corpus = EnronCorpus(tmp_path / "maildir")
    assert corpus.fingerprint()
    assert texts(corpus) == [("ann", "mine")]
    assert corpus.dropped.counts == {"link instead of a file": 2, "link instead of a folder": 2}


def test_a_pipe_in_a_mailbox_is_counted_and_does_not_hang(tmp_path: Path) -> None:
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    os.mkfifo(tmp_path / "maildir/ann/sent/2.")
    corpus = EnronCorpus(tmp_path / "maildir")
    assert corpus.fingerprint()
    assert texts(corpus) == [("ann", "mine")]
    assert corpus.dropped.counts == {"pipe or device instead of a file": 1}


def test_the_parent_of_the_maildir_will_do(tmp_path: Path) -> None:
    mail(tmp_path, "ann/sent/1.", email("ann", "mine"))
    assert texts(EnronCorpus(tmp_path)) == [("ann", "mine")]


def test_a_folder_without_sent_mail_is_refused(tmp_path: Path) -> None:
    mail(tmp_path, "ann/inbox/1.", email("bob", "x"))
    with pytest.raises(DataError, match=r"no mailbox with a folder of sent mail in it; download .* data\.path=PATH"):
        texts(EnronCorpus(tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["file", "body"], ["ann/sent/1.", "x"]], r"emails\.csv:2: no column 'message'"),
        (
            [["file", "message"], ["ann", "x"]],
            r"emails\.csv:2: column 'file' must read mailbox/folder/number, got 'ann'",
        ),
    ],
)
def test_another_csv_is_refused_by_line(tmp_path: Path, rows: list[list[str]], message: str) -> None:
    with (tmp_path / "emails.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    with pytest.raises(DataError, match=message):
        texts(EnronCorpus(tmp_path / "emails.csv"))


def test_owners_are_the_recipients_known_by_mailbox_where_they_have_one(tmp_path: Path) -> None:
    mail(tmp_path, "allen-p/sent/1.", email("phillip.allen", "one", to="bob@enron.com, out@side.com"))
    mail(tmp_path, "bob-b/sent/1.", email("bob", "two", to="Phillip.Allen@enron.com"))
    owners = {r.text: r.owners for r in EnronCorpus(tmp_path, owners="all").records()}
    assert owners == {"one": ("bob-b", "out@side.com"), "two": ("allen-p",)}
    assert all(r.owners == () for r in EnronCorpus(tmp_path).records())


def test_an_unknown_ownership_is_refused() -> None:
    with pytest.raises(DataError, match="owners must be 'sender' or 'all', got 'none'"):
        EnronCorpus("x", owners="none")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def real_authors() -> dict[str, list[str]]:
    pytest.importorskip("chitchat_dataset")
    return texts_of_real_authors()


@pytest.mark.parametrize("write", [write_enron, write_enron_csv])
def test_a_maildir_of_120_real_authors_gives_each_mailbox_what_its_owner_wrote(
    tmp_path: Path, write: WriteCorpus, real_authors: dict[str, list[str]], store_of: StoreOf
) -> None:
    latin = {u: [t.encode("latin-1", "replace").decode("latin-1") for t in own] for u, own in real_authors.items()}
    corpus = write(tmp_path, latin)
    found = defaultdict(list)
    for user, text in texts(corpus):
        found[user].append(" ".join(text.split()))
    assert len(found) == 120
    assert {user: sorted(own) for user, own in found.items()} == {user: sorted(own) for user, own in latin.items()}
    assert not any(word in text for own in found.values() for text in own for word in ("QUOTED", "STRANGER"))
    store = store_of(corpus)
    assert store.num_users == 120
    assert store.stats.dropped["repeated message of a mailbox"] == sum(map(len, latin.values()))
