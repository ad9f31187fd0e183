"""The package's face in Python: what README's lines make is what the command makes."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedsim_userdp import (
    Budget,
    CyclicSelector,
    InMemoryCorpus,
    ModelSource,
    NonPrivate,
    PoissonSelector,
    RecordLevelDP,
    Result,
    Study,
    TableCorpus,
    UserWise,
    UserWiseAdaptive,
    ZeroShot,
    acc,
    compare,
    run,
)
from fedsim_userdp.errors import ConfigError, DataError
from fedsim_userdp.mechanisms.base import Mechanism
from fedsim_userdp.mechanisms.guarantee import Guarantee
from fedsim_userdp.mechanisms.own_folder import own_folder
from fedsim_userdp.population import Past, Population
from fedsim_userdp.settings import Evaluation
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.small_runs import Killed, what_a_run_left
from tests.simulations.zygote import Zygote

SEVEN_LINES = """
from fedsim_userdp import Budget, RecordLevelDP, Study, UserWise, compare

study = Study.of(records, budget=Budget(epsilon=8.0), heldout_users=20)      # (user, text) pairs, a table, a corpus or a path
result = compare(study, [UserWise(clip_norm=0.3), RecordLevelDP(clip_norm=0.5, accountant="group")], folder="my-run")
result.table()                         # a rich table in a terminal, HTML in a notebook
result.rows, result.statement("user_wise"), result.adapter("user_wise"), result.rounds("user_wise")
"""  # noqa: E501
MECHANISMS: list[UserWise | RecordLevelDP] = [
    UserWise(rounds=3, records_per_user=2),
    RecordLevelDP(rounds=3, records_per_user=2),
]
FILES = ["user_wise", "group_privacy"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL of 14 users, beside it the cache."""
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


def small_study(corpus: Path, **changes: Any) -> Study:
    """A study with the settings of `small_settings`."""
    keywords: dict[str, Any] = {
        "cache_dir": corpus.parent / "cache", "heldout_users": 2, "min_words": 0, "window": 16, "threads": 1,
        "selection": PoissonSelector(0.3), "model": ModelSource(device="cpu"),
        "evaluation": Evaluation(records_per_user=1, every=100), "checkpoint": {"every": 1},
        "local": {"max_tokens": 512},
    }  # fmt: skip
    return Study.of(corpus, **(keywords | changes))


def records_of(corpus: Path) -> list[tuple[str, str]]:
    rows = map(json.loads, corpus.read_text().splitlines())
    return [(row["user_id"], row["text"]) for row in rows]


def command_settings(corpus: Path) -> list[str]:
    return [*small_settings(corpus, corpus.parent / "cache", rounds=3), "compare.mechanisms=[user_wise,group_privacy]"]


def test_the_seven_lines_of_the_readme_make_a_whole_folder_without_hydra(tmp_path: Path) -> None:
    corpus = write_jsonl(tmp_path / "corpus.jsonl", num_users=40, records=1, words=70)
    program = (
        f"import json, sys\nrecords = {records_of(corpus)!r}\n{SEVEN_LINES}\nimport rich; rich.print(result.table())"
    )
    program += "\nassert not {'hydra', 'omegaconf', 'matplotlib.pyplot', 'ray'} & set(sys.modules), sys.modules"
    ended = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "perplexity" in ended.stdout
    folder = tmp_path / "my-run"
    rows = json.loads((folder / "results.json").read_text())
    assert [row["mechanism"] for row in rows] == FILES
    assert all(7.9 < row["epsilon"] <= 8 for row in rows)
    assert sorted(path.stem for path in (folder / "ledger").glob("*")) == ["group_privacy-seed0", "user_wise-seed0"]
    assert (folder / "adapters" / "user_wise" / "adapter_model.safetensors").exists()
    assert "user_wise" in (folder / "PRIVACY.md").read_text()
    assert not (ended.stderr.strip()), "no warning that nobody can act on"


@pytest.fixture(scope="module")
def by_command(corpus: Path, tmp_path_factory: pytest.TempPathFactory, processes: Zygote) -> Path:
    """What `fedsim compare` makes of the corpus."""
    folder = tmp_path_factory.mktemp("command") / "run"
    ended = processes.run("compare", *command_settings(corpus), f"output_dir={folder}")
    assert ended.returncode == 0, ended.stderr
    return folder


def test_python_and_the_command_make_the_same_files_bit_for_bit(corpus: Path, by_command: Path, tmp_path: Path) -> None:
    result = compare(small_study(corpus), MECHANISMS, folder=tmp_path / "python")
    left = what_a_run_left(by_command)
    assert what_a_run_left(result.folder) == left


def test_records_in_memory_are_the_records_of_a_file(corpus: Path, by_command: Path, tmp_path: Path) -> None:
    keywords: dict[str, Any] = {"cache_dir": corpus.parent / "cache", "heldout_users": 2, "min_words": 0, "window": 16}
    stores = [
        Study.of(text, **keywords).store.content_digest
        for text in (
            str(corpus),
            records_of(corpus),
            [{"user_id": user, "text": text} for user, text in records_of(corpus)],
            dict(zip(("user_id", "text"), map(list, zip(*records_of(corpus), strict=True)), strict=True)),
            TableCorpus(corpus),
        )
    ]
    assert len(set(stores)) == 1


def test_a_run_of_the_command_goes_on_in_python_and_the_other_way(
    corpus: Path, by_command: Path, tmp_path: Path, processes: Zygote, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = tmp_path / "command"
    killed = processes.run("compare", *command_settings(corpus), f"output_dir={stopped}", write=60)
    assert killed.returncode != 0
    compare(small_study(corpus), MECHANISMS, folder=stopped, resume=True)
    assert what_a_run_left(stopped) == what_a_run_left(by_command)

    begun = tmp_path / "python"
    with monkeypatch.context() as patch:
        patch.setattr("fedsim_userdp.mechanisms.persistence.RunState.end", lambda state: _die())
        with pytest.raises(Killed):
            compare(small_study(corpus), MECHANISMS, folder=begun)
    ended = processes.run("compare", f"resume={begun}")
    assert ended.returncode == 0, ended.stderr
    assert what_a_run_left(begun) == what_a_run_left(by_command)


def _die() -> None:
    raise Killed


def test_what_a_folder_made_in_python_claims_can_be_verified(corpus: Path, tmp_path: Path, processes: Zygote) -> None:
    study = small_study(corpus, selection=CyclicSelector(4), optimizer=partial(torch.optim.SGD, momentum=0.5))
    mechanisms: list[Mechanism] = [
        ZeroShot(),
        UserWiseAdaptive(rounds=2, target_quantile=0.4),
        UserWise(rounds=2, name="mine"),
    ]
    result = compare(study, mechanisms, folder=tmp_path / "run")
    ended = processes.run("verify", str(result.folder))
    assert ended.returncode == 0, ended.stdout
    ended = processes.run("compare", f"resume={result.folder}")
    assert ended.returncode == 0, ended.stderr


def test_one_mechanism_alone_is_a_folder_of_fedsim_run(corpus: Path, tmp_path: Path, processes: Zygote) -> None:
    result = run(small_study(corpus), NonPrivate(rounds=2, learning_rate=0.01), folder=tmp_path / "run")
    assert json.loads((result.folder / "run.json").read_text())["command"] == "run"
    for command in (["verify", str(result.folder)], ["run", f"resume={result.folder}"]):
        ended = processes.run(*command)
        assert ended.returncode == 0, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def result(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Result:
    """Two mechanisms."""
    return compare(small_study(corpus), [ZeroShot(), MECHANISMS[0]], folder=tmp_path_factory.mktemp("result") / "run")


def test_a_result_gives_what_is_in_its_folder(result: Result) -> None:
    assert [row.to_dict() for row in result.rows] == json.loads((result.folder / "results.json").read_text())
    statement = result.statement("user_wise")
    assert statement.release is not None
    assert result.rows[1].epsilon == acc.epsilon(statement.release, result.rows[1].delta or 0)
    assert [record.round for record in result.rounds("user_wise")] == [0, 1, 2, 3]
    assert (result.adapter("user_wise") / "adapter_config.json").exists()
    assert "user_wise" in repr(result)
    assert len(result.figure().axes) == 2
    bundle = result.table()._repr_mimebundle_([], [])
    assert "user_wise" in bundle["text/html"]
    with pytest.raises(KeyError, match="zero_shot has no adapter"):
        result.adapter("zero_shot")
    with pytest.raises(KeyError, match="group_privacy was not compared; there are zero_shot, user_wise"):
        result.statement("group_privacy")


def test_a_second_call_into_a_folder_says_what_to_do(corpus: Path, result: Result) -> None:
    before = what_a_run_left(result.folder)
    mechanisms = [ZeroShot(), MECHANISMS[0]]
    with pytest.raises(
        ConfigError, match=r"holds a run already \(run\.json\): go on with it by resume=True, or choose"
    ):
        compare(small_study(corpus), mechanisms, folder=result.folder)
    with pytest.raises(ConfigError, match="holds runs of zero_shot, user_wise with seed 0: go on with the same"):
        compare(small_study(corpus), MECHANISMS, folder=result.folder, resume=True)
    with pytest.raises(ConfigError, match=r"privacy\.epsilon was 8\.0 and is 2\.0"):
        compare(small_study(corpus, budget=2.0), mechanisms, folder=result.folder, resume=True)
    other = [mechanisms[0], replace(MECHANISMS[0], clip_norm=0.2)]
    with pytest.raises(ValueError, match="settings was"):
        compare(small_study(corpus), other, folder=result.folder, resume=True)
    again = compare(small_study(corpus), mechanisms, folder=result.folder, resume=True)
    assert what_a_run_left(again.folder) == before


def test_without_a_folder_a_temporary_one_is_named(
    corpus: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    found = compare(small_study(corpus), [ZeroShot()])
    assert found.folder.parent == tmp_path
    assert f"the run folder is {found.folder}" in caplog.text
    with pytest.raises(ConfigError, match="resume=True needs the folder"):
        compare(small_study(corpus), [ZeroShot()], resume=True)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"heldout_user": 2}, r"has no keyword heldout_user: did you mean heldout_users\?"),
        ({"epsilon": 2.0}, r"it is one of budget, as in budget=Budget\(epsilon=...\)"),
        ({"privacy": {"epsilon": 2.0}}, "it is budget"),
        ({"heldout_users": "many"}, "heldout_users='many' must be a whole number"),
        ({"heldout_users": 1.5}, "must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"seed": True}, "seed=True must be a whole number"),
        ({"selection": "poisson"}, "selection='poisson' must be an object, made by its class"),
        ({"selection": PoissonSelector}, "selection=the class PoissonSelector must be an object"),
        ({"engine": "flower"}, "engine='flower' must be an object"),
        ({"budget": "8 or so"}, None),
        ({"budget": Budget(epsilon=-1.0)}, r"privacy\.epsilon=-1 must be above 0"),
        ({"lora": {"rnk": 4}}, "lora has no setting rnk"),
        ({"lora": 4}, "must be LoraSettings"),
        ({"heldout_users": 14}, None),
        ({"model": 5}, "must be a ModelSource"),
        ({"selection": object()}, "selection"),
        ({"optimizer": torch.optim.SGD(torch.nn.Linear(1, 1).parameters())}, "optimizer"),
    ],
)
def test_what_is_wrong_is_named(corpus: Path, keywords: dict[str, Any], message: str | None) -> None:
    with pytest.raises(ValueError, match=message):
        small_study(corpus, **keywords)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (5, "int is no text of users"),
        ("nothing.txt", "must be a .jsonl, .csv or .parquet file"),
        ([("a", 1)], "record 0: its text is int"),
        ([("a",)], "record 0 must be a pair"),
        (["ab"], "record 0 must be a pair"),
        ([(None, "x")], "record 0 names no user"),
        ([(1.5, "x")], "record 0 names no user"),
        ([{"user": "a", "text": "b"}], "has no column 'user_id'; it has 'user', 'text'"),
        ({"user_id": ["a"], "text": ["b", "c"]}, "1 ids and 2 texts"),
        ([], None),
    ],
)
def test_text_that_is_none_is_named(text: object, message: str | None) -> None:
    with pytest.raises(ValueError, match=message):
        Study.of(text)


def test_mechanisms_of_one_name_and_foreign_values_are_refused(corpus: Path, tmp_path: Path) -> None:
    for mechanisms, message in (
        ([], "mechanisms is empty"),
        (None, "mechanisms=NoneType must be a list"),
        (UserWise(), "mechanisms=UserWise must be a list"),
        ([UserWise], "mechanisms holds the class UserWise, which is no mechanism"),
        (["user_wise"], "mechanisms holds 'user_wise', which is no mechanism"),
        ([MECHANISMS[0], UserWise(rounds=2)], "two mechanisms are called user_wise"),
    ):
        with pytest.raises(ConfigError, match=message):
            compare(small_study(corpus), mechanisms, folder=tmp_path / "run")  # type: ignore[arg-type]
        assert not (tmp_path / "run").exists()


def test_missing_text_and_numbers_as_ids_are_read_as_in_a_file() -> None:
    corpus = InMemoryCorpus([(7, "a"), (7.0, float("nan")), ("7", None)])
    assert [(record.user_id, record.text) for record in corpus.records()] == [("7", "a"), ("7", ""), ("7", "")]
    assert corpus.dropped.counts == {"row without text": 2}
    with pytest.raises(DataError, match=r"7\.0"):
        InMemoryCorpus([("7.0", "a")])


def test_importing_the_package_loads_nothing() -> None:
    program = "import sys, fedsim_userdp; print(sorted({'torch', 'numpy', 'hydra', 'flwr', 'yaml'} & set(sys.modules)))"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


class Remembering(PoissonSelector):
    """Remembers in which rounds it was asked."""

    asked: list[int]

    def __init__(self) -> None:
        super().__init__(0.3)
        object.__setattr__(self, "asked", [])

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        self.asked.append(round)
        return self.sampling_prob


def test_each_run_has_a_selector_of_its_own(corpus: Path, tmp_path: Path) -> None:
    selector = Remembering()
    mechanisms = [UserWise(rounds=2, name=name) for name in ("one", "other")]
    compare(small_study(corpus, selection=selector), mechanisms, folder=tmp_path / "run")
    assert selector.asked == []
    run(small_study(corpus, selection=selector), UserWise(rounds=2), folder=tmp_path / "alone")
    assert selector.asked == [], "nor does one run tell in the next call"


def test_allowed_changes_do_not_reach_what_a_claim_says_of_its_mechanism(corpus: Path, tmp_path: Path) -> None:
    study = small_study(corpus, checkpoint={"every": 1, "allow_changes": True})
    run(study, MECHANISMS[0], folder=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"mechanism\.records_per_user was 2 and is 1 \(.* cannot change"):
        run(study, replace(MECHANISMS[0], records_per_user=1), folder=tmp_path / "run", resume=True)


@pytest.mark.parametrize("folder", ["", "/proc/x", "~nobody-of-this-name/x", "a\0b", "x" * 300, 5])
def test_a_folder_that_cannot_be_is_named(corpus: Path, folder: object) -> None:
    with pytest.raises(ConfigError, match="folder="):
        compare(small_study(corpus), [ZeroShot()], folder=folder)  # type: ignore[arg-type]


def test_numbers_of_numpy_are_numbers(corpus: Path, tmp_path: Path) -> None:
    numbers = {"heldout_users": np.int64(2), "seed": np.int64(0), "selection": PoissonSelector(np.float64(0.3))}
    assert small_study(corpus, **numbers).tree == small_study(corpus).tree


def test_what_a_mechanism_of_ones_own_answers_is_checked(corpus: Path, tmp_path: Path) -> None:
    class Mine(UserWise):
        def guarantee(self, study: Study) -> Guarantee:
            return None  # type: ignore[return-value]

    with pytest.raises(ConfigError, match=r"must be defined at the top of a module"):
        compare(small_study(corpus), [Mine()], folder=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"Silent: guarantee\(\) must return a Guarantee, got NoneType"):
        compare(small_study(corpus), [Silent()], folder=tmp_path / "run")
    assert not (tmp_path / "run").exists()


class Silent(UserWise):
    """Guarantees nothing that is one."""

    def guarantee(self, study: Study) -> Guarantee:
        return None  # type: ignore[return-value]


def test_records_in_memory_go_on_in_python_only(corpus: Path, tmp_path: Path, processes: Zygote) -> None:
    study = Study.of(records_of(corpus), heldout_users=2, min_words=0, window=16, cache_dir=corpus.parent / "cache")
    compare(study, [ZeroShot()], folder=tmp_path / "run")
    ended = processes.run("compare", f"resume={tmp_path / 'run'}")
    assert ended.returncode == 2
    assert "were given in Python: go on there, with the same and resume=True" in ended.stderr


def test_a_refused_process_leaves_the_folder_to_the_one_that_has_it(tmp_path: Path) -> None:
    with own_folder(tmp_path):
        with pytest.raises(ConfigError, match="in use by another run"), own_folder(tmp_path):
            raise AssertionError("both are in")
        assert tmp_path.is_dir(), "nothing is in it yet, and it is the first one's"
    assert not tmp_path.exists()


class Vague:
    """A record selection that does not say whether it chooses anew."""

    fresh: Any = "yes"

    def select(self, records: Any, k: int, generator: np.random.Generator) -> Any:
        return records[:k]


def test_a_choice_of_records_that_does_not_say_whether_it_is_fresh_is_refused_by_its_class(corpus: Path) -> None:
    with pytest.raises(ConfigError, match=r"records=.*test_face\.Vague: fresh must be True or False"):
        small_study(corpus, records=Vague())
