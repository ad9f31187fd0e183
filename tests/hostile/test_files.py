"""Damaged and hostile files: refused in one sentence or read as what they are; nothing runs, nothing else changes."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from fedsim_userdp.data.ingestion import build_store
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.data.table import Form, TableCorpus
from fedsim_userdp.data.tokens import Tokenizer
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.mechanisms.started import RUN_FILE
from fedsim_userdp.models.loading import TINY_MODEL, ModelSource
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.ledger import Ledger, entries
from fedsim_userdp.settings import TokenSettings
from fedsim_userdp.simulations.arguments import complete_arguments
from fedsim_userdp.training import checkpoints
from fedsim_userdp.training.checkpoints import CheckpointFolder
from tests.hostile.guard import refusing, watched
from tests.hostile.mutations import changed_json, damaged
from tests.simulations.small_runs import remember_accounting, resumed, run_small, small_run, small_store


def inputs(default: int, slow: int) -> pytest.MarkDecorator:
    """Runs a test on a few inputs, and on many where slow tests are asked for."""
    return pytest.mark.parametrize("num_inputs", [default, pytest.param(slow, marks=pytest.mark.slow)])


def try_all(num_inputs: int, strategy: st.SearchStrategy[object], check: Callable[..., None]) -> None:
    """Calls `check` with so many inputs."""

    @settings(max_examples=num_inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(value: object) -> None:
        check(value)

    run()


@pytest.fixture(autouse=True)
def _within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when anything but the test's own folder was touched, or a program or pickle was run."""
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    remember_accounting(monkeypatch)
    with watched(tmp_path) as wrong:
        yield
        assert wrong == []


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """The bundled one."""
    return ModelSource().load_tokenizer()


@pytest.fixture
def ran(tmp_path: Path) -> Run:
    """A finished run."""
    run = small_run(tmp_path / "run", small_store(tmp_path / "tokens"))
    run_small(run)
    return resumed(run)


ROWS = [{"user_id": f"user {i}", "text": "some words of text " * 3, "owners": ["a", "b"]} for i in range(4)]
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
CSV = b"user_id,text,owners\n" + b"".join(b'user %d,"some words, of ""text""",a;b\n' % i for i in range(4))


@inputs(120, 2500)
@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_a_damaged_corpus_is_refused_or_read(tmp_path: Path, tokenizer: Tokenizer, form: Form, num_inputs: int) -> None:
    file = tmp_path / f"corpus.{form}"
    corpus = TableCorpus(file, form, owners_column="owners")
    tokens = TokenSettings(window=16, min_tokens=2, min_words=0)

    def check(data: bytes) -> None:
        file.write_bytes(data)
        shutil.rmtree(tmp_path / "store", ignore_errors=True)
        with refusing():
            build_store(corpus, tokenizer, tokens, tmp_path / "store", corpus.fingerprint())
            store = TokenStore(tmp_path / "store")
            assert all(len(record) for user in range(store.num_users) for record in store.records(user))
            assert all(store.user_id(user) for user in range(store.num_users))

    try_all(num_inputs, damaged({"jsonl": JSONL, "csv": CSV}[form]), check)


@inputs(60, 1200)
def test_a_damaged_token_store_is_refused(tmp_path: Path, num_inputs: int) -> None:
    whole = small_store(tmp_path / "whole").path
    names = sorted(file.name for file in whole.iterdir())

    def check(choice: tuple[str, bytes]) -> None:
        name, data = choice
        shutil.rmtree(tmp_path / "copy", ignore_errors=True)
        shutil.copytree(whole, tmp_path / "copy")
        (tmp_path / "copy" / name).write_bytes(data)
        with refusing() as said:
            store = TokenStore(tmp_path / "copy")
            for user in range(store.num_users):
                assert store.records(user)
                assert store.user_id(user)
            store.owner_arrays()
        assert said or data == (whole / name).read_bytes() or name == "store.json"

    choices = st.sampled_from(names).flatmap(
        lambda name: st.tuples(st.just(name), damaged((whole / name).read_bytes()))
    )
    try_all(num_inputs, choices, check)


@inputs(80, 1500)
def test_a_damaged_ledger_is_refused_or_never_says_less(tmp_path: Path, num_inputs: int) -> None:
    release = acc.PoissonUsers(1.0, 0.4, 1)
    file = tmp_path / "ledger"
    with Ledger.open(file, delta=0.05, run="c") as ledger:
        for round in (1, 2, 3):
            ledger.record(round, release)
    data, spent = file.read_bytes(), [acc.epsilon(acc.PoissonUsers(1.0, 0.4, n), 0.05) for n in (1, 2, 3)]

    def check(changed: bytes) -> None:
        file.write_bytes(changed)
        with refusing(), Ledger.open(file, delta=0.05, run="c") as ledger:
            sound = len(ledger.rounds)
            assert sound <= 3
            assert ledger.epsilon() >= (spent[sound - 1] if sound else 0.0)

    try_all(num_inputs, damaged(data), check)


@inputs(80, 1000)
def test_a_forged_ledger_line_is_refused_or_counted(tmp_path: Path, num_inputs: int) -> None:
    file = tmp_path / "ledger"
    entry = entries.Entry(1, acc.PoissonUsers(1.0, 0.4, 1), "c", "seeded")
    body = {"format": entries.FORMAT, **entry.to_json(), "previous": entries.FIRST_HASH}

    def check(forged: object) -> None:
        if isinstance(forged, dict):
            text = json.dumps(forged, sort_keys=True, separators=(",", ":"))
            forged = {**forged, "hash": hashlib.sha256(text.encode()).hexdigest()}
        file.write_text(json.dumps(forged, sort_keys=True, separators=(",", ":")) + "\n")
        with refusing(), Ledger.open(file, delta=0.05, run="c") as ledger:
            assert ledger.rounds or ledger.num_torn
            ledger.record(max(ledger.rounds, default=0) + 1, acc.PoissonUsers(1.0, 0.4, 1))

    try_all(num_inputs, changed_json(body), check)


def means_the_same(data: bytes, whole: bytes) -> bool:
    """Whether bytes are equal, or JSON that is, white space aside."""
    try:
        return data == whole or json.loads(data) == json.loads(whole)
    except (ValueError, RecursionError):
        return False


CHECKPOINT_FILES = ("checkpoint.json", "state.safetensors")


@inputs(60, 1200)
def test_a_damaged_checkpoint_is_passed_over(ran: Run, num_inputs: int) -> None:
    folder = ran.place.folder / "not_private" / "checkpoints" / "user_wise-seed0"
    checkpoint = CheckpointFolder(folder, {}, allow_changes=True)
    files = {name: folder / "round-00000003" / name for name in CHECKPOINT_FILES}
    whole = {name: file.read_bytes() for name, file in files.items()}

    def check(choice: tuple[str, bytes]) -> None:
        name, data = choice
        files[name].write_bytes(data)
        with refusing() as said:
            found = checkpoint.latest()
            assert found is not None
            assert found.round == 2 or means_the_same(data, whole[name])
        files[name].write_bytes(whole[name])
        assert not said

    choices = st.sampled_from(CHECKPOINT_FILES).flatmap(lambda name: st.tuples(st.just(name), damaged(whole[name])))
    try_all(num_inputs, choices, check)


@inputs(10, 400)
def test_a_forged_checkpoint_is_refused_or_continued(ran: Run, num_inputs: int) -> None:
    folder = ran.place.folder / "not_private" / "checkpoints" / "user_wise-seed0"
    file = folder / "round-00000003" / "checkpoint.json"
    body = json.loads(file.read_text())
    del body["seal"]

    def check(forged: object) -> None:
        if isinstance(forged, dict):
            forged = {**forged, "seal": checkpoints._seal(forged)}
        file.write_text(json.dumps(forged))
        with refusing():
            run_small(ran, write_results=False)

    try_all(num_inputs, changed_json(body), check)


TENSORS: dict[str, dict[str, torch.Tensor]] = {
    "none": {},
    "another name": {"adapter/x": torch.zeros(2)},
    "no root": {"x": torch.zeros(2)},
    "optimizer of nobody": {"optimizer/99.step": torch.zeros(())},
    "optimizer without a number": {"optimizer/x.step": torch.zeros(())},
    "optimizer without a dot": {"optimizer/0": torch.zeros(())},
}


@pytest.mark.parametrize("name", TENSORS)
def test_forged_tensors_are_refused(ran: Run, name: str) -> None:
    folder = ran.place.folder / "not_private" / "checkpoints" / "user_wise-seed0" / "round-00000003"
    data = save(TENSORS[name])
    (folder / "state.safetensors").write_bytes(data)
    body = json.loads((folder / "checkpoint.json").read_text())
    del body["seal"]
    body["sha256"] = hashlib.sha256(data).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps({**body, "seal": checkpoints._seal(body)}))
    with refusing() as said:
        run_small(ran, write_results=False)
    assert said


@inputs(80, 1500)
def test_a_damaged_run_file_is_refused_or_gives_settings_only(tmp_path: Path, num_inputs: int) -> None:
    content = {
        "format": 1,
        "command": "run",
        "overrides": ["seed=1", "data=jsonl", "data.path=x"],
        "config": {"seed": 1},
    }

    def check(data: bytes) -> None:
        (tmp_path / RUN_FILE).write_bytes(data)
        with refusing():
            completed = complete_arguments("run", [f"resume={tmp_path}"])
            assert not [one for one in completed if one.startswith("-") or one.lstrip("+~").startswith("hydra")]

    forged = changed_json(content).map(lambda value: json.dumps(value).encode())
    try_all(num_inputs, st.one_of(forged, damaged(json.dumps(content).encode())), check)


@inputs(12, 250)
def test_a_damaged_model_folder_is_refused_or_loaded(tmp_path: Path, num_inputs: int) -> None:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors")
    shutil.copytree(TINY_MODEL, tmp_path / "model")
    whole = {name: (TINY_MODEL / name).read_bytes() for name in names}

    def check(choice: tuple[str, bytes]) -> None:
        name, data = choice
        (tmp_path / "model" / name).write_bytes(data)
        source = ModelSource(path=str(tmp_path / "model"))
        with refusing():
            source.load_tokenizer()
        with refusing():
            source.load()
        (tmp_path / "model" / name).write_bytes(whole[name])

    choices = st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), damaged(whole[name][:20_000])))
    try_all(num_inputs, choices, check)


def test_ids_and_texts_of_any_kind_go_through_a_corpus_unchanged(tmp_path: Path, tokenizer: Tokenizer) -> None:
    ids = ["..", "../../x", "a b", "[red]a", "\U0001f600", "i" * 10_000, "${seed}", "/etc/passwd", "'; --"]
    rows = [{"user_id": name, "text": f"words {name[:50]} words"} for name in ids]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    corpus = TableCorpus(tmp_path / "c.jsonl")
    settings = TokenSettings(window=64, min_tokens=2, min_words=0)
    store = TokenStore(build_store(corpus, tokenizer, settings, tmp_path / "store", corpus.fingerprint()))
    assert [store.user_id(user) for user in range(store.num_users)] == ids
    assert all(isinstance(record, np.ndarray) for user in range(store.num_users) for record in store.records(user))
