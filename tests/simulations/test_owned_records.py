"""Records with several owners, from the command line to the pool and the statement."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from transformers import PreTrainedTokenizerBase

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.store import open_store
from fedsim_userdp.errors import ConfigError
from fedsim_userdp.mechanisms.run import Run
from fedsim_userdp.settings import TokenSettings
from fedsim_userdp.simulations.cli import run_command
from fedsim_userdp.simulations.configured import configured_run
from tests.data.sources import MemoryCorpus, WordTokenizer
from tests.simulations.small_runs import small_run, small_store, with_changes

K = 3
NUM_SENDERS, NUM_PEOPLE = 20, 30
WORDS = ["gas", "desk", "opens", "nine", "today", "send", "curve", "before", "lunch", "contract", "phone", "meeting"]


def write_messages(path: Path, seed: int = 0) -> list[dict[str, Any]]:
    """Messages to up to four people each; every text is told apart by its number."""
    generator = np.random.default_rng(seed)
    rows = []
    for number in range(200):
        to = generator.choice(NUM_PEOPLE, size=generator.integers(5), replace=False)
        text = f"{number} " + " ".join(generator.choice(WORDS, size=15))
        rows.append({"user_id": f"p{number % NUM_SENDERS}", "text": text, "to": [f"p{person}" for person in to]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


@pytest.fixture
def settings(tmp_path: Path) -> list[str]:
    """Overrides of a small run on messages with declared owners."""
    write_messages(tmp_path / "mail.jsonl")
    return [
        "data=jsonl", f"data.path={tmp_path / 'mail.jsonl'}", "data.owners_column=to",
        f"cache_dir={tmp_path.with_name(f'{tmp_path.name}-cache')}",
        "tokens.min_words=0", "tokens.window=128", "split.heldout_users=4",
        f"tuned.records_per_user={K}", "tuned.rounds=2", "selection.sampling_prob=0.5",
        f"output_dir={tmp_path / 'run'}",
    ]  # fmt: skip


def run_of(settings: list[str], folder: Path) -> Run:
    with initialize_config_module("fedsim_userdp.conf", version_base="1.3"):
        return configured_run(compose("run", overrides=settings), folder)


def numbers_of(records: list[np.ndarray], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Which messages these token ids are."""
    return [int(tokenizer.decode(record).split()[0]) for record in records]


def test_nobody_owns_more_than_k_records_of_the_pool_of_a_centralized_run(settings: list[str], tmp_path: Path) -> None:
    run = run_of([*settings, "mechanism=group_privacy"], tmp_path)
    rows = write_messages(tmp_path / "mail.jsonl")
    pool = numbers_of([unit.records[0] for unit in run.pool(K).units], run.study.model.load_tokenizer())
    owned = Counter(person for number in pool for person in {rows[number]["user_id"], *rows[number]["to"]})
    assert max(owned.values()) == K
    assert len(pool) == len(set(pool)) >= K
    training = {run.study.store.user_id(int(user)) for user in run.study.split.train}
    assert {rows[number]["user_id"] for number in pool} <= training
    # Nothing was left out for nothing: any other record of a training user has an owner who has k already.
    for number, row in enumerate(rows):
        if number not in pool and row["user_id"] in training:
            assert any(owned[person] == K for person in {row["user_id"], *row["to"]})


def test_capping_each_user_alone_would_break_the_bound(settings: list[str], tmp_path: Path) -> None:
    run = run_of([o for o in settings if not o.startswith("data.owners")], tmp_path)
    rows = write_messages(tmp_path / "mail.jsonl")
    pool = numbers_of([unit.records[0] for unit in run.pool(K).units], run.study.model.load_tokenizer())
    owned = Counter(person for number in pool for person in {rows[number]["user_id"], *rows[number]["to"]})
    assert max(owned.values()) > 2 * K


def test_another_persons_text_never_changes_which_records_are_used(settings: list[str], tmp_path: Path) -> None:
    before = run_of(settings, tmp_path)
    rows = write_messages(tmp_path / "mail.jsonl")
    for row in rows:
        if row["user_id"] == "p1" or "p1" in row["to"]:
            row["text"] = "" if row["user_id"] == "p1" else "x " + str(row["text"])
    (tmp_path / "mail.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    after = with_changes(run_of(settings, tmp_path), keys=before.keys)
    pools = [run.pool(K) for run in (before, after)]
    assert pools[0].places.tolist() == pools[1].places.tolist()
    for place, *units in zip(pools[0].places, *(pool.units for pool in pools), strict=True):
        row = rows[int(place)]
        if row["user_id"] != "p1" and "p1" not in row["to"]:
            assert units[0].records[0].tolist() == units[1].records[0].tolist()


def test_delta_counts_everybody_who_is_protected(settings: list[str], tmp_path: Path) -> None:
    run = run_of(settings, tmp_path)
    assert run.study.num_users == NUM_SENDERS - 4
    assert run.study.num_protected == NUM_PEOPLE
    assert run.study.target.delta == pytest.approx(NUM_PEOPLE**-1.1)


@pytest.mark.parametrize("mechanism", ["group_privacy", "example_level_tight"])
def test_a_centralized_run_claims_its_epsilon_for_all_owners(
    settings: list[str], tmp_path: Path, mechanism: str
) -> None:
    assert run_command("run", [*settings, f"mechanism={mechanism}"]) == 0
    (statement,) = json.loads((tmp_path / "run" / "privacy.json").read_text())["runs"]
    assert (statement["ownership"], statement["level"], statement["num_users"]) == ("declared", "user", NUM_PEOPLE)
    assert 7.5 < statement["epsilon"] <= 8
    assert statement["adjacency"].startswith("blank all records of one owner")
    (row,) = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "blank all records of one owner" in row["guarantee"]
    described = json.loads((tmp_path / "run" / "not_private" / "data.json").read_text())
    assert described["ownership"] == "declared"


def test_without_declared_owners_the_claim_is_for_the_user_a_record_is_filed_under(
    settings: list[str], tmp_path: Path
) -> None:
    settings = [override for override in settings if not override.startswith("data.owners")]
    assert run_command("run", [*settings, "mechanism=user_wise"]) == 0
    (statement,) = json.loads((tmp_path / "run" / "privacy.json").read_text())["runs"]
    assert statement["ownership"] == "assigned"
    assert "recipients, are not covered" in (tmp_path / "run" / "PRIVACY.md").read_text()


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["mechanism=user_wise"], "clipping a user's update bounds nobody else's part"),
        (
            ["mechanism=user_wise", "selection=cyclic", "selection.cohort_size=4"],
            "clipping a user's update bounds nobody else's part",
        ),
        (["mechanism=group_privacy", "records=longest"], "only records=random keeps everybody within k"),
        (["mechanism=group_privacy", "records=random_chunk"], "only records=random keeps everybody within k"),
        (["mechanism=non_private", "records=shortest"], "only records=random keeps everybody within k"),
    ],
)
def test_what_cannot_be_claimed_for_all_owners_is_refused(
    settings: list[str], overrides: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    without_selection = [o for o in settings if not (o.startswith("selection.") and "selection=cyclic" in overrides)]
    with pytest.raises(SystemExit) as stop:
        run_command("run", [*without_selection, *overrides])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err
    assert not list((tmp_path / "run").glob("adapters/*"))


def test_user_wise_training_without_noise_claims_nothing_and_runs(settings: list[str], tmp_path: Path) -> None:
    assert run_command("run", [*settings, "mechanism=user_wise", "privacy.epsilon=inf"]) == 0
    (statement,) = json.loads((tmp_path / "run" / "privacy.json").read_text())["runs"]
    assert (statement["level"], statement["epsilon"]) == ("nobody", None)


def test_no_pool_has_a_record_longer_than_the_window_whoever_owns_it(tmp_path: Path) -> None:
    plain = small_store(tmp_path / "plain")
    owned = MemoryCorpus([Record("a", "one two three four five", ("b",)), Record("b", "one two", ("a",))])
    with_owners = open_store(owned, WordTokenizer(), TokenSettings(window=16, min_words=0, min_tokens=2), tmp_path)
    for store, origin in ((plain, "records=RandomRecords"), (with_owners, "the store of records with several owners")):
        run = small_run(tmp_path / "run", plain)
        assert len(with_changes(run, store=store, window=12).pool(3))
        with pytest.raises(ConfigError, match=rf"^{origin} returned a record of more than tokens\.window = 5 tokens$"):
            with_changes(run, store=store, window=5).pool(3)
