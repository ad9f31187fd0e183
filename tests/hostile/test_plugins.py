"""A class of the user's own that fails or answers nonsense ends in one sentence, before anything is written."""

import importlib
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.signals import stopping_in_order
from fedsim_userdp.simulations.streams import watched_streams
from fedsim_userdp.simulations.verify import folder_checks
from fedsim_userdp.training.checkpoints import Checkpoint, CheckpointFolder
from tests.hostile.test_code import fedsim_run
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.small_runs import Killed, what_a_run_left

PLUGINS = """
import math, sys
import numpy as np
import torch
from fedsim_userdp.privacy import accounting as acc

SECRET = "government people"

def exits(): sys.exit(0)
def interrupts(): raise KeyboardInterrupt
def is_stopped(): import signal; signal.raise_signal(signal.SIGINT)
def fails(): raise KeyError(SECRET)

class Selector:
    def __init__(self, size="3.0", chosen="np.arange(3)", late=0):
        self.size, self.chosen, self.late = size, chosen, late
        if late == "made": eval(chosen)
    def expected_cohort_size(self, num_users):
        return eval(self.size)
    def release(self, noise_multiplier, num_users, rounds):
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=rounds)
    def select(self, num_users, round, generator):
        return eval(self.chosen) if round > self.late else np.arange(3)

class Undeclared(Selector):
    def __init__(self, prob):
        super().__init__()
        self.prob = prob
    @property
    def sampling_prob(self): return eval(self.prob)

class Declared(Undeclared):
    def expected_cohort_size(self, num_users): return 0.4 * num_users
    def release(self, noise_multiplier, num_users, rounds): return acc.PoissonUsers(noise_multiplier, 0.4, rounds)
    def select(self, num_users, round, generator): return np.flatnonzero(generator.random(num_users) < 0.4)

class Sampled:
    def __init__(self, seed): self.seed = seed
    def expected_cohort_size(self, num_users):
        return 0.4 * num_users
    def release(self, noise_multiplier, num_users, rounds):
        return acc.PoissonUsers(noise_multiplier, 0.4, rounds)
    def select(self, num_users, round, generator):
        return np.flatnonzero(np.random.default_rng(eval(self.seed)).random(num_users) < 0.4)

class Records:
    fresh = True
    def __init__(self, chosen): self.chosen = chosen
    def select(self, records, k, generator): return eval(self.chosen)

class Fresh(Records):
    def __init__(self, given, chosen="records[:k]"): self.given, self.chosen = given, chosen
    @property
    def fresh(self): return eval(self.given)

SEEN = set()
class EachTextOnce:
    fresh = False
    def select(self, records, k, generator):
        new = [r for r in records if r.tobytes() not in SEEN][:k]
        SEEN.update(r.tobytes() for r in new)
        return new

class Locked(EachTextOnce):
    def __init__(self):
        import threading
        self.lock = threading.Lock()

class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr, fails_in): super().__init__(params, lr); self.left = fails_in
    def step(self, closure=None):
        self.left -= 1
        if not self.left: raise ZeroDivisionError(SECRET)

class WritesNan(torch.optim.SGD):
    def __init__(self, params, lr, nan_in): super().__init__(params, lr); self.left = nan_in
    def step(self, closure=None):
        self.left -= 1
        for p in self.param_groups[0]["params"] if self.left <= 0 else []: p.data.fill_(math.nan)

class Corpus:
    name = license = source = "mine"
    def __init__(self, record, print_="'mine'"):
        from fedsim_userdp.data.corpus import DropCounts
        self.record, self.print_, self.dropped = record, print_, DropCounts()
    def fingerprint(self): return eval(self.print_)
    def records(self):
        from fedsim_userdp.data.corpus import Record
        for i in range(14):
            yield eval(self.record)
"""

MADE = """
class Scratch:
    name = "scratch"
    def __init__(self): pass
    def guarantee(self, study): fails()
    def run(self, run, progress): fails()

class Renamed(Scratch):
    def __init__(self, name): pass

class Named(Scratch):
    def __init__(self, name="named"): self.name = name

class Raises:
    def __init__(self, params=None, lr=None, name=None): raise ValueError("boom init " + "x" * 400)
"""

SIZES = {
    "0": "expects cohorts of 0 users", "-3": "cohorts of -3 users", "math.nan": "cohorts of nan users",
    "math.inf": "cohorts of inf users", "3j": "cohorts of 3j users", "'3'": "cohorts of a str users",
    "True": "cohorts of True users", "None": "cohorts of None users", "fails()": "raised KeyError: 'government people'",
    "exits()": "expected_cohort_size() raised SystemExit: 0", "10**400": "a number above 0", "10**5000": "above 0",
    "[3]": "cohorts of a list users", "np.ones(1)": "an array of float64 of shape (1,)",
}  # fmt: skip
CHOICES = {
    "np.array([0.5, 1])": "an array of float64 of shape (2,)", "[True, False]": "but a list", "['1']": "but a list",
    "math.inf": "but inf", "None": "but None", "{1, 2}": "but a set", "[2**70]": "in round 1",
    "2**70": "but 1180591620717411303424", "10**5000": "a number of 16610 bits",
    "10**400": "chose no list of user numbers", "fails()": "raised KeyError",
    "exits()": "select() raised SystemExit: 0", "np.array([2**63], np.uint64)": "a user outside",
    "[[1], [2, 3]]": "but a list", "[-1]": "a user outside", "[1, 1]": "a user twice",
    "np.ma.array([1, 2], mask=[0, 1])": "an array with a mask", "np.ma.masked_all(2, int)": "an array with a mask",
    "np.ones(12, bool)": "an array of bool", "(i for i in range(3))": "but a generator",
}  # fmt: skip
RECORDS = {
    "None": "must return a list of numpy arrays, got NoneType", "[records[0] * 1.0]": "no list of token ids",
    "['the house']": "must return a list of numpy arrays", "[records[0] + 1]": "one that is not the user's",
    "[-records[0]]": "one that is not the user's", "[records[0], records[0]]": "more often than the user has it",
    "fails()": "select() raised KeyError: 'government people'", "exits()": "select() raised SystemExit: 0",
    "records[0]": "must return a list of numpy arrays, got ndarray",
}  # fmt: skip


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Settings of a small run, in a folder with the module of the plug-ins."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    module = f"plugins_of_{abs(hash(tmp_path))}"
    (tmp_path / f"{module}.py").write_text(PLUGINS)
    return [*small_settings(write_jsonl(tmp_path / "c.jsonl"), tmp_path / "cache", rounds=3), f"+module={module}"]


def named(settings: list[str], group: str, kind: str, **values: object) -> list[str]:
    """The settings with a class of the module."""
    *kept, module = settings
    texts = {key: str(value) if isinstance(value, int) else f'"{value}"' for key, value in values.items()}
    given = [f"+{group}.{key}={text}" for key, text in texts.items()]
    left_out = {"selection": ["~selection.sampling_prob"], "records": ["~records.fresh"]}.get(group, [])
    if left_out and group == "selection":
        kept = [one for one in kept if not one.startswith("selection.")]
    return [*kept, f"{group}._target_={module.partition('=')[2]}.{kind}", *left_out, *given, "output_dir=run"]


def refused_unwritten(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    code, heard = fedsim_run(capsys, *arguments)
    assert (code, heard.count("\n")) == (2, 1), heard
    assert said in heard
    assert not os.path.lexists("run")


@pytest.mark.parametrize("size", SIZES)
def test_a_denominator_that_is_none_is_refused_unwritten(
    size: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, named(settings, "selection", "Selector", size=size), SIZES[size])


@pytest.mark.parametrize("chosen", CHOICES)
def test_a_cohort_that_is_none_is_refused_unwritten(
    chosen: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, named(settings, "selection", "Selector", chosen=chosen), CHOICES[chosen])


def test_cohorts_that_follow_from_the_round_are_refused_unwritten(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*named(settings, "selection", "Sampled", seed="round"), "noise.source=os", "mechanism.rounds=8"]
    refused_unwritten(capsys, arguments, "chose the same users under two unrelated keys in rounds 1 to")


@pytest.mark.parametrize("chosen", RECORDS)
def test_a_choice_of_records_that_is_none_is_refused_unwritten(
    chosen: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, named(settings, "records", "Records", chosen=chosen), RECORDS[chosen])


FRESH = {
    "fails()": "Fresh: fresh raised KeyError: 'government people'", "exits()": "Fresh: fresh raised SystemExit: 0",
    "'yes'": "Fresh: fresh must be True or False, got a value of class str", "None": "of class NoneType",
    "np.ones(2)": "of class ndarray", "1": "of class int",
}  # fmt: skip


@pytest.mark.parametrize("given", FRESH)
def test_a_choice_of_records_that_does_not_say_whether_it_is_fresh_is_refused_unwritten(
    given: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, named(settings, "records", "Fresh", given=given), FRESH[given])


@pytest.mark.parametrize(("what", "said"), [("exits()", "SystemExit: 0"), ("interrupts()", "KeyboardInterrupt")])
@pytest.mark.parametrize("where", ["imported", "made", "called"])
def test_what_would_end_the_command_names_the_class_that_raised_it(
    where: str, what: str, said: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given = named(settings, "selection", "Selector", chosen=what, late="made" if where == "made" else 0)
    if where == "imported":
        module = Path(settings[-1].partition("=")[2] + ".py")
        module.write_text(f"{PLUGINS}\n{what}\n")
    with stopping_in_order():
        refused_unwritten(capsys, given, f"raised {said}")
        refused_unwritten(capsys, given, ".Selector: ")


def test_ctrl_c_within_a_class_of_ones_own_stops_the_command(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background of a shell
    try:
        with stopping_in_order():
            code, said = fedsim_run(capsys, *named(settings, "selection", "Selector", chosen="is_stopped()"))
    finally:
        signal.signal(signal.SIGINT, before)
    assert code == 130
    assert said == "fedsim: stopped; a run that had begun goes on with resume=PATH\n"


def test_a_class_that_prints_to_a_reader_that_is_gone_ends_the_command_in_silence(
    settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    GlobalHydra.instance().clear()
    with os.fdopen(writer, "w", buffering=1) as unread, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", unread)
        with pytest.raises(SystemExit) as stop, watched_streams():
            run_command("run", named(settings, "selection", "Selector", chosen="print('x') or np.arange(3)"))
    assert stop.value.code == 141
    assert capsys.readouterr().err == ""
    assert not os.path.lexists("run")


@pytest.mark.parametrize(("closed", "code"), [("sys.stdout", 0), ("sys.__stdout__", 2), ("sys.stderr", 0)])
def test_a_class_that_closes_a_stream_of_the_command_is_no_traceback(
    closed: str, code: int, settings: list[str], capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    GlobalHydra.instance().clear()
    with os.fdopen(os.dup(1), "w", buffering=1) as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        patch.setattr(sys, "__stdout__", stream)
        arguments = named(settings, "selection", "Selector", chosen=f"{closed}.close() or np.arange(3)")
        with pytest.raises(SystemExit) as stop, watched_streams():
            sys.exit(run_command("run", arguments))
    assert stop.value.code == code
    assert capfd.readouterr().err == ("" if not code else "fedsim: standard output: was closed\n")


@pytest.mark.parametrize("group", ["selection", "records", "data", "optimizer", "mechanism", "engine", "metrics.mine"])
def test_what_a_class_raises_when_it_is_made_is_said_with_group_and_class(
    group: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module = settings[-1].partition("=")[2]
    Path(f"{module}.py").write_text(PLUGINS + MADE)
    kept = [one for one in settings[:-1] if not one.startswith((f"{group}=", f"{group}."))]
    left_out = {
        "selection": ["sampling_prob"], "records": ["fresh"], "engine": ["num_nodes"],
        "mechanism": _OF_USER_WISE[1:],
    }.get(group, [])  # fmt: skip
    taken_out = [f"~{group}.{name}" for name in left_out]
    added = "+" if group.startswith("metrics") else ""
    given = [*kept, f"{added}{group}._target_={module}.Raises", *taken_out, "output_dir=run"]
    how = "" if group == "optimizer" else "._target_"  # which the command makes at the first step
    refused_unwritten(
        capsys, given, f"{group}{how}={module}.Raises: making it raised ValueError: boom init {'x' * 290}; mend it"
    )


_OF_USER_WISE = ("name", "rounds", "records_per_user", "clip_norm", "learning_rate", "learning_rate_decays")
NAMES = {
    ("Scratch", ""): ".Scratch takes no name, by which tables, files and folders call it: write def __init__(self",
    ("Scratch", "mechanism.name=mine"): ".Scratch takes no name",
    ("Renamed", "mechanism.name=mine"): ".Renamed calls itself 'scratch' and mechanism.name is 'mine'",
    ("Named", ""): ".Named is left without a name: write mechanism.name=NAME",
    ("Named", "mechanism.name=mine"): "KeyError: 'government people'",
}  # fmt: skip


@pytest.mark.parametrize("named", NAMES)
def test_a_mechanism_from_scratch_that_does_not_take_its_name_is_told_what_to_write(
    named: tuple[str, str], settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, (kind, given) = settings[-1].partition("=")[2], named
    Path(f"{module}.py").write_text(PLUGINS + MADE)
    taken_out = [f"~mechanism.{name}" for name in _OF_USER_WISE if not given or name != "name"]
    arguments = [*settings[:-1], f"mechanism._target_={module}.{kind}", *taken_out, *[given][: bool(given)]]
    refused_unwritten(capsys, [*arguments, "output_dir=run"], NAMES[named])


@pytest.mark.parametrize(("kind", "said"), [("Scratch", ".Scratch takes no name"), ("Named", "KeyError: 'government")])
def test_an_entry_of_a_comparison_that_does_not_take_its_name_is_told_what_to_write(
    kind: str, said: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module = settings[-1].partition("=")[2]
    Path(f"{module}.py").write_text(PLUGINS + MADE)
    GlobalHydra.instance().clear()
    entries = f"compare.mechanisms=[{{_target_: {module}.{kind}}}]"
    with pytest.raises(SystemExit) as stop:
        run_command("compare", [*settings[:-1], entries, "output_dir=run"])
    heard = capsys.readouterr().err
    assert (stop.value.code, heard.count("\n")) == (2, 1), heard
    assert said in heard
    assert not os.path.lexists("run")


@pytest.mark.parametrize(
    ("content", "target", "said"),
    [
        ("class S: pass", "{}", "selection._target_={0} is a module: name a class in it, as {0}.CLASS"),
        ("class S(:", "{}.S", "selection._target_={0}.S: importing it raised SyntaxError: invalid syntax in "),
        ("1 / 0", "{}.S", "selection._target_={0}.S: importing it raised ZeroDivisionError: division by zero"),
    ],
)
def test_what_is_no_class_is_refused_by_its_setting(
    content: str, target: str, said: str, settings: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    module = f"broken_{abs(hash((tmp_path, content)))}"
    Path(f"{module}.py").write_text(content)
    given = [*settings[:-1], f"selection._target_={target.format(module)}", "output_dir=run"]
    refused_unwritten(capsys, given, said.format(module))


ENGINES = """
class Engine:
    def __init__(self, num_nodes=None): pass
class Half(Engine):
    deals_by_size = run = 3
    def num_nodes_for(self, num_users): return 1
"""


@pytest.mark.parametrize(("kind", "lacks"), [("Engine", "num_nodes_for"), ("Half", "deals_by_size")])
def test_an_engine_that_is_none_is_refused_by_what_it_lacks(
    kind: str, lacks: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module = settings[-1].partition("=")[2]
    Path(f"{module}.py").write_text(PLUGINS + ENGINES)
    said = f"engine={module}.{kind} has no {lacks}: see fedsim_userdp.federation.engines.Engine"
    refused_unwritten(capsys, named(settings, "engine", kind), said)


TRAPS = """
class Meta(type):
    def __getattr__(cls, name): raise RuntimeError("meta " + name)
class Trap(Selector, metaclass=Meta): pass
"""


@pytest.mark.parametrize("group", ["selection", "records", "data", "optimizer", "mechanism", "engine", "metrics.mine"])
def test_a_class_that_cannot_be_looked_at_is_refused_by_its_setting(
    group: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module = settings[-1].partition("=")[2]
    Path(f"{module}.py").write_text(PLUGINS + TRAPS)
    added = "+" if group.startswith("metrics") else ""
    given = [*settings[:-1], f"{added}{group}._target_={module}.Trap", "output_dir=run"]
    refused_unwritten(capsys, given, f"{group}._target_={module}.Trap: looking at it raised RuntimeError: meta __")


TARGETS = {
    "5": "5 must be the name of a class, such as package.module.CLASS",
    "[a]": "must be the name of a class",
    "..a.B": "..a.B must be the name of a class",
    "nowhere.A": "nowhere.A: there is no module nowhere",
    "fedsim_userdp.selection.PoisonSelector": "did you mean fedsim_userdp.selection.PoissonSelector?",
    "broken.MADE": "broken.MADE is an object of Selector and no class: name its class",
    "needs.A": "needs.A: importing it raised ModuleNotFoundError: No module named 'not_installed', at an import of its",
    "beside.A": "beside.A: importing it raised ImportError: attempted relative import",
    "nul.A": "nul.A: importing it raised SyntaxError: source code string cannot contain null bytes",
    "os.system": "selection._target_=os.system runs code or commands, and is no class for this setting",
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_that_is_none_is_said_by_what_is_wrong_with_it(
    target: str, settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        "broken": f"{PLUGINS}\nMADE = Selector()", "needs": "import not_installed", "beside": "from . import x",
        "nul": "class A: pass\n\0",
    }  # fmt: skip
    for name, content in files.items():
        Path(f"{name}.py").write_text(content)
        monkeypatch.delitem(sys.modules, name, raising=False)
    importlib.invalidate_caches()
    monkeypatch.syspath_prepend(Path.cwd())
    kept = [one for one in settings[:-1] if not one.startswith("selection.")]
    given = [f"selection._target_={target}", "~selection.sampling_prob", "output_dir=run"]
    refused_unwritten(capsys, [*kept, *given], TARGETS[target])


SAID = {
    "optimizer._target_=torch.optim.LBFGS": "LBFGS asks for the loss again within a step, which would be a release",
    "optimizer._target_=torch.optim.SparseAdam": "SparseAdam takes sparse gradients, and a mean with noise is none",
    "hydra.output_subdir=abc": "hydra.output_subdir=abc: files of Hydra's own are no part of a run's folder",
    "seed=glob(*)": "seed=glob(*) has several values: --multirun runs each of them",
    "model.path=''": "model.path= names no model",
}


@pytest.mark.parametrize("given", SAID)
def test_what_cannot_be_used_is_said_by_its_setting(
    given: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, [*settings[:-1], given, "output_dir=run"], SAID[given])


@pytest.mark.parametrize(("changes", "said"), [("lora.rank=2", "lora: adapter does"), ("optimizer=sgd", "optimizer: ")])
def test_a_checkpoint_that_does_not_fit_names_the_section_that_changed(
    changes: str, said: str, settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_in_round(2, [*settings[:-1], "output_dir=run"], monkeypatch)
    code, heard = fedsim_run(capsys, "resume=run", changes, "checkpoint.allow_changes=true")
    assert code == 2
    assert heard.splitlines()[-1].startswith(f"fedsim: {said}"), heard
    assert heard.endswith(": go back to the settings that the run was started with\n")


def test_a_file_of_a_run_is_not_gone_on_with_and_its_folder_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.json").write_text("{}")
    code, said = fedsim_run(capsys, f"resume={tmp_path}/run.json")
    assert (code, said) == (
        2,
        f"fedsim: resume={tmp_path}/run.json is a file of a run: give the folder, resume={tmp_path}\n",
    )


def test_of_several_exceptions_in_one_the_first_is_said(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = "(_ for _ in ()).throw(ExceptionGroup('all', [ExceptionGroup('some', [ValueError('first')])]))"
    refused_unwritten(
        capsys, named(settings, "selection", "Selector", chosen=chosen), "raised ValueError: first in round"
    )


def test_an_optimizer_that_writes_what_is_not_finite_is_named(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, named(settings, "optimizer", "WritesNan", nan_in=1), "step() wrote numbers that are not")
    code, said = fedsim_run(capsys, *named(settings, "optimizer", "WritesNan", nan_in=3))
    assert code == 3
    assert f"with optimizer={settings[-1].partition('=')[2]}.WritesNan" in said


@pytest.mark.parametrize(
    ("group", "kind", "given"),
    [
        ("selection", "Selector", {"chosen": "fails()"}),
        ("records", "Records", {"chosen": "fails()"}),
        ("optimizer", "Optimizer", {"fails_in": 1}),
        ("data", "Corpus", {"record": "fails()"}),
    ],
)
def test_an_audit_tries_classes_of_ones_own_before_it_starts(
    group: str, kind: str, given: dict[str, object], settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    canaries = [f"audit.canaries.{one}=4" for one in ("direction", "oversized", "many_records")]
    kept = [one for one in settings if group != "data" or not one.startswith(("data=", "data.path="))]
    arguments = [*named(kept, group, kind, **given), *canaries, "audit.real_users=8", "audit.candidates=64"]
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        run_command("audit", [one for one in arguments if not one.startswith(("evaluation.every", "checkpoint."))])
    said = capsys.readouterr()
    assert stop.value.code == 2
    assert f".{kind}: " in said.err
    assert "training" not in said.out
    assert not os.path.lexists("run")


def test_one_users_failure_is_said_and_its_reason_is_in_no_file(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with Path("c.jsonl").open("a") as corpus:
        for user in range(3):
            corpus.write(json.dumps({"user_id": f"user {user}", "text": "the house of people and government"}) + "\n")
    kept = [one for one in settings if not one.startswith("selection.")]
    chosen = "records[:k] if len(records) == 6 else fails()"
    GlobalHydra.instance().clear()
    given = ["selection.sampling_prob=1", "mechanism.rounds=2", *named(kept, "records", "Records", chosen=chosen)]
    assert run_command("run", given) == 0
    said = "".join(capsys.readouterr())
    assert "users failed: records=" in said
    assert "KeyError: 'government people'" in said
    assert files_with("government people", Path("run")) == []


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("EachTextOnce", "chose other records of a user when it was asked again"),
        ("Locked", "cannot be copied (TypeError:"),
    ],
)
def test_a_choice_of_records_with_a_memory_or_that_cannot_be_copied_is_refused_unwritten(
    kind: str, said: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, named(settings, "records", kind), f"records={kind} {said}")


def files_with(text: str, folder: Path) -> list[str]:
    """The files of a folder that hold a text."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


def test_an_optimizer_that_fails_in_its_first_step_is_refused_unwritten(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    refused_unwritten(capsys, named(settings, "optimizer", "Optimizer", fails_in=1), "step() raised ZeroDivisionError")


@pytest.mark.parametrize("group", ["optimizer", "selection"])
def test_a_later_failure_names_class_round_and_way_on_and_no_file_holds_the_reason(
    group: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, object] = {"fails_in": 3} if group == "optimizer" else {"late": 2, "chosen": "fails()"}
    code, said = fedsim_run(capsys, *named(settings, group, group.replace("ion", "or").capitalize()[:9], **given))
    assert (code, said.count("\n")) == (2, 1), said
    assert "in round 3" in said
    assert "government people" in said
    assert "go on with resume=" in said
    assert files_with("government people", Path("run")) == []


@pytest.mark.parametrize(
    ("record", "said"),
    [
        *(("('u', 'text')", ".Corpus"), ("None", ".Corpus"), ("fails()", ".Corpus"), ("exits()", ".Corpus")),
        *(("Record(i, 'a b')", "mine, record 1: user_id"), ("Record('u', 3)", "mine, record 1: text")),
    ],
)
def test_a_corpus_that_yields_what_is_no_record_is_refused_unwritten(
    record: str, said: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [one for one in settings if not one.startswith(("data=", "data.path="))]
    refused_unwritten(capsys, named(kept, "data", "Corpus", record=record), said)


@pytest.mark.parametrize("fingerprint", ["None", "3", "b'x'", "fails()", "exits()"])
def test_a_fingerprint_that_is_no_text_is_refused_unwritten(
    fingerprint: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = [one for one in settings if not one.startswith(("data=", "data.path="))]
    record = "Record(f'u{i}', 'the house')"
    refused_unwritten(capsys, named(kept, "data", "Corpus", record=record, print_=fingerprint), "fingerprint")


@pytest.mark.parametrize("output_dir", ["", "''", "null"])
def test_a_folder_without_a_name_is_refused(
    output_dir: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(os.listdir())
    code, said = fedsim_run(capsys, *settings[:-1], f"output_dir={output_dir}")
    assert code == 2
    assert "names no folder" in said
    assert sorted(os.listdir()) == before


def test_a_folders_name_is_printed_as_it_is_and_control_characters_escaped(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    name = "k[red]x[/b]\u202e"
    GlobalHydra.instance().clear()
    assert run_command("run", [*settings[:-1], "mechanism=zero_shot", f"output_dir={name}"]) == 0
    assert "k[red]x[/b]\\u202e" in capsys.readouterr().out


def test_a_plans_folder_is_printed_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    GlobalHydra.instance().clear()
    assert run_command("budget", ["output_dir=k[red]x[/b]:smile:\u202e"]) == 0
    assert "k[red]x[/b]:smile:\\u202e" in capsys.readouterr().out


OPTIMIZERS = """
import torch

class Remembering(torch.optim.SGD):
    def __init__(self, params, lr, beta=0.5):
        super().__init__(params, lr)
        self.beta = beta
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]:
            mean = self.state[p].setdefault("mean", torch.zeros_like(p))
            mean.mul_(self.beta).add_(p.grad)
            p.data.sub_(self.param_groups[0]["lr"] * mean)

class Keeps(torch.optim.SGD):
    def __init__(self, params, lr, kept): super().__init__(params, lr); self.kept = kept
    def step(self, closure=None):
        for p in self.param_groups[0]["params"]: self.state[p]["kept"] = eval(self.kept)

class KeepsBeside(torch.optim.SGD):
    def step(self, closure=None): self.state["all"] = torch.ones(2)

class KeepsInGroups(torch.optim.SGD):
    def step(self, closure=None): self.param_groups[0]["momentum"] += 0.1

class Says(torch.optim.SGD):
    def __init__(self, params, lr, said): super().__init__(params, lr); self.said = said
    def state_dict(self): return eval(self.said)

class Makes(torch.optim.SGD):
    def __init__(self, params, lr, made, late=0): super().__init__(params, lr); self.made, self.left = made, late
    def step(self, closure=None):
        self.left -= 1
        for p in self.param_groups[0]["params"] if self.left < 0 else []: p.data = eval(self.made)

class Does(torch.optim.SGD):
    def __init__(self, params, lr, done, late): super().__init__(params, lr); self.done, self.left = done, late
    def step(self, closure=None):
        self.left -= 1
        p = self.param_groups[0]["params"][0]
        if self.left < 0: eval(self.done)

class LoadsNothing(Remembering):
    def load_state_dict(self, state): pass
"""


def killed_in_round(round: int, settings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs the command until the checkpoint of a round is written, and no further."""
    write = CheckpointFolder.write

    def once(self: CheckpointFolder, checkpoint: Checkpoint) -> None:
        write(self, checkpoint)
        if checkpoint.round == round:
            raise Killed

    GlobalHydra.instance().clear()
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointFolder, "write", once)
        with pytest.raises(Killed):
            run_command("run", settings)


@pytest.mark.parametrize("source", ["seeded", "os"])
def test_a_run_with_an_optimizer_that_has_attributes_of_its_own_goes_on(
    source: str, settings: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    module = settings[-1].partition("=")[2]
    Path(f"{module}.py").write_text(PLUGINS + OPTIMIZERS)
    given = [*named(settings, "optimizer", "Remembering"), f"noise.source={source}"]
    killed_in_round(2, given, monkeypatch)
    again = ["resume=run", f"optimizer._target_={module}.Remembering"]
    assert fedsim_run(capsys, *again)[0] == 0
    if source == "seeded":
        assert fedsim_run(capsys, *given[:-2], "output_dir=whole")[0] == 0
        assert what_a_run_left(Path("run")) == what_a_run_left(Path("whole"))


KEPT = {
    ("Keeps", "kept", "[torch.ones(2)]"): ": its state has 'kept' of class list: a checkpoint keeps tensors",
    ("Keeps", "kept", "'text'"): ": its state has 'kept' of class str",
    ("Keeps", "kept", "[0.5, 0.1]"): ": its state has 'kept' of class list",
    ("Keeps", "kept", "object()"): ": its state has 'kept' of class object",
    ("Keeps", "kept", "2**70"): ": its state has 'kept' of class int",
    ("Keeps", "kept", "torch.ones(2).to_sparse()"): ": writing its state to a checkpoint raised",
    ("KeepsBeside",): ": its state holds 'all', which is no parameter's",
    ("KeepsInGroups",): ": step() changed group 0's momentum in param_groups",
    ("LoadsNothing",): ": its state does not come back out of a checkpoint at 'mean'",
    ("Says", "said", "fails()"): ": state_dict() raised KeyError: 'government people'",
    ("Says", "said", "{'state': object()}"): ": its state_dict() has a state of class object",
    ("Says", "said", "{'state': {0: object()}}"): ": its state holds '0'",
    ("Makes", "made", "torch.ones(3, 3)"): ": step() made a parameter of torch.float32 and shape (2, 2) one of",
    ("Makes", "made", "p.data.double()"): " one of torch.float64 and shape (2, 2)",
}  # fmt: skip


@pytest.mark.parametrize("kept", KEPT)
def test_an_optimizer_that_no_checkpoint_can_hold_is_refused_unwritten(
    kept: tuple[str, ...], settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module, (kind, *given) = settings[-1].partition("=")[2], kept
    Path(f"{module}.py").write_text(PLUGINS + OPTIMIZERS)
    values = dict([given]) if given else {}
    refused_unwritten(capsys, named(settings, "optimizer", kind, **values), f"optimizer={module}.{kind}: ")
    refused_unwritten(capsys, named(settings, "optimizer", kind, **values), KEPT[kept])


def test_a_later_step_to_another_shape_is_named_by_class_and_round(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path(f"{settings[-1].partition('=')[2]}.py").write_text(PLUGINS + OPTIMIZERS)
    code, said = fedsim_run(capsys, *named(settings, "optimizer", "Makes", made="p.data[:1]", late=1))
    assert (code, said.count("\n")) == (2, 1), said
    assert "in round 2, which was released" in said


LATER = {
    "self.param_groups[0]['params'].clear()": "step() changed the parameters in param_groups",
    "self.param_groups.clear()": "step() changed the parameters in param_groups",
    "setattr(self, 'param_groups', None)": "what step() left in param_groups raised TypeError",
    "self.param_groups[0].update(momentum=1)": "step() changed group 0's momentum in param_groups",
    "self.state[p].update(x=print)": "its state has 'x' of class builtin_function_or_method",
    "self.state[p].update(x=torch.ones(2).to_sparse())": "writing its state to a checkpoint raised",
    "self.state[p].update(x=torch.ones(2))": "the optimizer's state in the checkpoint does not fit at 0.x",
    "self.state.update(x=3)": "its state holds 'x', which is no parameter's",
    "exits()": "step() raised SystemExit: 0",
}


@pytest.mark.parametrize("done", LATER)
def test_what_a_later_step_does_is_named_by_class_round_and_way_on(
    done: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    module = settings[-1].partition("=")[2]
    Path(f"{module}.py").write_text(PLUGINS + OPTIMIZERS)
    code, said = fedsim_run(capsys, *named(settings, "optimizer", "Does", done=done, late=2))
    assert (code, said.count("\n")) == (2, 1), said
    assert f"optimizer={module}.Does: {LATER[done]}" in said
    assert "in round 3, which was released" in said
    assert "mend it, and go on with resume=" in said


@pytest.mark.parametrize("kind", ["Undeclared", "Declared"])
@pytest.mark.parametrize("prob", ["np.array([0.1])", "fails()", "'x'", "0.2"])
def test_results_report_the_probability_that_a_selection_declared_and_no_attribute_of_it(
    kind: str, prob: str, settings: list[str]
) -> None:
    GlobalHydra.instance().clear()
    assert run_command("run", named(settings, "selection", kind, prob=prob)) == 0
    (row,) = json.loads(Path("run/results.json").read_text())
    assert row["sampling_prob"] == (None if kind == "Undeclared" else 0.4)
    assert [check.about for check in folder_checks(Path("run")) if check.problem] == []


MENDED = """
class Drawing:
    def expected_cohort_size(self, num_users): return 0.5 * num_users
    def release(self, noise_multiplier, num_users, rounds): return acc.PoissonUsers(noise_multiplier, 0.5, rounds)
    def select(self, num_users, round, generator):
        if round > 1: fails()
        return np.flatnonzero(generator.random(num_users) < 0.5)

class Listing(Selector):
    def __init__(self): super().__init__()
    def select(self, num_users, round, generator):
        if round > 1: fails()
        return np.arange(3)
"""


@pytest.mark.parametrize(("kind", "source"), [("Drawing", "os"), ("Listing", "os"), ("Listing", "seeded")])
def test_a_class_that_was_mended_goes_on_by_what_the_sentences_say(
    kind: str, source: str, settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"{settings[-1].partition('=')[2]}.{kind}"
    write_module(target, PLUGINS + MENDED)
    code, said = fedsim_run(capsys, *named(settings, "selection", kind), f"noise.source={source}")
    assert code == 2
    assert "go on with resume=" in said
    assert "the class named again and checkpoint.allow_changes=true: its code is another then" in said
    write_module(target, PLUGINS + MENDED.replace("if round > 1: fails()", "pass"))
    again = ["resume=run", f"selection._target_={target}"]
    code, said = fedsim_run(capsys, *again)
    assert (code, said.count("\n")) == (2, 1), said
    assert f"the code of {target} changed: go back to what it was, or set checkpoint.allow_changes=true" in said
    assert "settings was" not in said
    code, said = fedsim_run(capsys, *again, "checkpoint.allow_changes=true")
    assert code == 0, said
    assert [check.about for check in folder_checks(Path("run")) if check.problem] == []


def test_a_seeded_run_whose_mended_selection_draws_others_is_told_to_start_anew(
    settings: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    target = f"{settings[-1].partition('=')[2]}.Drawing"
    write_module(target, PLUGINS + MENDED)
    assert fedsim_run(capsys, *named(settings, "selection", "Drawing"))[0] == 2
    write_module(target, PLUGINS + MENDED.replace("if round > 1: fails()", "pass"))
    again = ["resume=run", f"selection._target_={target}", "checkpoint.allow_changes=true"]
    code, said = fedsim_run(capsys, *again)
    assert (code, said.count("\n")) == (2, 1), said
    assert " draws other users for rounds 1 to 1" in said
    assert "or start a new run in another folder" in said


def write_module(target: str, content: str) -> None:
    """Writes the module of a class, to be imported anew."""
    module = target.partition(".")[0]
    Path(f"{module}.py").write_text(content)
    sys.modules.pop(module, None)
    importlib.invalidate_caches()
