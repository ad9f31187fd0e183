"""A folder is one release of all that it holds, and what an object does is what its class says, from Python too."""

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fedsim_userdp import InMemoryCorpus, ModelSource, NonPrivate, Study, UserWise, ZeroShot, compare, run
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.errors import CheckpointError, ConfigError
from fedsim_userdp.federation.engines import InProcessEngine
from fedsim_userdp.mechanisms.own_folder import own_folder, run_below
from fedsim_userdp.mechanisms.sweep import sweep_above
from fedsim_userdp.privacy.clipping import Clipping
from fedsim_userdp.report.privacy_files import SweepFile, read_privacy
from fedsim_userdp.selection import PoissonSelector
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.training.metrics import BitsPerByte
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.zygote import Zygote

WORDS = "the house of the people and so it was said government by law a great year"
PAIRS = [(f"u{user}", f"{WORDS} {user}") for user in range(12)]
FAST: dict[str, Any] = {"heldout_users": 3, "min_words": 0, "window": 16, "threads": 1}


def small_study(text: object = None, **given: Any) -> Study:
    return Study.of(PAIRS if text is None else text, **{"model": ModelSource(device="cpu"), **FAST, **given})


def test_a_run_is_refused_in_a_folder_that_holds_one_further_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(small_study(), UserWise(rounds=1), tmp_path / "x" / "deep" / "sub")
    with pytest.raises(ConfigError, match=r"x holds a run further down, .*sub, which its own would not count"):
        run(small_study(seed=1), UserWise(rounds=1), tmp_path / "x")
    settings = small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=1)
    with pytest.raises(SystemExit):
        run_command("run", [*settings, f"output_dir={tmp_path / 'x'}"])
    assert "holds a run further down" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "x").iterdir()] == ["deep"]


def test_of_two_runs_that_begin_at_once_one_in_the_others_folder_neither_overlooks_the_other(tmp_path: Path) -> None:
    outer, inner = tmp_path / "x", tmp_path / "x" / "deep" / "sub"
    inner.mkdir(parents=True)
    for begun, other in ((outer, inner), (inner, outer)):
        with own_folder(begun), pytest.raises(ConfigError, match="lie one in the other"):  # nothing is written yet
            run(small_study(), UserWise(rounds=1), other)
        inner.mkdir(parents=True, exist_ok=True)


def test_a_sweep_is_refused_around_a_run_that_has_just_begun(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x" / "sub").mkdir(parents=True)
    settings = small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=1)
    with own_folder(tmp_path / "x" / "sub"), pytest.raises(SystemExit):
        run_command("run", ["--multirun", *settings, "seed=0,1", f"output_dir={tmp_path / 'x'}"])
    assert "where a run has just begun, lie one in the other" in capsys.readouterr().err


def test_a_run_lies_no_deeper_below_a_sweep_than_its_jobs_are_looked_for(tmp_path: Path) -> None:
    (tmp_path / "multirun.yaml").touch()
    deep = tmp_path.joinpath(*"abcdefghijklmnopq")
    with pytest.raises(ConfigError, match="lies more than 16 folders below the sweep"):
        run(small_study(), UserWise(rounds=1), deep)
    assert sweep_above(deep.parent) == tmp_path


def test_a_run_far_below_is_found(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*"abcdefghijklmnopqrst")
    deep.mkdir(parents=True)
    (deep / "run.json").touch()
    assert run_below(tmp_path) == deep


def test_a_link_that_leads_back_up_ends_the_search_for_runs_below(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "x" / name).mkdir(parents=True)
        (tmp_path / "x" / name / "up").symlink_to(tmp_path / "x" / name)
    assert run_below(tmp_path / "x") is None


def test_a_run_put_below_another_is_noticed_when_that_is_verified(tmp_path: Path, processes: Zygote) -> None:
    write_jsonl(tmp_path / "corpus.jsonl")
    study = small_study(str(tmp_path / "corpus.jsonl"))
    run(study, UserWise(rounds=1), tmp_path / "x")
    run(study, UserWise(rounds=1), tmp_path / "elsewhere")
    assert processes.run("verify", str(tmp_path / "x")).returncode == 0
    (tmp_path / "elsewhere").rename(tmp_path / "x" / "sub")
    checked = processes.run("verify", str(tmp_path / "x"))
    assert checked.returncode == 1
    assert "no statement covers sub" in checked.stdout


def test_a_run_made_in_python_in_a_sweeps_folder_is_counted_there(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl")
    settings = [*small_settings(corpus, tmp_path / "cache", rounds=1), "seed=0,1", f"output_dir={tmp_path / 'sweep'}"]
    assert run_command("run", ["--multirun", *settings]) == 0
    before = read_privacy(tmp_path / "sweep")
    run(small_study(str(corpus), seed=2), UserWise(rounds=1), tmp_path / "sweep" / "2")
    after = read_privacy(tmp_path / "sweep")
    assert isinstance(before, SweepFile)
    assert isinstance(after, SweepFile)
    assert [*before.jobs] == ["0", "1"]
    assert [*after.jobs] == ["0", "1", "2"]
    assert "`../PRIVACY.md`" in (tmp_path / "sweep" / "2" / "PRIVACY.md").read_text()


def test_a_run_made_in_python_through_a_link_is_counted_or_refused_where_the_link_lies(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl")
    settings = [*small_settings(corpus, tmp_path / "cache", rounds=1), "seed=0,1", f"output_dir={tmp_path / 'sweep'}"]
    assert run_command("run", ["--multirun", *settings]) == 0
    for name, place in (("sweep", tmp_path / "sweep"), ("run", tmp_path / "sweep" / "0")):
        (tmp_path / f"outside-{name}").mkdir()
        (place / "linked").symlink_to(tmp_path / f"outside-{name}")
    run(small_study(str(corpus), seed=2), UserWise(rounds=1), tmp_path / "sweep" / "linked")
    after = read_privacy(tmp_path / "sweep")
    assert isinstance(after, SweepFile)
    assert [*after.jobs] == ["0", "1", "linked"]
    with pytest.raises(ConfigError, match="which holds a run that would not count it"):
        run(small_study(str(corpus), seed=3), UserWise(rounds=1), tmp_path / "sweep" / "0" / "linked")


def everything(*given: object, **named: object) -> object:
    return list(given)


@pytest.mark.parametrize(
    ("setting", "value", "method"),
    [
        ("records", RandomRecords(fresh=False), "select"),
        ("engine", InProcessEngine(), "run"),
        ("model", ModelSource(device="cpu"), "load"),
        ("text", InMemoryCorpus(PAIRS), "records"),
        ("metrics", BitsPerByte(), "score"),
    ],
)
def test_an_object_of_this_package_with_a_method_of_ones_own_is_refused(
    setting: str, value: object, method: str
) -> None:
    object.__setattr__(value, method, everything)
    given = {setting: {"m": value} if setting == "metrics" else value}
    with pytest.raises(
        ConfigError, match=f"{method} was replaced on the object, which no statement would name|must be"
    ):
        small_study(**given)


def test_a_mechanism_of_this_package_with_a_method_of_ones_own_is_refused(tmp_path: Path) -> None:
    changed = UserWise(rounds=1)
    object.__setattr__(changed, "clipping", lambda: everything)
    with pytest.raises(ConfigError, match="clipping was replaced on the object"):
        run(small_study(), changed, tmp_path / "x")
    assert list((tmp_path / "x").glob("*")) == []


@dataclass(frozen=True, kw_only=True)
class Renamed(NonPrivate):
    """Trains without noise, under the name of the untrained model."""

    name: str = "zero_shot"


@dataclass(frozen=True)
class Tuned(ZeroShot):
    """May train: it is not the untrained model, whatever it says."""

    def run(self, run: Any, progress: Any) -> Any:
        outcome = super().run(run, progress)
        return replace(outcome, statement=replace(outcome.statement, foreign=()))


def test_a_class_of_ones_own_is_not_stated_as_the_untrained_model_and_cannot_hide_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zero_shot is that of the untrained model"):
        run(small_study(), Tuned(), tmp_path / "x")
    result = run(small_study(), Tuned(name="tuned"), tmp_path / "x")
    (stated,) = json.loads((result.folder / "privacy.json").read_text())["runs"]
    assert result.rows[0].guarantee == "none: trained without privacy"
    assert stated["foreign"] == [f"{Tuned.__module__}.Tuned"]
    assert "Without noise: tuned, seed 0" in (result.folder / "PRIVACY.md").read_text()


@dataclass(frozen=True)
class Disguised(ZeroShot):
    """Gives its outcome another name."""

    def run(self, run: Any, progress: Any) -> Any:
        outcome = super().run(run, progress)
        return replace(outcome, statement=replace(outcome.statement, mechanism="zero_shot"))


def test_an_outcome_has_the_name_of_its_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Disguised: run\(\) returned an outcome of zero_shot, seed 0, for other"):
        run(small_study(), Disguised(name="other"), tmp_path / "x")


def test_no_other_mechanism_is_called_as_the_untrained_model_or_as_a_folder_of_another_seed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="zero_shot is that of the untrained model"):
        run(small_study(), Renamed(rounds=1), tmp_path / "x")
    with pytest.raises(ConfigError, match="must not end in -seed and a number"):
        UserWise(name="user_wise-seed1")


def too_large(update: Any, clip_norm: float) -> Any:
    return {name: tensor * 0 + 1e6 for name, tensor in update.items()}


@dataclass(frozen=True, kw_only=True)
class TooLarge(UserWise):
    """Its clipping bounds nothing."""

    name: str = "too_large"

    def clipping(self) -> Clipping:
        return too_large


def test_a_clipping_is_tried_out_before_any_mechanism_trains(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too_large returned a user's update whose L2 norm is above"):
        compare(small_study(), [UserWise(rounds=1), TooLarge(rounds=1)], tmp_path / "x")
    assert list((tmp_path / "x").glob("*")) == []


class Stops(UserWise):
    """Stops where another mechanism had begun."""

    def run(self, run: Any, progress: Any) -> Any:
        raise KeyboardInterrupt


def test_a_mechanism_that_had_not_begun_may_go_on_otherwise_and_the_folder_says_so(tmp_path: Path) -> None:
    study = small_study()
    later = UserWise(rounds=1, name="later", clip_norm=0.3)
    object.__setattr__(later, "__class__", Stops)
    with pytest.raises(KeyboardInterrupt):
        compare(study, [UserWise(rounds=1), later], tmp_path / "x")
    other = Stops(rounds=2, name="later", clip_norm=0.5)
    with pytest.raises(KeyboardInterrupt):
        compare(study, [UserWise(rounds=1), other], tmp_path / "x", resume=True)
    (_, written) = json.loads((tmp_path / "x" / "run.json").read_text())["config"]["compare"]["mechanisms"]
    assert (written["rounds"], written["clip_norm"]) == (2, 0.5)


def test_what_changed_in_a_mechanism_is_named_where_a_run_goes_on(tmp_path: Path) -> None:
    run(small_study(), UserWise(rounds=1), tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"user_wise: clip_norm was 0\.3 and is 0\.7"):
        run(small_study(), UserWise(rounds=1, clip_norm=0.7), tmp_path / "x", resume=True)


def test_a_run_that_has_ended_is_not_stated_anew_under_changed_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl")
    settings = [*small_settings(corpus, tmp_path / "cache", rounds=1), f"output_dir={tmp_path / 'x'}"]
    assert run_command("run", settings) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir() if path.is_file()}
    for change in ("mechanism.clip_norm=3", "tuned.searched=null", "evaluation.records_per_user=2"):
        with pytest.raises(SystemExit):
            run_command("run", [f"resume={tmp_path / 'x'}", change, "checkpoint.allow_changes=true"])
        assert "user_wise, seed 0, has ended: nothing is left to go on with" in capsys.readouterr().err
    assert before == {path.name: path.read_bytes() for path in (tmp_path / "x").iterdir() if path.is_file()}


@pytest.mark.parametrize("mechanism", [UserWise(rounds=1), NonPrivate(rounds=1)])
def test_in_python_neither(mechanism: Any, tmp_path: Path) -> None:
    study = small_study(checkpoint={"allow_changes": True})
    run(study, mechanism, tmp_path / "x")
    with pytest.raises(ConfigError, match="has ended: nothing is left to go on with"):
        run(study, replace(mechanism, learning_rate=0.5), tmp_path / "x", resume=True)


def test_other_metrics_alone_are_no_change_of_a_run_that_has_ended(tmp_path: Path) -> None:
    run(small_study(), UserWise(rounds=1), tmp_path / "x")
    study = small_study(metrics={"bits": BitsPerByte()})
    (outcome,) = run(study, UserWise(rounds=1), tmp_path / "x", resume=True).outcomes
    assert outcome.row.metrics.keys() == {"bits"}


def test_cards_name_what_was_used_and_not_what_is_default(tmp_path: Path) -> None:
    result = run(small_study(), UserWise(rounds=1), tmp_path / "x")
    card = (result.folder / "adapters" / "user_wise" / "README.md").read_text()
    assert "InMemoryCorpus" in card
    assert "chitchat" not in card


@pytest.mark.parametrize("resume", ["yes", 1, None])
def test_resume_is_true_or_false(resume: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"resume=.* must be True or False"):
        run(small_study(), UserWise(rounds=1), tmp_path / "x", resume=resume)


def test_the_optimizers_learning_rate_is_the_mechanisms() -> None:
    with pytest.raises(ConfigError, match=r"optimizer\.lr has no effect"):
        small_study(optimizer=partial(torch.optim.Adam, lr=3.0))


@pytest.mark.parametrize(
    ("group", "made", "change", "said"),
    [
        (
            "selection",
            lambda: PoissonSelector(0.5),
            lambda one: object.__setattr__(one, "sampling_prob", 0.25),
            "sampling_prob",
        ),
        ("records", RandomRecords, lambda one: object.__setattr__(one, "fresh", False), "fresh"),
        ("optimizer", lambda: partial(torch.optim.SGD), lambda one: one.keywords.update(momentum=0.5), "momentum"),
        ("model", lambda: ModelSource(device="cpu"), lambda one: object.__setattr__(one, "dtype", "bfloat16"), "dtype"),
    ],
)
def test_an_object_that_is_changed_after_the_study_was_made_is_refused(
    group: str, made: Any, change: Any, said: str, tmp_path: Path
) -> None:
    given = made()
    study = small_study(**{group: given})
    change(given)
    with pytest.raises(ConfigError, match=f"{group}.{said} was .* when the study was made .* make the study anew"):
        run(study, UserWise(rounds=1), tmp_path / "x")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("engine", InProcessEngine()),
        ("selector", PoissonSelector(0.5)),
        ("records", RandomRecords(fresh=False)),
        ("optimizer_fn", partial(torch.optim.SGD)),
        ("model", ModelSource(device="cpu")),
        ("metrics", {"bits": BitsPerByte()}),
        ("seed", 1),
        ("noise_source", "os"),
    ],
)
def test_what_is_put_in_anothers_place_after_the_study_was_made_is_refused(
    field: str, value: Any, tmp_path: Path
) -> None:
    study = small_study()
    with pytest.raises(ConfigError, match=r"study was changed after Study\.of"):
        run(replace(study, **{field: value}), UserWise(rounds=1), tmp_path / "x")
    object.__setattr__(study, field, value)
    with pytest.raises(ConfigError, match=rf"study\.{field} was changed after Study.of"):
        run(study, UserWise(rounds=1), tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_metrics_are_those_that_the_study_was_made_with(tmp_path: Path) -> None:
    given = BitsPerByte()
    study = small_study(metrics={"bits": given})
    study.metrics["more"] = BitsPerByte()  # type: ignore[index]
    with pytest.raises(ConfigError, match=r"study\.metrics was changed"):
        run(study, UserWise(rounds=1), tmp_path / "x")
    study = small_study(metrics={"bits": given})
    object.__setattr__(given, "score", everything)
    with pytest.raises(ConfigError, match="score was replaced on the object"):
        run(study, UserWise(rounds=1), tmp_path / "x")


@pytest.mark.parametrize(
    ("group", "value", "method"),
    [
        ("selection", PoissonSelector(0.5), "probability"),
        ("records", RandomRecords(), "select"),
        ("engine", InProcessEngine(), "run"),
        ("model", ModelSource(device="cpu"), "load"),
    ],
)
def test_a_method_set_on_an_object_after_the_study_was_made_is_refused(
    group: str, value: object, method: str, tmp_path: Path
) -> None:
    study = small_study(**{group: value})
    object.__setattr__(value, method, everything)
    with pytest.raises(ConfigError, match="was replaced on the object"):
        run(study, UserWise(rounds=1), tmp_path / "x")
