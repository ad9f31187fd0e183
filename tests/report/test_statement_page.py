"""PRIVACY.md: a table, a few sentences and a joint section, on one page for one run."""

import math
from typing import Any

import pytest

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.privacy.joint import JointStatement, StatedRun
from fedsim_userdp.privacy.statement import PrivacyStatement
from fedsim_userdp.report.statement_page import page, statement_table, sweep_page
from tests.known import known

DIGEST = "a" * 64
USERS = acc.PoissonUsers(1.0, 0.05, 200)
RECORDS = acc.RecordLevel(10.0, 0.05, 200, 5)
ROWS = [
    "Unit", "A user is", "Epsilon", "Delta", "Neighbours", "Accountant", "Sampling", "Population", "Records",
    "Releases", "Clip norm",
    "Noise", "Noise source", "Whose a record is", "Settings", "Perplexity", "Assumes", "Not covered",
]  # fmt: skip


def run(release: acc.Description | None = USERS, seed: int = 0, **changes: Any) -> StatedRun:
    settings: dict[str, Any] = {
        "level": "user" if release else "nobody",
        "mechanism": "m",
        "num_users": 1000,
        "rounds": 200,
    }
    settings |= {"release": release, "delta": 1e-5 if release else None, "clip_norm": 0.3}
    settings |= {"records_per_user": getattr(release, "records_per_user", 4)}
    return StatedRun(PrivacyStatement(**{**settings, **changes}), seed)


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in table.splitlines()[2:]]


def lines_on_paper(text: str, width: int = 95) -> int:
    """Lines of the rendered text: those of Markdown, long ones broken."""
    return sum(max(1, math.ceil(len(line) / width)) for line in text.splitlines() if line.strip())


def test_a_statement_is_a_table_of_all_that_a_signer_asks_for() -> None:
    table = statement_table(run(window=64).statement)
    assert [name for name, _ in cells(table)] == ROWS
    facts = dict(cells(table))
    assert facts["Epsilon"] == rounded_up(acc.epsilon(USERS, 1e-5))
    assert facts["Delta"] == "1e-05"
    assert facts["Population"] == "1000 users"
    assert "at most 64 tokens" in facts["Records"]
    assert "0.05" in facts["Sampling"]


@pytest.mark.parametrize("source", ["os", "seeded"])
def test_a_run_with_all_that_can_be_said_of_it_fits_on_one_page(source: str) -> None:
    release = acc.AdaptiveClipping(USERS, 5.0)
    full = run(release, noise_source=source, num_searched=41, num_lost=2, fresh_records=True, window=64, delta=2e-3,
               target_epsilon=1e6, foreign=("mine.Selector",), precision="bfloat16",
               public=("N", "tokens.min_words=64", "tokens.min_tokens=8", "the split", "windows", "delta"))  # fmt: skip
    assert lines_on_paper(page([full], DIGEST)) <= 75
    assert lines_on_paper(page([run(noise_source=source)], DIGEST)) <= 62


def test_headings_tell_runs_of_one_mechanism_apart_and_the_joint_section_closes() -> None:
    text = page([run(), run(seed=1), run(RECORDS, level="user")], DIGEST)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    assert headings == ["# What is guaranteed", "## m, seed 0", "## m, seed 1", "## m, seed 0", "## All of it together"]
    assert text.count("All of it together") == 1


def test_a_claim_for_all_owners_a_record_level_and_a_non_private_run_say_whom_they_protect() -> None:
    declared = statement_table(run(RECORDS, ownership="declared").statement)
    assert dict(cells(declared))["Unit"].startswith("one person")
    assert dict(cells(declared))["Population"] == "1000 people"
    record = dict(cells(statement_table(run(RECORDS, level="record").statement)))
    assert record["Unit"] == "one record; NO user"
    assert "none for users" in record["Epsilon"]
    nobody = dict(cells(statement_table(run(None).statement)))
    assert (nobody["Unit"], nobody["Epsilon"], nobody["Not covered"]) == ("nobody", "none", "everything")


def test_a_cell_ends_where_it_should_whatever_is_in_it() -> None:
    table = statement_table(run(not_private=("a | b", "c\nd")).statement)
    assert "| Not covered | a \\| b; c d |" in table


def test_validation_users_are_called_so() -> None:
    assert "of validation users" in statement_table(run(evaluated_on="validation").statement)
    assert "of held-out users" in statement_table(run().statement)


def test_the_joint_section_has_the_figures_with_search_records_and_without_noise() -> None:
    runs = [run(num_searched=3), run(RECORDS, 1, level="record"), run(None, 2, mechanism="non_private")]
    joint, text = JointStatement(tuple(runs)), page(runs, DIGEST, sweep="..")
    assert joint.with_search is not None
    assert joint.with_record_level is not None
    assert f"| With the declared search | {rounded_up(known(joint.with_search.epsilon))} |" in text
    assert f"| With the record-level runs | {rounded_up(known(joint.with_record_level.epsilon))} |" in text
    assert "| With the runs without noise | none |" in text
    assert "`../PRIVACY.md`" in text


def test_a_sweeps_page_lists_its_runs_and_the_jobs_that_are_not_counted() -> None:
    runs = tuple(StatedRun(run().statement, 0, job) for job in ("0", "1"))
    text = sweep_page(JointStatement(runs), ["2"], DIGEST)
    assert "m, seed 0 (job 1)" in text
    assert "NOT counted, since they were still running, were stopped or are gone: jobs 2." in text
    assert "jobs 2" not in sweep_page(JointStatement(runs), [], DIGEST)


def test_what_had_not_ended_is_named_as_not_counted() -> None:
    text = page([run()], DIGEST, unfinished=["record_level, seed 0", "zero_shot, seed 0"])
    assert "NOT counted, since they had not ended: record_level, seed 0; zero_shot, seed 0." in text
    assert "NOT counted" not in page([run()], DIGEST)
