"""What runs of one seed share, and what a release gives away: nothing."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

import client_selector
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.federation.engines import InProcessEngine
from fedsim_userdp.mechanisms.circumstances import licence_of, named_foreign
from fedsim_userdp.mechanisms.identity import settings_digest
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.participation import draw_cohort
from fedsim_userdp.population import Past
from fedsim_userdp.privacy.noise import OperatingSystemNoise
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.sampling_plan import round_of
from fedsim_userdp.selection import Stating
from fedsim_userdp.simulations.adapter_checks import own_class
from fedsim_userdp.simulations.arguments import complete_arguments
from fedsim_userdp.simulations.configured import configured_run
from tests.simulations.corpora import small_settings, write_jsonl


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("keys")
    return small_settings(write_jsonl(folder / "texts.jsonl", num_users=40), folder / "cache")


def run_of(folder: Path, settings: Sequence[str], *changes: str) -> Run:
    GlobalHydra.instance().clear()
    names = {change.split("=")[0] for change in changes}
    kept = [one for one in settings if one.split("=")[0] not in names]
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return configured_run(compose("run", overrides=[*kept, f"output_dir={folder}", *changes]), folder)


def cohorts(run: Run) -> list[tuple[int, ...]]:
    population = run.study.population
    return [tuple(draw_cohort(run.study.selector, population, round, run.keys.run).tolist()) for round in range(1, 9)]


OTHER_RUNS = [
    ["seed=1"], ["privacy.epsilon=2"], ["mechanism=user_wise_adaptive"], ["mechanism=group_privacy"],
    ["mechanism=group_privacy", "central.engine=stacked"], ["mechanism=example_level_tight"],
    ["mechanism=record_level"], ["mechanism.learning_rate=0.5"], ["mechanism.clip_norm=0.2"], ["tuned.rounds=9"],
    ["tuned.records_per_user=3"], ["lora.rank=4"], ["lora.dropout=0.1"], ["optimizer=sgd"], ["records=longest"],
    ["selection.sampling_prob=0.31"], ["local.steps=2"], ["model.autocast=bfloat16"], ["tokens.window=12"],
    ["split.heldout_users=3"], ["split.seed=5"], ["privacy.delta=0.01"],
]  # fmt: skip
SAME_RUN = [
    ["threads=2"], ["engine.num_nodes=3"], ["evaluation.every=2"], ["checkpoint.every=3"], ["local.max_tokens=64"],
    ["privacy.num_searched=7"], ["mechanism.name=other"], ["evaluation.users=heldout"],
]  # fmt: skip


def test_every_setting_that_a_release_depends_on_gives_noise_and_cohorts_of_its_own(
    tmp_path: Path, settings: list[str]
) -> None:
    runs = [run_of(tmp_path, settings, *changes) for changes in ([], *OTHER_RUNS)]
    keys = [run.keys.run.secret for run in runs]
    assert len(set(keys)) == len(keys)
    drawn = np.stack([run.noise.standard_normal(4000, 1) for run in runs])
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 6 / 4000**0.5
    assert len({tuple(cohorts(run)) for run in runs}) == len(runs)


@pytest.mark.parametrize("changes", SAME_RUN, ids=lambda changes: changes[0])
def test_what_no_release_depends_on_changes_no_key(tmp_path: Path, settings: list[str], changes: list[str]) -> None:
    assert run_of(tmp_path, settings, *changes).keys.run == run_of(tmp_path, settings).keys.run


def test_the_key_follows_from_the_data_and_not_from_where_they_lie(tmp_path: Path, settings: list[str]) -> None:
    own = run_of(tmp_path, settings).keys.run
    copied = write_jsonl(tmp_path / "elsewhere.jsonl", num_users=40)
    assert run_of(tmp_path, settings, f"data.path={copied}").keys.run == own
    other = write_jsonl(tmp_path / "other.jsonl", num_users=41)
    assert run_of(tmp_path, settings, f"data.path={other}").keys.run != own


def test_another_version_of_ones_own_code_is_another_run(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = Path(client_selector.__file__).read_text()
    for name, text in (("choice_one", source), ("choice_two", source + "\n# another version\n")):
        (tmp_path / f"{name}.py").write_text(text)
    keys = []
    for name in ("choice_one", "choice_two"):
        changed = merged(settings, {"selection": {"_target_": f"{name}.EveryOtherUser"}})
        keys.append(settings_digest(changed))
        (tmp_path / "choice_one.py").write_text((tmp_path / "choice_two.py").read_text())
        keys.append(settings_digest(changed))
    assert keys[0] != keys[1], "the file changed"
    assert keys[2] == keys[3], "this one did not"


def merged(settings: Sequence[str], changes: dict[str, object]) -> DictConfig:
    config = OmegaConf.merge(composed(settings), changes)
    assert isinstance(config, DictConfig)
    return config


def package(folder: Path) -> Path:
    (folder / "helped").mkdir()
    (folder / "helped" / "__init__.py").write_text("from client_selector import EveryOtherUser as Choice\n")
    (folder / "helped" / "chooser.py").write_text(f"{CLASS}from helped import table\n")
    (folder / "helped" / "table.py").write_text("SIZE = 1\n")
    (folder / "helped" / "sizes.csv").write_text("1\n")
    return folder / "helped"


IMPORT = "from client_selector import EveryOtherUser"
CLASS = f"{IMPORT}\n\n\nclass Choice(EveryOtherUser):\n    pass\n\n\n"


@pytest.mark.parametrize("changed", ["table.py", "sizes.csv", "new.so"])
def test_another_version_of_what_ones_own_package_holds_is_another_run(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("helped", "helped.chooser", "helped.table"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    folder = package(tmp_path)
    target = merged(settings, {"selection": {"_target_": "helped.chooser.Choice"}})
    before = settings_digest(target)
    assert settings_digest(target) == before
    (folder / changed).write_text("SIZE = 2\n")
    assert settings_digest(target) != before


def test_another_version_of_what_ones_own_file_imports_from_beside_it_is_another_run(
    tmp_path: Path, settings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "lone_choice.py").write_text(f"import lone_helper\n{CLASS}")
    (tmp_path / "lone_helper.py").write_text("from lone_table import SIZE\nimport lone_choice\n")
    for name in ("lone_table", "lone_unrelated"):
        (tmp_path / f"{name}.py").write_text("SIZE = 1\n")
    target = merged(settings, {"selection": {"_target_": "lone_choice.Choice"}})
    digests = [settings_digest(target)]
    for name in ("lone_unrelated", "lone_table", "lone_helper"):
        with (tmp_path / f"{name}.py").open("a") as file:
            file.write("# another version\n")
        digests.append(settings_digest(target))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def composed(settings: Sequence[str]) -> DictConfig:
    GlobalHydra.instance().clear()
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return compose("run", overrides=[*settings, "output_dir=x"])


def test_nothing_of_a_release_follows_from_what_it_publishes(tmp_path: Path, settings: list[str]) -> None:
    """Whoever knows seed, settings and all data draws the seeded cohorts; those of two releases are others."""
    released = [run_of(tmp_path / name, settings, "noise.source=os") for name in ("a", "b")]
    guessed = RunKey.seeded(0, released[0].identity)
    assert all(isinstance(run.noise, OperatingSystemNoise) and not run.keys.run.is_seeded for run in released)
    assert len({run.keys.run.secret for run in released} | {guessed.secret}) == 3
    drawn = [cohorts(run) for run in released]
    population = released[0].study.population
    guess = [
        tuple(draw_cohort(released[0].study.selector, population, round, guessed).tolist()) for round in range(1, 9)
    ]
    assert len({tuple(found) for found in (*drawn, guess)}) == 3
    seeded = run_of(tmp_path / "c", settings)
    assert cohorts(seeded) == guess, "what the statement of a seeded run says"


@pytest.mark.parametrize(
    "chosen",
    [
        ["selection=growing", "selection.first_prob=0.2", "selection.last_prob=0.6"],
        ["selection=stratified", "selection.users_per_group=3"],
        ["selection=round_robin", "selection.num_blocks=2", "selection.sampling_prob=0.5"],
    ],
)
def test_who_knows_the_plan_of_a_release_and_all_that_it_publishes_knows_no_cohort(
    chosen: list[str], tmp_path: Path, settings: list[str]
) -> None:
    """Guesses with every published seed and identity meet the cohorts as often as chance does; seeded, always."""
    usual = [one for one in settings if not one.startswith("selection")]
    path = next(one for one in settings if one.startswith("data.path=")).removeprefix("data.path=")
    users = sorted({json.loads(line)["user_id"] for line in Path(path).read_text().splitlines()})
    rows = [f"{user},{'ab'[number % 3 == 0]}" for number, user in enumerate(users)]
    (tmp_path / "users.csv").write_text("\n".join(["user_id,region", *rows]) + "\n")
    given = [*usual, *chosen, f"selection.public={tmp_path / 'users.csv'}"]
    released, seeded = run_of(tmp_path / "a", given, "noise.source=os"), run_of(tmp_path / "b", given)
    for run, is_told in ((released, False), (seeded, True)):
        population, rounds, selector = run.study.population, range(1, 41), run.study.selector
        assert isinstance(selector, Stating)
        drawn = [draw_cohort(selector, population, round, run.keys.run) for round in rounds]
        for key in (RunKey.seeded(0, released.identity), RunKey.seeded(0, seeded.identity), RunKey.seeded(0)):
            guessed = [draw_cohort(selector, population, round, key) for round in rounds]
            met = sum(len(np.intersect1d(*pair)) for pair in zip(drawn, guessed, strict=True))
            stated = [round_of(selector, population, round, Past()).probabilities for round in rounds]
            squares = [np.broadcast_to(one, len(population)) ** 2 for one in stated]
            expected = float(np.sum(squares))
            spread = math.sqrt(float(np.sum([one * (1 - one) for one in squares])))
            if is_told and key.secret == run.keys.run.secret:
                assert all(map(np.array_equal, drawn, guessed))
            else:
                assert abs(met - expected) <= 5 * spread, "who is drawn was told"


def test_records_and_masks_of_a_release_are_as_secret_as_its_cohorts(tmp_path: Path, settings: list[str]) -> None:
    runs = [run_of(tmp_path / name, settings, "noise.source=os") for name in ("a", "b")]
    chosen = [
        [[record.tolist() for record in unit.records] for unit in run.training_users(2).units(range(20), 1)]
        for run in runs
    ]
    assert chosen[0] != chosen[1]
    pools = [[unit.records[0].tolist() for unit in run.pool(2).units] for run in runs]
    assert pools[0] != pools[1]


class OwnEngine(InProcessEngine):
    """Could do anything with a node's sum."""


class OwnModel(ModelSource):
    """Could be anything."""


class OwnRecords(RandomRecords):
    """Hides behind a class of the package in an attribute that `functools.partial` has."""

    func = RandomRecords


@pytest.mark.parametrize(("key", "kind"), [("engine", OwnEngine), ("model", OwnModel), ("records", OwnRecords)])
def test_whatever_class_is_not_the_packages_is_named_as_an_assumption(
    tmp_path: Path, settings: list[str], key: str, kind: type
) -> None:
    name = f"{kind.__module__}.{kind.__qualname__}"
    assert run_of(tmp_path, settings, f"{key}._target_={name}").study.circumstances.foreign == (name,)
    assert run_of(tmp_path, settings).study.circumstances.foreign == ()


def test_what_the_packages_own_functions_fetch_from_elsewhere_is_named(tmp_path: Path, settings: list[str]) -> None:
    fetched: dict[str, object] = {"data": {"_target_": "fedsim_userdp.mechanisms.identity.locate", "path": "x.y"}}
    assert named_foreign(merged(settings, fetched)) == ("fedsim_userdp.mechanisms.identity.locate",)
    with pytest.raises(ConfigError, match="a callback is code"):
        complete_arguments("run", ["+hydra.callbacks.x._target_=mine.X"])


def test_a_module_whose_name_is_part_of_the_packages_is_foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    """`fedsim verify` asks for the licence, and runs no code that a folder names."""
    monkeypatch.setattr("fedsim_userdp.simulations.adapter_checks.get_class", lambda name: pytest.fail(name))
    for name in ("user.C", "fed.C", "dp.C", "fedsim.C", "fedsim_userdp2.C"):
        data = OmegaConf.create({"_target_": name})
        assert own_class(data) is None
        assert licence_of(data, own_class(data)) == "unknown"
