import json
import os
import pickle
import signal
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from fedsim_userdp.cache import default_cache_dir
from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.layout import META
from fedsim_userdp.data.store import TokenStore, open_store
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.data.writer import StoreWriter
from fedsim_userdp.errors import DataError
from fedsim_userdp.settings import TokenSettings

from .sources import TEXTS, MemoryCorpus, StoreOf, WordTokenizer, memory_corpus

ROOT = Path(__file__).parents[2]


def all_records(store: TokenStore) -> dict[str, list[list[int]]]:
    users = np.flatnonzero(store.has_records)
    return {store.user_id(int(u)): [r.tolist() for r in store.records(int(u))] for u in users}


def test_store_holds_every_record_with_its_end_mark(store_of: StoreOf) -> None:
    store = store_of(memory_corpus(), TokenSettings(window=64, min_words=0, min_tokens=2))
    tokenizer = WordTokenizer()
    expected = {user: [[*ids, 0] for ids in tokenizer(texts)["input_ids"]] for user, texts in TEXTS.items()}
    assert all_records(store) == expected


def test_records_of_one_user_that_come_apart_are_joined_in_order(store_of: StoreOf) -> None:
    records = [Record("a", "one two"), Record("b", "three four"), Record("a", "five six seven")]
    store = store_of(MemoryCorpus(records))
    assert [len(r) for r in store.records(0)] == [3, 4]
    assert store.user_id(0) == "a"
    assert store.num_records(1) == 1


def test_split_cuts_a_long_record_into_consecutive_windows(store_of: StoreOf) -> None:
    corpus = MemoryCorpus([Record("a", " ".join(f"w{i:04d}{'x' * (i % 40)}" for i in range(21)))])
    whole = store_of(corpus, TokenSettings(window=64, min_words=0, min_tokens=2)).records(0)[0]
    windows = store_of(corpus, TokenSettings(window=8, min_words=0, min_tokens=2)).records(0)
    assert [len(w) for w in windows] == [8, 8, 6]
    assert np.concatenate(windows).tolist() == whole.tolist()


def test_truncate_keeps_the_first_window_and_counts_the_rest(store_of: StoreOf) -> None:
    corpus = MemoryCorpus([Record("a", "w " * 21)])
    store = store_of(corpus, TokenSettings(window=8, min_words=0, long_records="truncate", min_tokens=2))
    assert [len(r) for r in store.records(0)] == [8]
    assert store.stats.dropped["record cut to its first 8 tokens"] == 1


def test_short_records_and_users_with_few_words_are_left_out_and_counted(store_of: StoreOf) -> None:
    texts = {"few": ["one two"], "many": ["a b c d e f g", "h"], "none": ["  "]}
    store = store_of(memory_corpus(texts), TokenSettings(window=16, min_tokens=4, min_words=5))
    assert all_records(store).keys() == {"many"}
    assert [store.user_id(user) for user in range(store.num_places)] == ["few", "many", "none"]
    assert (store.num_users, store.records(0), store.num_records(2), store.num_tokens(2)) == (1, [], 0, 0)
    assert store.stats.dropped == {
        "record or window of fewer than 4 tokens": 2,
        "empty record": 1,
        "user without a usable record": 2,
    }


def test_min_words_counts_all_words_of_a_user(store_of: StoreOf) -> None:
    texts = {"a": ["one two", "three four"], "b": ["one two three"]}
    store = store_of(memory_corpus(texts), TokenSettings(min_words=4, min_tokens=2))
    assert all_records(store).keys() == {"a"}
    assert store.stats.dropped["user with fewer than 4 words"] == 1
    assert store.stats.dropped["record of a user with fewer than 4 words"] == 1


def test_leaving_out_a_user_does_not_change_what_others_have(store_of: StoreOf) -> None:
    with_all = all_records(store_of(memory_corpus()))
    without = {user: texts for user, texts in TEXTS.items() if user != "bob"}
    store = store_of(memory_corpus(without, key="without bob"))
    assert all_records(store) == {user: records for user, records in with_all.items() if user != "bob"}


def test_store_is_built_once_and_opened_afterwards(store_of: StoreOf) -> None:
    corpus = memory_corpus()
    first = store_of(corpus)
    assert all_records(store_of(corpus)) == all_records(first)
    assert corpus.num_passes == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"window": 9},
        {"long_records": "truncate"},
        {"min_tokens": 3},
        {"min_words": 1},
        {"append_eos": False},
        {"prepend_bos": False},
    ],
)
def test_each_setting_has_a_store_of_its_own(store_of: StoreOf, changed: dict[str, Any]) -> None:
    plain: dict[str, Any] = {"window": 8, "min_words": 0, "min_tokens": 2}
    first = store_of(memory_corpus(), TokenSettings(**plain))
    assert store_of(memory_corpus(), TokenSettings(**(plain | changed))).fingerprint != first.fingerprint


def test_another_tokenizer_has_a_store_of_its_own(store_of: StoreOf, bpe_tokenizer: PreTrainedTokenizerFast) -> None:
    assert store_of(memory_corpus()).fingerprint != store_of(memory_corpus(), tokenizer=bpe_tokenizer).fingerprint


def test_pickle_carries_the_path_only(store_of: StoreOf) -> None:
    store = store_of(memory_corpus())
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert all_records(pickle.loads(pickled)) == all_records(store)  # noqa: S301


def test_records_are_writable_copies_that_do_not_reach_the_file(store_of: StoreOf) -> None:
    store = store_of(memory_corpus())
    before = all_records(store)
    store.records(0)[0][:] = 7
    assert all_records(store) == before


@pytest.mark.parametrize("user", [-1, 3])
def test_a_user_outside_the_range_is_refused(store_of: StoreOf, user: int) -> None:
    with pytest.raises(IndexError, match=r"must be in \[0, 3\)"):
        store_of(memory_corpus()).records(user)


def test_no_user_left_is_refused_with_the_counts(store_of: StoreOf) -> None:
    with pytest.raises(DataError, match=r"no user is left: .*user with fewer than 1000 words: 3"):
        store_of(memory_corpus(), TokenSettings(min_words=1000, min_tokens=2))


def test_content_digest_tells_any_token_id_record_end_and_owner_from_another(store_of: StoreOf) -> None:
    stored = [Record("a", "one two three four"), Record("b", "five six"), Record("b", "seven")]
    others = [
        [Record("a", "one two three fourth"), *stored[1:]],
        [stored[0], Record("c", "five six"), Record("c", "seven")],
        [*stored[:2], Record("a", "seven")],
        [*stored, Record("c", "")],
        [Record("a", "one two three four", ("b",)), *stored[1:]],
        [Record("a", "one two three four", ("c",)), *stored[1:]],
    ]
    digests = [
        store_of(MemoryCorpus(records, key=str(number))).content_digest
        for number, records in enumerate([stored, stored, *others])
    ]
    assert digests[0] == digests[1]
    assert len(set(digests)) == 1 + len(others)


def test_content_that_keeps_its_crc32_is_still_found_to_have_changed(store_of: StoreOf) -> None:
    store = store_of(memory_corpus())
    victim = store.path / "tokens.bin"
    content = victim.read_bytes()
    forged = bytes([content[0] ^ 1]) + content[1:-4]
    wanted = zlib.crc32(content)
    victim.write_bytes(forged + _crc32_suffix(zlib.crc32(forged), wanted))
    assert zlib.crc32(victim.read_bytes()) == wanted
    assert victim.read_bytes() != content
    with pytest.raises(DataError, match=r"tokens\.bin: corrupt"):
        TokenStore(store.path)


def _crc32_suffix(start: int, wanted: int) -> bytes:
    """Four bytes that turn the checksum `start` into `wanted`: CRC-32 is linear, so that bits can be solved for."""
    base = zlib.crc32(bytes(4), start)
    columns = [zlib.crc32((1 << bit).to_bytes(4, "little"), start) ^ base for bit in range(32)]
    rest, chosen = wanted ^ base, 0
    pivots: dict[int, tuple[int, int]] = {}
    for bit, column in enumerate(columns):
        mask = 1 << bit
        for top, (value, made_of) in pivots.items():
            if column >> top & 1:
                column, mask = column ^ value, mask ^ made_of
        if column:
            pivots[column.bit_length() - 1] = (column, mask)
    for top in sorted(pivots, reverse=True):
        value, made_of = pivots[top]
        if rest >> top & 1:
            rest, chosen = rest ^ value, chosen ^ made_of
    assert rest == 0
    return chosen.to_bytes(4, "little")


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete", "meta"])
def test_corrupt_store_is_refused_by_name_and_built_anew_by_open_store(store_of: StoreOf, damage: str) -> None:
    store = store_of(memory_corpus())
    expected = all_records(store)
    victim = store.path / ("store.json" if damage == "meta" else "tokens.bin")
    content = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    else:
        spoilt = {"truncate": content[:-2], "flip": bytes([content[0] ^ 1]) + content[1:], "meta": b'{"format": 1'}
        victim.write_bytes(spoilt[damage])
    with pytest.raises(DataError, match=victim.name):
        TokenStore(store.path)
    assert all_records(store_of(memory_corpus())) == expected


def without(content: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != key}


DAMAGES = {
    "a count that is wrong": lambda meta: meta | {"stats": meta["stats"] | {"num_records": 4}},
    "a count that is none": lambda meta: meta | {"stats": meta["stats"] | {"num_users": float("nan")}},
    "a count of zero": lambda meta: meta | {"stats": meta["stats"] | {"num_words": 0}},
    "a count that is text": lambda meta: meta | {"stats": meta["stats"] | {"num_places": "3"}},
    "a missing count": lambda meta: meta | {"stats": without(meta["stats"], "num_words")},
    "missing reasons": lambda meta: meta | {"stats": without(meta["stats"], "dropped")},
    "reasons that are a list": lambda meta: meta | {"stats": meta["stats"] | {"dropped": [1]}},
    "a missing array": lambda meta: meta | {"arrays": without(meta["arrays"], "id_bytes")},
    "an array of objects": lambda meta: meta | {"arrays": meta["arrays"] | {"tokens": ["|O", 1, ""]}},
    "another fingerprint": lambda meta: meta | {"fingerprint": "0" * 32},
    "no seal": lambda meta: without(meta, "sha256"),
    "a list": lambda meta: [meta],
    "a number": lambda meta: 7,
    "null": lambda meta: None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_a_store_says_of_itself_is_not_believed_when_it_was_changed(store_of: StoreOf, damage: str) -> None:
    corpus = memory_corpus()
    store = store_of(corpus)
    meta = json.loads((store.path / META).read_text())
    (store.path / META).write_text(json.dumps(DAMAGES[damage](meta)))
    with pytest.raises(DataError, match=r"store\.json: not .*delete"):
        TokenStore(store.path)
    assert store_of(corpus).stats == store.stats
    assert corpus.num_passes == 2


@pytest.mark.parametrize("content", [b"[" * 1_000_000, b'{"a":' * 1_000_000, b"\xff", b""])
def test_a_store_that_cannot_be_read_is_built_anew(store_of: StoreOf, content: bytes) -> None:
    store = store_of(memory_corpus())
    (store.path / META).write_bytes(content)
    assert store_of(memory_corpus()).stats == store.stats


def test_a_corpus_that_changes_while_it_is_read_leaves_no_store(tmp_path: Path, store_of: StoreOf) -> None:
    file = tmp_path / "mine.jsonl"
    rows = [json.dumps({"user_id": "ann", "text": "some words"}) + "\n"] * 3
    file.write_text("".join(rows))
    corpus = TableCorpus(file)
    calm, records = corpus.records, iter(corpus.records())

    def under_way() -> Iterator[Record]:
        yield next(records)
        file.write_text("".join(rows * 2))
        yield from records

    corpus.records = under_way  # type: ignore[method-assign]
    with pytest.raises(DataError, match="corpus 'jsonl' changed while it was read: start again"):
        store_of(corpus)
    assert not [place for place in (tmp_path / "cache").iterdir() if place.suffix != ".lock"]
    corpus.records = calm  # type: ignore[method-assign]
    assert store_of(corpus).stats.num_records == 6


def test_cache_that_cannot_be_written_is_refused_in_a_sentence(tmp_path: Path, keep_all: TokenSettings) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cache folder .* cannot be written .*; set FEDSIM_CACHE_DIR"):
        open_store(memory_corpus(), WordTokenizer(), keep_all, tmp_path / "file" / "cache")


def test_cache_folder_comes_from_the_environment_and_is_readable_by_its_user_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_all: TokenSettings
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "chosen"))
    assert default_cache_dir() == tmp_path / "chosen"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FEDSIM_CACHE_DIR", "~/chosen")
    assert default_cache_dir() == tmp_path / "chosen"
    store = open_store(memory_corpus(), WordTokenizer(), keep_all)
    assert store.path.parent == tmp_path / "chosen"
    assert (tmp_path / "chosen").stat().st_mode & 0o077 == 0


@pytest.mark.skipif(os.name != "posix", reason="file modes of POSIX")
def test_a_store_is_readable_by_its_user_only_wherever_it_lies(store_of: StoreOf, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir(mode=0o755)
    assert store_of(memory_corpus()).path.stat().st_mode & 0o077 == 0


def test_user_ids_never_become_file_names(store_of: StoreOf, tmp_path: Path) -> None:
    store = store_of(memory_corpus({"../../escape": ["one two"], "/etc/passwd": ["three four"], "ü\ud800": ["x y"]}))
    assert store.user_id(0) == "../../escape"
    assert {path.parent for path in tmp_path.rglob("*.bin")} == {store.path}
    assert not (tmp_path.parent / "escape").exists()


def test_two_ids_that_would_read_the_same_are_refused(store_of: StoreOf) -> None:
    with pytest.raises(DataError, match=r"two user ids read the same once .*: rename one"):
        store_of(memory_corpus({"x\udc80": ["one two"], "x\\udc80": ["three four"]}))


@pytest.mark.parametrize("owners", ["boss", ["boss"], ("boss", ""), ("boss", 7), (None,)])
def test_owners_of_a_corpus_that_are_no_tuple_of_ids_are_refused(store_of: StoreOf, owners: Any) -> None:
    with pytest.raises(DataError, match="memory, record 1: owners must be a tuple of ids"):
        store_of(MemoryCorpus([Record("a", "one two", owners)]))


SLOW_BUILD = """
import sys, time
from pathlib import Path
from fedsim_userdp.data.store import open_store
from fedsim_userdp.data.tokens import TokenSettings
from tests.data.sources import WordTokenizer, memory_corpus
corpus = memory_corpus()
fast = corpus.records
def slow():
    for record in fast():
        yield record
        print("reading", flush=True)
        time.sleep(float(sys.argv[2]))
corpus.records = slow
open_store(corpus, WordTokenizer(), TokenSettings(window=8, min_words=0, min_tokens=2), Path(sys.argv[1]))
print("done", corpus.num_passes, flush=True)
"""


def start_build(cache: Path, pause: float) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", SLOW_BUILD, str(cache), str(pause)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)


def test_a_build_killed_half_way_leaves_nothing_that_is_taken_for_a_store(store_of: StoreOf, tmp_path: Path) -> None:
    process = start_build(tmp_path / "cache", 60)
    assert process.stdout is not None
    assert process.stdout.readline() == "reading\n"
    assert list((tmp_path / "cache").glob("building-*/arrival.bin"))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "cache").glob("tokens-*/" + META))
    assert all_records(store_of(memory_corpus())).keys() == set(TEXTS)
    assert not list((tmp_path / "cache").glob("building-*"))


def test_two_processes_starting_at_once_build_one_store_and_both_open_it(tmp_path: Path, store_of: StoreOf) -> None:
    processes = [start_build(tmp_path / "cache", 0.1) for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0].splitlines()[-1] for process in processes]
    assert sorted(outputs) == ["done 0", "done 1"]
    assert all_records(store_of(memory_corpus())).keys() == set(TEXTS)


def write_population(folder: Path, num_users: int, seed: int = 0) -> Path:
    """A store of made-up users with 1 to 7 records of 8 to 64 tokens."""
    generator = np.random.default_rng(seed)
    with StoreWriter(folder, vocab_size=2048) as writer:
        for start in range(0, num_users, 10_000):
            ids = [f"user-{i:07d}-abcdef" for i in range(start, min(start + 10_000, num_users))]
            num_records = generator.integers(1, 8, len(ids))
            lengths = generator.integers(8, 65, num_records.sum())
            writer.add_users(ids, num_records, lengths, generator.integers(0, 2048, lengths.sum()))
        return writer.finish(fingerprint="population")


MEASURE = """
import sys, time
import numpy as np
from fedsim_userdp.data.store import TokenStore
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
start = time.perf_counter()
store = TokenStore(sys.argv[1])
opened = time.perf_counter() - start
generator = np.random.default_rng(0)
seconds = []
for _ in range(9):
    start = time.perf_counter()
    cohort = np.flatnonzero(generator.random(store.num_users) < 100 / store.num_users)
    tokens = [store.records(int(user)) for user in cohort]
    seconds.append(time.perf_counter() - start)
print(opened, resident(), sorted(seconds)[4])
"""


@pytest.mark.parametrize("num_users", [10_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_opening_and_drawing_a_cohort_stay_within_bounds_at_any_population(tmp_path: Path, num_users: int) -> None:
    folder = write_population(tmp_path / "population", num_users)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, "-c", MEASURE, str(folder)]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True, env=environment).stdout
    opened, resident, drawing = map(float, output.split())
    assert opened < 2
    assert resident < 300
    assert drawing < 0.05
