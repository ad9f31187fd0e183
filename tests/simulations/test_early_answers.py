"""What is asked amiss is answered before anything trains, and what is shown for comparison stops no run."""

import math

import pytest
from omegaconf import OmegaConf

from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.guarantee import Guarantee
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.simulations.audit import claims_of
from fedsim_userdp.simulations.compare import compared_runs


def test_noise_too_little_for_an_accountant_leaves_its_column_empty_and_the_promise_as_it_is() -> None:
    release = acc.calibrate(acc.RecordLevel(1.0, 0.1, 5, 4), epsilon=1e6, delta=1e-3, method="group")
    promise = Guarantee(release, "group", 1e-3, "user")
    assert promise.epsilon is not None
    assert 0.99e6 <= promise.epsilon <= 1e6
    assert promise.epsilon_by("tight") is None
    assert promise.epsilon_by("record") is not None


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


def test_claims_to_audit_may_be_infinite_as_yaml_spells_it() -> None:
    config = OmegaConf.create({"audit": {"epsilons": [1, ".inf"]}})
    assert claims_of(config) == (1.0, math.inf)
