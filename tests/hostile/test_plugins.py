"""A class of the user's own that fails or answers nonsense ends in one sentence, before anything is written."""

import os
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from fedsim_userdp.simulations.cli import run_command
from tests.hostile.test_code import fedsim_run
from tests.simulations.corpora import small_settings, write_jsonl

PLUGINS = """
import math, sys
import numpy as np
import torch
from fedsim_userdp.privacy import accounting as acc

SECRET = "government people"

def exits(): sys.exit(0)
def fails(): raise KeyError(SECRET)

class Selector:
    def __init__(self, size="3.0", chosen="np.arange(3)", late=0):
        self.size, self.chosen, self.late = size, chosen, late
    def expected_cohort_size(self, num_users):
        return eval(self.size)
    def release(self, noise_multiplier, num_users, rounds):
        return acc.Unamplified(noise_multiplier=noise_multiplier, max_participations=rounds)
    def select(self, num_users, round, generator):
        return eval(self.chosen) if round > self.late else np.arange(3)

class Sampled:
    def __init__(self, seed): self.seed = seed
    def expected_cohort_size(self, num_users):
        return 0.4 * num_users
    def release(self, noise_multiplier, num_users, rounds):
        return acc.UserWise(noise_multiplier, 0.4, rounds)
    def select(self, num_users, round, generator):
        return np.flatnonzero(np.random.default_rng(eval(self.seed)).random(num_users) < 0.4)

class Records:
    fresh = True
    def __init__(self, chosen): self.chosen = chosen
    def select(self, records, k, generator): return eval(self.chosen)

class Optimizer(torch.optim.SGD):
    def __init__(self, params, lr, fails_in): super().__init__(params, lr); self.left = fails_in
    def step(self, closure=None):
        self.left -= 1
        if not self.left: raise ZeroDivisionError(SECRET)

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
