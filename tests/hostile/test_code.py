"""Nothing that comes as data is executed: models with code of their own, pickles, YAML tags, run folders, links."""

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra

from fedsim_userdp.errors import ModelError
from fedsim_userdp.mechanisms.started import RUN_FILE
from fedsim_userdp.models.gguf import packaged_gguf
from fedsim_userdp.models.loading import TINY_MODEL, ModelSource
from fedsim_userdp.report.files import write_text
from fedsim_userdp.simulations.arguments import complete_arguments
from fedsim_userdp.simulations.cli import run_command
from tests.hostile.guard import in_time, watched
from tests.simulations.corpora import small_settings, write_jsonl


class Bomb:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.fixture(autouse=True)
def _nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails when a program or pickle was run, a file elsewhere was changed, or `ran` was made."""
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    with watched(tmp_path) as wrong, in_time():
        yield
    assert wrong == []
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the bundled model."""
    return Path(shutil.copytree(TINY_MODEL, tmp_path / "model"))


def code(tmp_path: Path) -> str:
    return f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"


@pytest.mark.parametrize("model_type", ["gpt2", "unheard_of"])
def test_a_models_own_code_is_not_run_nor_asked_about(tmp_path: Path, model: Path, model_type: str) -> None:
    config = json.loads((model / "config.json").read_text())
    names = {"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.Model", "AutoTokenizer": ["mine.T", "mine.T"]}
    (model / "config.json").write_text(json.dumps({**config, "model_type": model_type, "auto_map": names}))
    (model / "mine.py").write_text(code(tmp_path))
    source = ModelSource(path=str(model))
    if model_type == "gpt2":
        source.load()
        source.load_tokenizer()
        return
    with pytest.raises(ModelError, match="no model to load"):
        source.load()


@pytest.mark.parametrize("has_index", [False, True])
def test_a_models_pickle_is_refused(tmp_path: Path, model: Path, has_index: bool) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    if has_index:
        index = {"metadata": {}, "weight_map": {"transformer.wte.weight": "pytorch_model.bin"}}
        (model / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is of a format that is not read here"):
        ModelSource(path=str(model)).load()


@pytest.mark.parametrize("package", ["mine.sub", ".mine", "mine.sub.deeper", ""])
def test_a_package_with_a_model_is_not_imported_to_look_into_it(
    tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "sub").mkdir(parents=True)
    (tmp_path / "mine" / "__init__.py").write_text(code(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModelError, match="must be the name of a package itself"):
        packaged_gguf(package)


def fedsim_run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    """Runs the command in this process; returns its exit code and what it said on stderr."""
    GlobalHydra.instance().clear()
    try:
        code = run_command("run", list(arguments))
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, capsys.readouterr().err


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and a finished run of no rounds; matplotlib has made its cache of fonts."""
    folder = tmp_path_factory.mktemp("finished")
    settings = small_settings(write_jsonl(folder / "corpus.jsonl"), folder / "cache", rounds=1)
    GlobalHydra.instance().clear()
    assert run_command("run", [*settings, "mechanism=zero_shot", f"output_dir={folder / 'run'}"]) == 0
    return folder


@pytest.fixture
def started(tmp_path: Path, finished: Path) -> Path:
    """A copy of the run, with the same corpus and cache."""
    for name in ("cache", "run"):
        shutil.copytree(finished / name, tmp_path / name)
    content = (tmp_path / "run" / RUN_FILE).read_text().replace(str(finished / "cache"), str(tmp_path / "cache"))
    (tmp_path / "run" / RUN_FILE).write_text(content)
    return tmp_path / "run"


TAG = "!!python/object/apply:os.system ['touch {}/ran']"


def test_yaml_tags_in_a_run_folder_are_not_acted_on(
    tmp_path: Path, started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tag = TAG.format(tmp_path)
    (started / "config.yaml").write_text(f"seed: {tag}\n")
    code, said = fedsim_run(capsys, f"resume={started}")
    assert code == 0, said
    assert "!!python" not in (started / "config.yaml").read_text()
    assert not (tmp_path / "ran").exists()


FORGED = {
    "a target": ["selection._target_=os.system", "+selection.command='touch ran'"],
    "a target within a value": ["data.path={_target_:os.system,command:'touch ran'}"],
    "a target made of pieces": ["data.path='${oc.decode:\"{_tar${oc.decode:get}_: os.system, command: touch ran}\"}'"],
    "a choice made of pieces": ["selection='${oc.decode:\"{_tar${oc.decode:get}_: os.system, command: touch ran}\"}'"],
    "a callback": ["+hydra.callbacks.x._target_=os.system"],
    "a flag": ["--config-dir=elsewhere"],
    "a search path": ["hydra.searchpath=[file://elsewhere]"],
    "a launcher": ["hydra/launcher=elsewhere"],
    "a class of the package that writes": [
        "data={_target_:fedsim_userdp.data.writer.StoreWriter,folder:elsewhere,vocab_size:9}"
    ],
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_run_folder_runs_no_code(
    tmp_path: Path, started: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    content = json.loads((started / RUN_FILE).read_text())
    kept = [override for override in content["overrides"] if not override.startswith(("resume", "output_dir"))]
    content["overrides"] = [*kept, *FORGED[name]]
    (started / RUN_FILE).write_text(json.dumps(content))
    code, said = fedsim_run(capsys, f"resume={started}", "checkpoint.allow_changes=true")
    assert code == 2
    assert said.count("\n") == 1
    assert not (tmp_path / "elsewhere").exists()


JOURNAL = "not_private/checkpoints/user_wise-seed0/rounds.jsonl"
USED = [
    *("results.csv", "results.json", "config.yaml", RUN_FILE, "privacy.json", "comparison.png", "ledger", "adapters"),
    *("not_private", "not_private/checkpoints", "not_private/rounds.csv", "ledger/user_wise-seed0.jsonl", JOURNAL),
    "adapters/user_wise/adapter_model.safetensors",
]


def made_a_link(path: Path, target: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize("name", USED)
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_is_no_file_of_its_own_in_a_run_folder_is_refused_and_neither_followed_nor_waited_for(
    tmp_path: Path, started: Path, capsys: pytest.CaptureFixture[str], name: str, kind: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir() if (started / name).is_dir() else outside.write_text("precious")
    made_a_link(started / name, outside)
    if kind == "pipe":
        (started / name).unlink()
        os.mkfifo(started / name)
    for arguments in ([f"resume={started}"], [f"resume={started}", "checkpoint.allow_changes=true"]):
        code, said = fedsim_run(capsys, *arguments)
        assert (code, said.count("\n")) == (2, 1), said
        assert str(started / name) in said or name == RUN_FILE
    assert outside.is_dir() or outside.read_text() == "precious"


def test_links_beside_what_a_run_uses_are_left_alone(
    tmp_path: Path, started: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outside").write_text("precious")
    (started / "my own link").symlink_to(tmp_path / "outside")
    code, said = fedsim_run(capsys, f"resume={started}")
    assert code == 0, said
    assert (started / "my own link").is_symlink()


def test_a_text_takes_the_place_of_a_link_and_leaves_its_target(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    for name in ("a.txt", ".new.a.txt"):
        (tmp_path / name).symlink_to(tmp_path / "target")
    write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "target").read_text() == "precious"
    assert (tmp_path / "a.txt").read_text() == "new"
    assert not (tmp_path / "a.txt").is_symlink()


PATHS = [
    "with space",
    "with\nnewline",
    "\U0001f600",
    "ünïcode",
    "it's",
    'a"b',
    "a,b",
    "a=b",
    "back\\slash",
    "-x",
]


@pytest.mark.parametrize("name", PATHS)
def test_a_folder_of_any_name_reaches_the_settings_as_it_is(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    folder.mkdir()
    quoted = f"output_dir='{folder}'" if name == "a,b" else f"output_dir={folder}"  # else a sweep to Hydra
    (folder / RUN_FILE).write_text(json.dumps({"format": 1, "command": "run", "overrides": [quoted], "config": {}}))
    for argument in (quoted, quoted.replace("output_dir", "resume")):
        GlobalHydra.instance().clear()
        with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
            config = compose("run", overrides=complete_arguments("run", [argument]))
        assert config.output_dir == str(folder)


@pytest.mark.parametrize("name", ["n" * 10_000, "a\0b", "\udcff"])
def test_a_folder_name_that_cannot_be_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    for key in ("output_dir", "resume", "data.path", "model.path"):
        code, said = fedsim_run(capsys, "data=jsonl", f"{key}={tmp_path / name}")
        assert (code, said.count("\n")) == (2, 1)
        assert len(said) < 2000
        assert "Traceback" not in said
