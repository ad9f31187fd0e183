"""Metrics decide nothing that is released: a run that goes on may have others, or none."""

import json
import shutil
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.verify import folder_checks
from tests.hostile.test_code import fedsim_run
from tests.simulations.corpora import small_settings, write_jsonl

BITS, ACCURACY = (f"fedsim_userdp.training.metrics.{name}" for name in ("BitsPerByte", "NextTokenAccuracy"))
PLUGIN = """
class Fails:
    left = 1
    def __init__(self, least=0): self.least = least
    def score(self, model, users, tokenizer):
        Fails.left -= 1
        return 1.0 if Fails.left == 0 else {}[0]
"""
CHANGES = {
    "~metrics.foo": {},
    "~metrics.foo._target_": {},
    "~metrics": {},
    "metrics={}": {},
    "++metrics.foo=null": {},
    f"metrics.foo._target_={ACCURACY}": {"foo"},
    f"+metrics.foo._target_={ACCURACY}": {"foo"},
    f"~metrics.foo +metrics.bar._target_={ACCURACY}": {"bar"},
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run whose metric failed after training."""
    folder = tmp_path_factory.mktemp("ended")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "failing_metric.py").write_text(PLUGIN)
        small = small_settings(write_jsonl(folder / "c.jsonl"), folder / "cache", rounds=2)
        metric = ["+metrics.foo._target_=failing_metric.Fails", "+metrics.foo.least=3"]
        GlobalHydra.instance().clear()
        assert run_command("run", [*small, *metric, "output_dir=run"]) == 0
    assert json.loads((folder / "run" / "results.json").read_text())[0]["metrics"] == {"foo": None}
    return folder


@pytest.mark.parametrize("changes", CHANGES)
def test_a_run_that_goes_on_may_have_other_metrics(
    changes: str, ended: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ended / "run", tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    code, said = fedsim_run(capsys, "resume=run", *changes.split())
    assert code == 0, said
    assert json.loads(Path("run/results.json").read_text())[0]["metrics"].keys() == {*CHANGES[changes]}
    assert [check.about for check in folder_checks(Path("run")) if check.problem] == []
    assert fedsim_run(capsys, "resume=run")[0] == 0, "and is gone on with as it is now"


def test_metrics_that_there_are_not_cannot_be_left_out(
    ended: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ended)
    for absent in ("~metrics.bar", "~metrics.foo.most"):
        code, said = fedsim_run(capsys, "resume=run", absent, "metrics.foo._target_=failing_metric.Fails")
        assert (code, said.count("\n")) == (2, 1), said
        assert "~metrics.NAME leaves out a metric, or a setting of one, that there is not" in said
