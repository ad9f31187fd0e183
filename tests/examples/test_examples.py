"""Every file in `examples/` runs as its docstring says: through the command, and through Python."""

import ast
import json
import runpy
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from client_selector import EveryOtherUser
from corpus import FolderOfUsers
from fedsim_userdp import PoissonSelector, Study, UserWise, acc, compare, run
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.base import Mechanism
from fedsim_userdp.privacy.clipping import Clipping
from mechanism import ClipEachTensor
from metric import WorstTenth
from record_selection import MostVaried
from server_optimizer import SignDescent
from stated_selector import Oversampled
from tests.simulations.zygote import Zygote

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "examples").glob("*.py"))
WORDS = ["the", "house", "of", "people", "and", "government", "law", "year", "is", "great"]
SMALL = [
    "split.heldout_users=5", "tokens.min_words=0", "tokens.window=16", "tuned.rounds=2", "tuned.records_per_user=2",
    "evaluation.records_per_user=1", "threads=1", "model.device=cpu",
]  # fmt: skip
CLASSES = {
    "client_selector": "EveryOtherUser", "stated_selector": "Oversampled", "record_selection": "MostVaried",
    "corpus": "FolderOfUsers",
    "server_optimizer": "SignDescent", "mechanism": "ClipEachTensor", "metric": "WorstTenth",
}  # fmt: skip
PROGRAMS = {"accounting": "noise multiplier 1.2", "training_loop": "at epsilon 4.00"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the examples and with forty users' texts; it is the working folder, with a cache of its own."""
    for file in FILES:
        shutil.copy(file, tmp_path)
    write_texts(tmp_path / "texts")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path


def write_texts(folder: Path) -> None:
    generator = np.random.default_rng(0)
    folder.mkdir()
    for user in range(40):
        lines = [" ".join(generator.choice(WORDS, size=12)) for _ in range(4)]
        (folder / f"user {user}.txt").write_text("\n".join(lines))
    (folder / "nobody.txt").write_text("")
    regions = ["nobody,south", *(f"user {user},{'north' if user < 9 else 'south'}" for user in range(40))]
    (folder.parent / "users.csv").write_text("\n".join(["user_id,region", *regions]) + "\n")


def small_study(**parts: Any) -> Study:
    """A study of the forty users; parts by keyword, `text` for the corpus."""
    text = parts.pop("text", FolderOfUsers("texts"))
    small: dict[str, Any] = {"heldout_users": 5, "min_words": 0, "window": 16, "threads": 1}
    return Study.of(text, evaluation={"records_per_user": 1}, **small, **parts)


def commands_in(name: str) -> list[list[str]]:
    """The command lines in an example's docstring."""
    said = ast.get_docstring(ast.parse((ROOT / "examples" / f"{name}.py").read_text())) or ""
    return [shlex.split(line)[1:] for line in said.splitlines() if line.startswith("    fedsim ")]


def assumptions(folder: Path) -> str:
    return (folder / "PRIVACY.md").read_text()


def test_every_example_is_short_shown_and_run_here() -> None:
    assert {file.stem for file in FILES} == {*CLASSES, *PROGRAMS, "ten_selectors"}  # which has a test of its own
    page = (ROOT / "docs" / "extending.md").read_text()
    for file in FILES:
        assert len(file.read_text().splitlines()) <= (120 if file.stem == "ten_selectors" else 40), file
        assert f"examples/{file.name}" in page


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[pytest.mark.slow] * (name not in ("client_selector", "mechanism"))) for name in CLASSES],
)
def test_an_example_runs_through_the_command(name: str, folder: Path, processes: Zygote) -> None:
    cache = f"cache_dir={folder / 'cache'}"
    settings = [*SMALL, cache, *([] if name == "corpus" else ["data=jsonl", "data.path=texts.jsonl"])]
    (folder / "texts.jsonl").write_text(
        "".join(
            json.dumps({"user_id": one.user_id, "text": one.text}) + "\n" for one in FolderOfUsers("texts").records()
        )
    )
    assert commands_in(name)
    for number, (command, *given) in enumerate(commands_in(name)):
        chosen = [one.replace("FOLDER", "texts").replace("rounds:18", "rounds:2") for one in given]
        done = processes.run(command, *settings, *chosen, f"output_dir=run{number}", cwd=folder)
        assert done.returncode == 0, done.stderr
        assert f"{name}.{CLASSES[name]}, which is not part of this package" in assumptions(folder / f"run{number}")
        checked = processes.run("verify", f"run{number}", cwd=folder)
        assert checked.returncode == 0, checked.stdout
        if command == "compare":
            refused = processes.run("compare", f"resume=run{number}", cwd=folder)
            assert "code that does not belong to this program: give it again on the command line" in refused.stderr
            named = [one for one in chosen if one.startswith("compare.mechanisms")]
            assert processes.run("compare", f"resume=run{number}", *named, cwd=folder).returncode == 0


PARTS: dict[str, Callable[[], dict[str, object]]] = {
    "client_selector": lambda: {"selection": EveryOtherUser()},
    "stated_selector": lambda: {"selection": Oversampled("north"), "public": "users.csv"},
    "record_selection": lambda: {"records": MostVaried()},
    "corpus": lambda: {"text": FolderOfUsers("texts")},
    "server_optimizer": lambda: {"optimizer": SignDescent},
    "mechanism": dict,
    "metric": lambda: {"metrics": {"worst_tenth": WorstTenth()}},
}


@pytest.mark.parametrize("name", CLASSES)
def test_an_example_runs_in_python(name: str, folder: Path, processes: Zygote) -> None:
    mechanism: Mechanism = ClipEachTensor(rounds=2) if name == "mechanism" else UserWise(rounds=2)
    result = run(small_study(**PARTS[name]()), mechanism, folder / "run")
    assert result.rows[0].epsilon == pytest.approx(8.0, rel=0.01)
    assert f"{name}.{CLASSES[name]}, which is not part of this package" in assumptions(folder / "run")
    checked = processes.run("verify", "run", cwd=folder)
    assert checked.returncode == 0, checked.stdout


def test_all_of_them_together_in_a_comparison_in_python(folder: Path, processes: Zygote) -> None:
    study = small_study(selection=EveryOtherUser(), records=MostVaried(), optimizer=SignDescent)
    result = compare(study, [UserWise(rounds=2), ClipEachTensor(rounds=2)], folder / "run")
    usual, own = (result.statement(name) for name in ("user_wise", "clip_each_tensor"))
    assert own.foreign == (*usual.foreign, "mechanism.ClipEachTensor")
    assert own.epsilon == usual.epsilon
    weights = [
        torch.cat([p.flatten() for p in result.model(name).parameters()]) for name in (usual.mechanism, own.mechanism)
    ]
    assert not torch.equal(*weights)
    checked = processes.run("verify", "run", cwd=folder)
    assert checked.returncode == 0, checked.stdout


@dataclass(frozen=True, kw_only=True)
class Lies(UserWise):
    """Its clipping keeps to the bound for updates of one norm, those that it is tried out with."""

    name: str = "lies"
    at_once: bool = False

    def clipping(self) -> Clipping:
        return untouched if self.at_once else honest_when_it_is_tried_out


def untouched(update: Mapping[str, torch.Tensor], clip_norm: float) -> Mapping[str, torch.Tensor]:
    return update


def honest_when_it_is_tried_out(update: Mapping[str, torch.Tensor], clip_norm: float) -> Mapping[str, torch.Tensor]:
    first = next(iter(update.values())).flatten()
    is_made_up = bool((first == first[0]).all())
    return {name: tensor * 0 + (0.0 if is_made_up else clip_norm) for name, tensor in update.items()}


def test_a_clipping_that_does_not_keep_to_its_bound_stops_the_run_before_anything_is_released(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"untouched returned .* L2 norm is above clip_norm=0\.001"):
        run(small_study(), Lies(rounds=2, clip_norm=1e-3, at_once=True), folder / "refused")
    assert not [*folder.glob("refused/*")]
    with pytest.raises(ConfigError, match=r"honest_when_it_is_tried_out returned .* nothing of the round was released"):
        run(small_study(selection=PoissonSelector(0.9)), Lies(rounds=2), folder / "stopped")
    assert not (folder / "stopped" / "adapters").exists()


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_example_of_a_lower_face_runs(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(folder / f"{name}.py"), run_name="__main__")
    assert PROGRAMS[name] in capsys.readouterr().out


def test_the_training_loop_spends_what_was_planned_and_finds_the_mean(folder: Path) -> None:
    torch.manual_seed(0)
    train = runpy.run_path("training_loop.py")["train"]
    plan = acc.calibrate(acc.PoissonUsers(1.0, sampling_prob=0.2, rounds=20), epsilon=4.0, delta=1e-3)
    mean, spent = train(torch.randn(500, 3) * 0.1 + 0.5, plan, Path("means.jsonl"))
    assert spent <= 4.0
    assert torch.allclose(mean, torch.full((3,), 0.5), atol=0.2)
    assert len(Path("means.jsonl").read_text().splitlines()) == 20


@pytest.mark.slow
def test_nodes_in_other_processes_clip_as_the_mechanism_does(folder: Path, processes: Zygote) -> None:
    settings = [*SMALL, f"cache_dir={folder / 'cache'}", "data._target_=corpus.FolderOfUsers", "data.path=texts"]
    settings += ["mechanism._target_=mechanism.ClipEachTensor", "mechanism.name=own"]
    weights: list[dict[str, torch.Tensor]] = []
    for engine in (["engine=in_process"], ["engine=flower", "engine.num_nodes=2"]):
        done = processes.run("run", *settings, *engine, f"output_dir=run{len(weights)}", cwd=folder)
        assert done.returncode == 0, done.stderr
        weights.append(load_file(f"run{len(weights)}/adapters/own/adapter_model.safetensors"))
    here, there = weights
    assert any(tensor.any() for tensor in here.values())
    assert all(torch.allclose(tensor, there[name], atol=1e-5) for name, tensor in here.items())  # sums are rounded
