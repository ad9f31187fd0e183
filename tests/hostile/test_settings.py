"""Odd values for every setting: refused in one sentence or taken, and what is taken trains; nothing else happens."""

import copy
import io
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf, open_dict
from rich.console import Console

from fedsim_userdp.mechanisms.settings_tree import leaves
from fedsim_userdp.models.loading import ModelSource
from fedsim_userdp.report.progress import RunProgress
from fedsim_userdp.simulations.arguments import check_types, complete_arguments
from fedsim_userdp.simulations.configured import configured_run
from tests.hostile.guard import refusing, watched
from tests.hostile.mutations import TEXTS
from tests.simulations.corpora import small_settings, write_jsonl
from tests.simulations.small_runs import remember_accounting

MECHANISMS = ("user_wise", "user_wise_adaptive", "group_privacy", "non_private", "zero_shot")
VALUES = [
    "null", "true", "false", "0", "-0.0", "1", "2", "-1", "1.5", "1e-320", "1e-9", "1e308", "1e999", "-inf", "inf",
    "nan", "9999999999999999999999999", "1" * 400, "[]", "[1,2]", "[nan]", "[[[[1]]]]", "{}", "{a:1}",
    "{_target_:os.getcwd}", "???", "${seed}", "${nosuch}", "${privacy}", "${oc.env:NOSUCH_VARIABLE}",
    "all-linear", "sgd", "a,b", "[" * 3000,
    "os.system", "random", "seeded", "os", "heldout", "cpu", "/dev/null", "/dev/zero", "/", ".",
]  # fmt: skip
LONGEST_RUN = {"mechanism.rounds": 3, "local.steps": 5, "lora.rank": 64, "mechanism.records_per_user": 2000}


def odd_values() -> st.SearchStrategy[str]:
    """Gives what might stand behind the equals sign."""
    numbers = st.one_of(st.integers().map(str), st.floats().map(str))
    return st.one_of(st.sampled_from(VALUES), st.sampled_from(TEXTS), numbers, st.text(max_size=12))


@cache
def composed(mechanism: str) -> dict[str, object]:
    """The leaves of a mechanism's configuration."""
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        config = compose("run", overrides=[f"mechanism={mechanism}", "output_dir=x", "data=jsonl"])
    return dict(leaves(OmegaConf.to_container(config, resolve=True)))


def odd_overrides() -> st.SearchStrategy[list[str]]:
    """Gives a mechanism and one or two settings with odd values."""

    def of(mechanism: str) -> st.SearchStrategy[list[str]]:
        keys = sorted(set(composed(mechanism)) - {"output_dir", "resume"})
        one = st.tuples(st.sampled_from(["", "", "", "", "", "+", "~"]), st.sampled_from(keys), odd_values())
        said = one.map(lambda parts: f"{parts[0]}{parts[1]}" + ("" if parts[0] == "~" else f"={parts[2]}"))
        return st.lists(said, min_size=1, max_size=2).map(lambda found: [f"mechanism={mechanism}", *found])

    return st.sampled_from(MECHANISMS).flatmap(of)


@pytest.fixture
def try_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A function that goes the way of `fedsim run`, but for the files of a run folder, with a loaded model at hand."""
    monkeypatch.setenv("FEDSIM_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))  # cache_dir=~ may write there
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    remember_accounting(monkeypatch)
    load, load_tokenizer, known = ModelSource.load, ModelSource.load_tokenizer, dict[str, object]()

    def quickly(real: Any, source: ModelSource) -> Any:
        if source != ModelSource(cache_dir=source.cache_dir, device=source.device):
            return real(source)
        if real.__name__ not in known:
            known[real.__name__] = real(source)
        return copy.deepcopy(known[real.__name__])

    monkeypatch.setattr(ModelSource, "load", lambda source: quickly(load, source))
    monkeypatch.setattr(ModelSource, "load_tokenizer", lambda source: quickly(load_tokenizer, source))
    monkeypatch.setattr("fedsim_userdp.simulations.arguments.hydra.compose", remembered(hydra.compose))
    base = small_settings(write_jsonl(tmp_path / "corpus.jsonl"), tmp_path / "cache", rounds=1)
    runs = iter(range(10**9))

    def run(overrides: list[str]) -> str | None:
        folder = tmp_path / f"run {next(runs)}"
        with refusing() as said:
            arguments = complete_arguments("run", [*base, *overrides, f"output_dir={folder}"])
            with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
                config = compose("run", overrides=arguments, return_hydra_config=True)
                HydraConfig.instance().set_config(config)
                with open_dict(config):
                    del config["hydra"]
                check_types(config, "run")
                OmegaConf.to_container(config, resolve=True)
                mechanism = instantiate(config.mechanism)
                configured = configured_run(config, folder)
            values = dict(leaves(OmegaConf.to_container(config, resolve=True)))
            if all(not isinstance(value := values.get(key), int) or value <= most for key, most in LONGEST_RUN.items()):
                with RunProgress(Console(file=io.StringIO())) as progress:
                    mechanism.run(configured, progress)
        return said[0] if said else None

    with watched(tmp_path, tmp_path.parent) as wrong:
        yield run
        assert [line for line in wrong if not made_nothing(line)] == []


def remembered(real: Any) -> Any:
    """A `compose` that reads the files of the same choices once."""
    composed: dict[tuple[str, ...], Any] = {}

    def compose_once(name: str, overrides: list[str]) -> Any:
        if (name, *overrides) not in composed:
            composed[name, *overrides] = real(name, overrides=overrides)
        return composed[name, *overrides]

    return compose_once


def made_nothing(line: str) -> bool:
    """Whether it was the attempt to use a file as a folder, such as cache_dir=/etc/passwd."""
    event, _, path = line.partition(" ")
    return event == "os.mkdir" and Path(path).is_file()


@pytest.mark.parametrize("num_inputs", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_odd_settings_are_refused_in_one_sentence_or_train(try_settings: Any, num_inputs: int) -> None:
    @settings(max_examples=num_inputs, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(odd_overrides())
    def run(overrides: list[str]) -> None:
        try_settings(overrides)

    run()
