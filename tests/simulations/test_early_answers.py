"""What is asked amiss is answered before anything trains, and what is shown for comparison stops no run."""

import math
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.guarantee import Guarantee
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.simulations.audit import claims_of
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.compare import compared_runs
from tests.simulations.corpora import small_settings, write_jsonl


def test_noise_too_little_for_an_accountant_leaves_its_column_empty_and_the_promise_as_it_is() -> None:
    release = acc.calibrate(acc.RecordLevel(1.0, 0.1, 5, 4), epsilon=1e6, delta=1e-3, method="group")
    promise = Guarantee(release, "group", 1e-3, "user")
    assert promise.epsilon is not None
    assert 0.99e6 <= promise.epsilon <= 1e6
    assert promise.epsilon_by("tight") is None
    assert promise.epsilon_by("record") is not None


def test_a_comparison_of_selections_trains_each_mechanism_with_each_and_the_untrained_model_once() -> None:
    named = ["poisson", {"selection": "stratified", "users_per_group": 3}, {"selection": "growing", "name": "slow"}]
    compared = {"mechanisms": ["zero_shot", "user_wise"], "selections": named, "seeds": None}
    found = compared_runs(OmegaConf.create({"seed": 1, "compare": compared}))
    assert [one.get("mechanism.name", one["mechanism"]) for one in found] == [
        "zero_shot", "user_wise_poisson", "user_wise_stratified", "user_wise_slow",
    ]  # fmt: skip
    assert found[2]["selection"] == "stratified"
    assert found[2]["selection.users_per_group"] == 3


@pytest.mark.parametrize("selections", [[], ["poisson", "poisson"], [3], [{"users_per_group": 3}]])
def test_what_is_no_list_of_selections_is_refused(selections: list[object]) -> None:
    compared = {"mechanisms": ["user_wise"], "selections": selections, "seeds": None}
    with pytest.raises(ConfigError, match=r"compare\.selections"):
        compared_runs(OmegaConf.create({"seed": 1, "compare": compared}))


@pytest.mark.parametrize(
    ("mechanisms", "seeds", "said"),
    [
        (["user_wise"], [1, 1], r"compare\.seeds=\[1, 1\] names 1 twice"),
        (["user_wise", "zero_shot", "user_wise"], None, "names user_wise twice"),
        (["user_wise"], [], "compare.seeds is empty"),
    ],
)
def test_a_comparison_names_each_run_once(mechanisms: list[str], seeds: list[int] | None, said: str) -> None:
    config = OmegaConf.create({"seed": 1, "compare": {"mechanisms": mechanisms, "seeds": seeds}})
    with pytest.raises(ConfigError, match=said):
        compared_runs(config)


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        (["tuned.record_level.clip_norm=0.1"], "tuned.record_level.clip_norm"),
        (["mechanism.clip_norm=0.2", "tuned.user_wise.clip_norm=0.1"], "tuned.user_wise.clip_norm"),
        (["compare.mechanisms=[zero_shot]", "mechanism.clip_norm=0.2"], "mechanism.clip_norm"),
        (["compare.selections=[growing]", "selection.sampling_prob=0.2"], "selection.sampling_prob"),
        (
            ["compare.mechanisms=[zero_shot,{mechanism: user_wise, clip_norm: 0.1}]", "mechanism.clip_norm=0.2"],
            "mechanism.clip_norm",
        ),
    ],
)
def test_a_setting_that_changes_no_mechanism_of_a_comparison_is_refused(
    settings: list[str], key: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        run_command("compare", ["compare.mechanisms=[user_wise]", *settings, f"output_dir={tmp_path / 'run'}"])
    assert stop.value.code == 2
    assert f"{key} has no effect here: no " in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_setting_of_another_mechanism_than_the_one_that_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        run_command("run", ["mechanism=user_wise", "tuned.non_private.learning_rate=1", f"output_dir={tmp_path / 'x'}"])
    assert stop.value.code == 2
    assert "tuned.non_private.learning_rate has no effect here" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_claims_to_audit_may_be_infinite_as_yaml_spells_it() -> None:
    config = OmegaConf.create({"audit": {"epsilons": [1, ".inf"]}})
    assert claims_of(config) == (1.0, math.inf)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("model.activation_checkpointing=true", "activation_checkpointing does not work with Opacus"),
        ("lora.target_modules=[wpe,c_attn]", "lora.target_modules: Opacus cannot do wpe"),
    ],
)
def test_what_only_opacus_refuses_is_refused_before_another_mechanism_trains(
    setting: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    settings = small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=1)
    mechanisms = "compare.mechanisms=[user_wise,group_privacy]"
    GlobalHydra.instance().clear()
    with pytest.raises(SystemExit) as stop:
        run_command("compare", [*settings, mechanisms, setting, f"output_dir={tmp_path / 'run'}"])
    heard = capsys.readouterr()
    assert stop.value.code == 2
    assert said in heard.err
    assert "user_wise" not in heard.out
    assert not (tmp_path / "run").exists()
