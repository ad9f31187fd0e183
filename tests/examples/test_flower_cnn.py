"""An ordinary Flower app, and the same one under user-level privacy, both run by Flower's own command."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.delta import default_delta
from fedsim_userdp.privacy.ledger import check_ledger
from tests.federation.test_flower_command import Programs
from tests.known import known

EXAMPLE = Path(__file__).parents[2] / "examples" / "flower_cnn"
MOST_ADDED = 10
NODES = "num-supernodes=12 client-resources-num-cpus=1"


def files_of(folder: Path) -> dict[str, list[str]]:
    kept = [path for path in sorted(folder.rglob("*")) if path.suffix in {".py", ".toml"}]
    return {str(path.relative_to(folder)): path.read_text().splitlines() for path in kept}


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Programs]:
    started = Programs(tmp_path)
    try:
        yield started
    finally:
        started.stop()


def run_to_its_end(programs: Programs, app: str, *run_config: str) -> str:
    config = ["--run-config", " ".join(run_config)] if run_config else []
    command = ["run", str(EXAMPLE / app), *config, "--federation-config", NODES, "--format", "json"]
    run_id = str(json.loads(programs.flwr(*command))["run-id"])
    programs.wait_for_log(run_id, "Final results:")
    programs.wait_for_log(run_id, "'accuracy'")
    return run_id


def test_the_private_app_is_the_ordinary_one_with_at_most_ten_added_lines() -> None:
    plain, private = files_of(EXAMPLE / "plain"), files_of(EXAMPLE / "private")
    assert plain.keys() == private.keys()
    assert len(plain) == 5
    changes = [line for name in plain for line in difflib.ndiff(plain[name], private[name])]
    added = [line for line in changes if line.startswith("+ ")]
    assert 0 < len(added) <= MOST_ADDED
    assert len([line for line in changes if line.startswith("- ")]) <= len(added)


def test_the_documentation_shows_the_added_lines() -> None:
    page = (EXAMPLE.parents[1] / "docs" / "extending.md").read_text()
    shown = [line[1:] for line in page.split("```diff")[1].split("```")[0].splitlines() if line.startswith("+")]
    plain, private = files_of(EXAMPLE / "plain"), files_of(EXAMPLE / "private")
    added = [line for name in plain for line in difflib.ndiff(plain[name], private[name]) if line.startswith("+ ")]
    assert sorted(shown) == sorted(line[2:] for line in added)


def test_the_ordinary_app_knows_nothing_of_this_package() -> None:
    assert not [line for lines in files_of(EXAMPLE / "plain").values() for line in lines if "fedsim_userdp" in line]


@pytest.mark.slow
def test_flwr_run_trains_both_and_the_private_one_states_the_accountants_epsilon(programs: Programs) -> None:
    programs.start_superlink("--simulation")
    run_to_its_end(programs, "plain")
    ledger = programs.folder / "dp-ledger.jsonl"
    run_id = run_to_its_end(programs, "private", f'ledger="{ledger}"')
    programs.wait_for_log(run_id, "user-level epsilon = ")
    log = programs.flwr("log", run_id, "--show")
    printed = float(known(re.search(r"user-level epsilon = (\S+)", log))[1])
    entries = check_ledger(ledger).entries
    assert [entry.round for entry in entries] == [1, 2, 3]
    assert len(ledger.read_text().splitlines()) == 3
    assert len({entry.release for entry in entries}) == 1
    release = entries[0].release
    assert isinstance(release, acc.PoissonUsers)
    whole = acc.PoissonUsers(release.noise_multiplier, release.sampling_prob, len(entries))
    assert printed == pytest.approx(acc.epsilon(whole, default_delta(12)), abs=1e-6)
    assert 0.98 * 8.0 <= printed <= 8.0
    assert whole.sampling_prob == 0.5
    assert "DP for users" in log
