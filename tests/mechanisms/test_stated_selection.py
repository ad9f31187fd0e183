"""Selectors that state probabilities, through whole runs: accounting, weights, the past, files, resume."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedsim_userdp import ModelSource, RecordLevelDP, Study, UserWise, UserWiseAdaptive, acc, compare, run
from fedsim_userdp.errors import CheckpointError, ConfigError, DataError
from fedsim_userdp.participation import declared_release
from fedsim_userdp.population import Past, Population
from fedsim_userdp.privacy.joint import JointStatement, StatedRun
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.privacy_files import PrivacyFile, read_privacy
from fedsim_userdp.selectors import AvailabilitySelector, GrowingSelector, ImportanceSelector, StratifiedSelector
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.strategies.user_level_dp import UserLevelDP
from tests.simulations.small_runs import Killed
from tests.simulations.zygote import Zygote

WORDS = "the house of the people and so it was said government by law a great year"
PAIRS = [(f"u{user}", f"{WORDS} {user}") for user in range(14)]
FACTS: dict[str, list[Any]] = {
    "user_id": [f"u{user}" for user in range(14)],
    "region": ["n"] * 4 + ["s"] * 10,
    "records": [1, 5] * 7,
}
CSV = "user_id,region,records\n" + "".join(
    f"u{user},{FACTS['region'][user]},{FACTS['records'][user]}\n" for user in range(14)
)


def study_of(selector: Any, text: object = None, **given: Any) -> Study:
    keywords: dict[str, Any] = {
        "heldout_users": 3, "min_words": 0, "window": 16, "threads": 1, "model": ModelSource(device="cpu"),
        "public": FACTS, "evaluation": {"every": 100}, "checkpoint": {"every": 1},
    }  # fmt: skip
    return Study.of(PAIRS if text is None else text, selection=selector, **(keywords | given))


def stated(folder: Path) -> PrivacyFile:
    found = read_privacy(folder)
    assert isinstance(found, PrivacyFile)
    return found


def weights_in(folder: Path, name: str = "user_wise") -> bytes:
    return (folder / "adapters" / name / "adapter_model.safetensors").read_bytes()


def killed_in(round: int, monkeypatch: pytest.MonkeyPatch, study: Study, folder: Path) -> None:
    """A run of three rounds that dies in one of them, before it is released."""
    inner = UserLevelDP.aggregate_train

    def dies(self: UserLevelDP, server_round: int, replies: Any) -> Any:
        if server_round == round:
            raise Killed
        return inner(self, server_round, replies)

    monkeypatch.setattr(UserLevelDP, "aggregate_train", dies)
    with pytest.raises(Killed):
        run(study, UserWise(rounds=3), folder)
    monkeypatch.setattr(UserLevelDP, "aggregate_train", inner)


def test_a_run_states_epsilon_by_public_group_and_who_took_part(tmp_path: Path, processes: Zygote) -> None:
    result = run(study_of(StratifiedSelector("region", 2)), UserWise(rounds=3), tmp_path / "run")
    (one,) = stated(tmp_path / "run").runs
    release = one.statement.release
    assert isinstance(release, acc.PoissonGroups)
    assert release.adjacency is acc.Adjacency.ZERO_OUT_USER
    page = (tmp_path / "run" / "PRIVACY.md").read_text()
    assert "of region n |" in page
    assert "of region s |" in page
    costs = dict(zip(one.statement.groups, one.statement.epsilon_by_group, strict=True))
    assert max(costs.values()) == pytest.approx(one.statement.epsilon)
    assert min(costs.values()) < 0.7 * max(costs.values())
    with (tmp_path / "run" / "not_private" / "participation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 11
    assert {row["public.region"] for row in rows} == {"n", "s"}
    summary = json.loads((tmp_path / "run" / "not_private" / "participation.json").read_text())["runs"][0]
    assert sum(int(row["rounds"]) for row in rows) == sum(summary["drawn_cohorts"])
    assert summary["planned_cohorts"] == pytest.approx([4, 4, 4])
    for group in summary["perplexity_by_group"]["region"]:
        assert group["low"] <= group["perplexity"] <= group["high"]
    assert sum(group["users"] for group in summary["perplexity_by_group"]["region"]) == 3
    assert result.rows[0].epsilon == one.statement.epsilon
    assert processes.run("verify", str(tmp_path / "run")).returncode == 0


def test_each_round_is_in_the_ledger_as_what_it_released(tmp_path: Path) -> None:
    run(study_of(GrowingSelector(0.2, 0.6, 3)), UserWise(rounds=3), tmp_path / "run")
    lines = (tmp_path / "run" / "ledger" / "user_wise-seed0.jsonl").read_text().splitlines()
    released = [json.loads(line)["release"]["groups"] for line in lines if '"release"' in line]
    assert [groups[0][0][0] for groups in released] == pytest.approx([0.2, 0.4, 0.6])


def test_a_checkpoint_has_a_digest_of_the_groups_that_are_promised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of groups and rounds would be written again in every round."""
    digests = set()
    for users in (2, 3):
        folder = tmp_path / str(users)
        killed_in(3, monkeypatch, study_of(StratifiedSelector("region", users)), folder)
        noted = [text for file in folder.rglob("*.json") if '"promise"' in (text := file.read_text())]
        digests |= {json.loads(text)["notes"]["promise"]["release"]["groups"] for text in noted}
        assert run(study_of(StratifiedSelector("region", users)), UserWise(rounds=3), folder, resume=True).rows
    assert {len(digest) for digest in digests} == {64}
    assert len(digests) == 2


@dataclass(frozen=True)
class Doubled:
    """Everybody with probability 0.5; the weight is as said."""

    weight: float = 2.0

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        return 0.5

    def weights(self, round: int, population: Population) -> np.ndarray:
        return np.full(len(population), self.weight)

    def denominator(self, round: int, population: Population) -> float:
        return 5.0


def test_a_weight_of_two_needs_twice_the_noise(tmp_path: Path) -> None:
    budget = {"delta": 1e-3, "epsilon": 4.0}
    noise = [stated_noise(study_of(Doubled(weight), budget=budget), tmp_path / str(weight)) for weight in (1.0, 2.0)]
    assert noise[1] == pytest.approx(2 * noise[0], rel=2e-2)


def stated_noise(study: Study, folder: Path) -> float:
    """The noise multiplier of a run."""
    run(study, UserWise(rounds=1), folder)
    found = stated(folder).runs[0].statement.noise_multiplier
    assert found is not None
    return found


@dataclass(frozen=True)
class Calms:
    """Takes fewer users once what was released was large; keeps what it was told."""

    def most(self, round: int, population: Population) -> float:
        return 0.8

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        SEEN.append((round, dict(past.norms)))
        return 0.8 / (1 + min(past.norms.get(round - 1, 0.0), 1.0))


SEEN: list[tuple[int, dict[int, float]]] = []


def test_a_selector_that_follows_the_past_is_told_the_same_after_a_kill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SEEN.clear()
    run(study_of(Calms()), UserWise(rounds=3), tmp_path / "whole")
    told = dict(SEEN)
    assert sorted(told[3]) == [1, 2]
    killed_in(3, monkeypatch, study_of(Calms()), tmp_path / "broken")
    SEEN.clear()
    run(study_of(Calms()), UserWise(rounds=3), tmp_path / "broken", resume=True)
    assert dict(SEEN)[3] == told[3]
    assert weights_in(tmp_path / "broken") == weights_in(tmp_path / "whole")


HALVES: list[int] = []


class Swapping:
    """One half of the users in the first two rounds, the other in the last: which half, it is told from outside."""

    def probabilities(self, round: int, population: Population, past: Past) -> np.ndarray:
        half = np.arange(len(population)) % 2 == HALVES[-1]
        return np.where(half, 1.0 if round < 3 else 0.0, 0.0 if round < 3 else 1.0)


@pytest.mark.parametrize("source", ["seeded", "os"])
def test_a_resume_with_others_in_the_groups_is_refused(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else users would be in three rounds who were accounted for in two."""
    HALVES.append(0)
    killed_in(3, monkeypatch, study_of(Swapping(), noise=source), tmp_path / "run")
    HALVES.append(1)
    with pytest.raises(CheckpointError, match=r"the selection \(\w+\) draws other users"):
        run(study_of(Swapping(), noise=source), UserWise(rounds=3), tmp_path / "run", resume=True)
    HALVES.append(0)
    run(study_of(Swapping(), noise=source), UserWise(rounds=3), tmp_path / "run", resume=True)


def test_a_round_that_was_released_is_not_released_again_with_other_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    HALVES.append(0)
    inner = UserLevelDP._adapt_clip_norm

    def dies(self: UserLevelDP, round: int, collected: Any) -> None:
        if round == 1:
            raise Killed
        inner(self, round, collected)

    with monkeypatch.context() as patch:
        patch.setattr(UserLevelDP, "_adapt_clip_norm", dies)
        with pytest.raises(Killed):
            run(study_of(Swapping()), UserWise(rounds=3), tmp_path / "run")
    HALVES.append(1)
    with pytest.raises(CheckpointError, match=r"the selection \(\w+\) draws other users"):
        run(study_of(Swapping()), UserWise(rounds=3), tmp_path / "run", resume=True)


ASKED: list[int] = []


class Wavering:
    """States other probabilities whenever the three rounds of a run are asked for."""

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        ASKED.append(round)
        return 0.1 + 0.2 * (len(ASKED) // 3 % 4)


def test_records_are_sampled_with_the_probability_that_was_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float] = []
    from fedsim_userdp.mechanisms import centralized

    class Watched(centralized.CentralSettings):
        def __post_init__(self) -> None:
            seen.append(self.sampling_prob)

    monkeypatch.setattr(centralized, "CentralSettings", Watched)
    run(study_of(Wavering()), RecordLevelDP(rounds=3), tmp_path / "run")
    release = stated(tmp_path / "run").runs[0].statement.release
    assert isinstance(release, acc.RecordLevel)
    assert seen == [release.sampling_prob]


def test_adaptive_clipping_passes_over_rounds_in_which_nobody_can_take_part(tmp_path: Path) -> None:
    hours = {**FACTS, "available_from": [0] * 14, "available_to": [2] * 14}
    run(study_of(AvailabilitySelector(0.5), public=hours), UserWiseAdaptive(rounds=4), tmp_path / "run")
    assert stated(tmp_path / "run").runs[0].statement.rounds == 4


def test_public_columns_of_any_name_stand_beside_who_took_part(tmp_path: Path) -> None:
    odd = {"user_id": FACTS["user_id"], "user": ["x"] * 14, "rounds": [99] * 14}
    run(study_of(GrowingSelector(0.3, 0.5, 2), public=odd), UserWise(rounds=2), tmp_path / "run")
    with (tmp_path / "run" / "not_private" / "participation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["user"] for row in rows] == [str(number) for number in range(11)]
    assert {row["public.rounds"] for row in rows} == {"99"}


def test_a_joint_statement_with_places_is_for_records_that_are_replaced_in_place(tmp_path: Path) -> None:
    release = declared_release(StratifiedSelector("region", 2), 2.0, facts_population(), 2)
    whole = acc.FixedSize(2.0, 14, 5, 2)
    runs = [
        StatedRun(PrivacyStatement("user", one, name, num_users=14, rounds=2, delta=1e-3, clip_norm=1.0), 0)
        for name, one in (("stratified", release), ("fixed", whole))
    ]
    assert "their place" in str(JointStatement(tuple(runs)).adjacency)
    assert "their place" not in str(JointStatement(tuple(runs[1:])).adjacency)


def facts_population() -> Population:
    """The fourteen users with their regions."""
    return Population(np.arange(14, dtype=np.uint64), {"region": np.array(FACTS["region"])})


def test_other_public_facts_cannot_go_on_with_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killed_in(2, monkeypatch, study_of(StratifiedSelector("region", 2)), tmp_path / "run")
    other = {**FACTS, "records": [2] * 14}
    allowed = {"every": 1, "allow_changes": True}
    study = study_of(StratifiedSelector("region", 2), public=other, checkpoint=allowed)
    with pytest.raises(CheckpointError, match="public facts cannot change within a run"):
        run(study, UserWise(rounds=3), tmp_path / "run", resume=True)
    run(study_of(StratifiedSelector("region", 2)), UserWise(rounds=3), tmp_path / "run", resume=True)


def test_other_public_facts_give_other_noise_under_one_seed(tmp_path: Path) -> None:
    other = {**FACTS, "records": [2] * 14}
    for name, facts in (("one", FACTS), ("again", FACTS), ("other", other)):
        run(study_of(GrowingSelector(0.3, 0.5, 2), public=facts), UserWise(rounds=2), tmp_path / name)
    assert weights_in(tmp_path / "one") == weights_in(tmp_path / "again") != weights_in(tmp_path / "other")


def test_the_command_reads_the_facts_from_a_file_and_python_goes_on_with_it(tmp_path: Path) -> None:
    (tmp_path / "users.csv").write_text(CSV)
    rows = "".join(json.dumps({"user_id": user, "text": text}) + "\n" for user, text in PAIRS)
    (tmp_path / "texts.jsonl").write_text(rows)
    selector = StratifiedSelector("region", 2)
    study = study_of(selector, tmp_path / "texts.jsonl", public=tmp_path / "users.csv", cache_dir=tmp_path / "cache")
    run(study, UserWise(rounds=2), tmp_path / "python")
    run_command(
        "run",
        [
            "data=jsonl", f"data.path={tmp_path / 'texts.jsonl'}", "selection=stratified", "selection.column=region",
            "selection.users_per_group=2", f"selection.public={tmp_path / 'users.csv'}", "split.heldout_users=3",
            "tokens.min_words=0", "tokens.window=16", "threads=1", "model.device=cpu", "evaluation.every=100",
            "mechanism.rounds=2", f"cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'command'}",
        ],
    )  # fmt: skip
    assert weights_in(tmp_path / "python") == weights_in(tmp_path / "command")
    page = (tmp_path / "command" / "PRIVACY.md").read_text()
    assert "what selection.public says of each user, who is in it, and how many there are of each kind" in page


def test_users_without_public_facts_are_counted_and_refused_unwritten(tmp_path: Path) -> None:
    few = {name: values[:5] for name, values in FACTS.items()}
    with pytest.raises(DataError, match="of 11 training users have no row of public facts"):
        run(study_of(StratifiedSelector("region", 2), public=few), UserWise(rounds=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_column_that_a_selector_misses_is_said_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no column 'country' of public facts; they have region, records"):
        run(study_of(StratifiedSelector("country", 2)), UserWise(rounds=1), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_comparison_takes_any_selection_and_samples_records_as_often_in_the_mean(tmp_path: Path) -> None:
    study = study_of(GrowingSelector(0.2, 0.6, 3))
    rows = compare(study, [UserWise(rounds=3), RecordLevelDP(rounds=3)], tmp_path / "run").rows
    assert rows[1].sampling_prob == pytest.approx(0.4)


def test_adaptive_clipping_takes_probabilities_that_change_and_refuses_weights(tmp_path: Path) -> None:
    run(study_of(GrowingSelector(0.3, 0.6, 3)), UserWiseAdaptive(rounds=3), tmp_path / "run")
    release = stated(tmp_path / "run").runs[0].statement.release
    assert isinstance(release, acc.AdaptiveClipping)
    with pytest.raises(ConfigError, match="gives them weights, which a count has none of: use mechanism=user_wise"):
        run(study_of(ImportanceSelector("records", 4)), UserWiseAdaptive(rounds=3), tmp_path / "weighted")


def test_the_command_compares_selections_and_its_folder_can_be_verified(
    tmp_path: Path, processes: Zygote, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.csv").write_text(CSV)
    rows = "".join(json.dumps({"user_id": user, "text": text}) + "\n" for user, text in PAIRS)
    (tmp_path / "texts.jsonl").write_text(rows)
    run_command(
        "compare",
        [
            "data=jsonl", f"data.path={tmp_path / 'texts.jsonl'}", f"selection.public={tmp_path / 'users.csv'}",
            "compare.selections=[poisson,{selection: stratified, users_per_group: 2}]",
            "compare.mechanisms=[user_wise]", "selection.sampling_prob=0.4", "split.heldout_users=3",
            "tokens.min_words=0", "tokens.window=16",
            "threads=1", "model.device=cpu", "evaluation.every=100", "tuned.rounds=1",
            f"cache_dir={tmp_path / 'cache'}", f"output_dir={tmp_path / 'run'}",
        ],
    )  # fmt: skip
    assert "user_wise_poisson 4.4, user_wise_stratified 4\n" in capsys.readouterr().out  # 0.4 of 11 users
    promised = {one.statement.mechanism: one.statement for one in stated(tmp_path / "run").runs}
    assert list(promised) == ["user_wise_poisson", "user_wise_stratified"]
    assert promised["user_wise_poisson"].epsilon_by_group == ()
    assert len(promised["user_wise_stratified"].epsilon_by_group) == 2
    assert processes.run("verify", str(tmp_path / "run")).returncode == 0


def test_a_class_that_states_probabilities_is_assumed_to_follow_what_is_public_and_draws_nothing(
    tmp_path: Path,
) -> None:
    run(study_of(Doubled(1.0), noise="os"), UserWise(rounds=1), tmp_path / "run")
    (one,) = stated(tmp_path / "run").runs
    name = f"{__name__}.Doubled"
    said = f"the cohorts are kept secret, and what {name} states follows from public facts and from what was released"
    assert any(each.startswith(said) for each in one.statement.assumptions)
    assert "the cohorts from a secret key" in one.statement.noise


@dataclass(frozen=True)
class OneInMany:
    """Takes everybody, with a weight as large as is said."""

    weight: float = 1e8

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        return 1.0

    def weights(self, round: int, population: Population) -> np.ndarray:
        return np.full(len(population), self.weight)


def test_a_weight_that_lifts_sums_out_of_float32_is_refused(tmp_path: Path) -> None:
    """Else one user's update decides whether a round is released at all."""
    with pytest.raises(ConfigError, match=r"a weight of 1e\+08.*clip_norm=1e\+25 must be at most 1e\+30"):
        run(study_of(OneInMany()), UserWise(rounds=1, clip_norm=1e25), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@dataclass(frozen=True)
class WritesHashes:
    """Gives all users the hash of one, and so one coin."""

    def probabilities(self, round: int, population: Population, past: Past) -> float:
        hashes: Any = population.id_hashes
        while hashes is not None:
            if isinstance(hashes, np.ndarray):
                hashes.setflags(write=True)
                hashes[:] = hashes[0]
            hashes = getattr(hashes, "base", None)
        return 0.5


def test_nobody_can_write_to_the_hashes_that_coins_are_drawn_by(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="WRITEABLE"):
        run(study_of(WritesHashes()), UserWise(rounds=1), tmp_path / "run")
    hashes: Any = Population.numbered(3).id_hashes
    while isinstance(hashes, np.ndarray):
        assert not hashes.flags.writeable
        with pytest.raises(ValueError, match="WRITEABLE"):
            hashes.setflags(write=True)
        hashes = hashes.base


def test_who_trains_cannot_be_changed_in_place_after_the_study_was_made() -> None:
    """Else one person could be all users, and the sum move by as many clip norms."""
    study = study_of(StratifiedSelector("region", 2))
    for values in (study.split.train, study.split.heldout, study.split.validation):
        assert not values.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        study.split.train[1:] = study.split.train[0]


@pytest.mark.parametrize("mechanism", [UserWise(rounds=2), UserWiseAdaptive(rounds=2)])
def test_no_promise_is_made_for_growth_over_other_rounds_than_the_run_has(mechanism: UserWise) -> None:
    with pytest.raises(ConfigError, match=r"selection\.rounds=3 must be the run's number of rounds, 2"):
        mechanism.guarantee(study_of(GrowingSelector(0.2, 0.6, 3)))
