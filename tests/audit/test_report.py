import csv
import json
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from fedsim_userdp.report.audit import (
    AuditedClaim,
    AuditRow,
    attacks_table,
    bounds_table,
    legend,
    observers,
    summary,
    verdict_on,
    write_audit,
)
from fedsim_userdp.report.audit_plot import plot_audit
from fedsim_userdp.report.audit_progress import StepProgress


def claim_of(claimed: float | None, bound: float) -> AuditedClaim:
    row = AuditRow(
        claimed, 1e-6, "which_direction", 450, 32768, 56, 3, bound, 13.1, 0.95, 0.00625, verdict_on(claimed, bound)
    )
    return AuditedClaim(
        claimed_epsilon=claimed,
        target_epsilon=claimed,
        delta=1e-6,
        noise_multiplier=0.0 if claimed is None else 0.6,
        clip_norm=0.3,
        rounds=18,
        sampling_prob=0.05,
        num_users=1255,
        canaries={"direction": {"planted": 450, "included": 222, "guessed": 56, "right": 3}},
        estimate=None if claimed is None else 1.5,
        estimate_spread=(0.5, None),
        auc=0.52,
        auc_interval=(0.48, 0.56),
        false_positive_rate=0.05,
        true_positive_rate=0.07,
        true_positive_interval=(0.05, 0.09),
        curve=([0.0, 0.5, 1.0], [0.0, 0.55, 1.0]),
        num_members=805,
        num_others=100,
        observer="Who knows all that is published: cohorts not better than chance. Nothing is gained from it.",
        is_secret_found=False,
        is_secret_shared=False,
        observed={"cohort_agreement": 0.05, "cohort_p": 0.4, "noise_agreement": 0.0, "noise_p": 0.5},
        seconds=12.5,
        tests=(row, replace(row, test="in_or_out", num_candidates=1)),
    )


CLAIMS = [claim_of(1.0, 0.4), claim_of(8.0, 9.5), claim_of(None, 13.1)]


def shown(*things: object) -> str:
    text = StringIO()
    console = Console(file=text, width=120)
    for thing in things:
        console.print(thing)
    return text.getvalue()


def test_a_secret_that_an_observer_finds_refutes_whatever_the_canaries_say() -> None:
    assert not CLAIMS[0].is_refuted
    assert replace(CLAIMS[0], is_secret_found=True).is_refuted
    assert observers(CLAIMS)[0].startswith("epsilon 1.00: Who knows all that is published")


def test_a_run_without_a_claim_is_never_refuted_and_named_as_such() -> None:
    found = replace(CLAIMS[2], is_secret_found=True)
    assert not found.is_refuted
    assert summary([found]) == "No claim to refute: the runs had no noise."
    assert observers([found])[0].startswith("no claim: Who knows all that is published")
    assert "none" not in summary([*CLAIMS[:1], found]) + "".join(observers([found]))


def test_secrets_that_runs_share_refute_what_they_claim_together() -> None:
    shared = replace(CLAIMS[0], is_secret_shared=True)
    assert shared.is_refuted
    assert summary([shared]).startswith("REFUTED at 95% confidence: the joint epsilon of the runs")
    assert "epsilon 8.00 of the run that was audited and the joint epsilon" in summary([shared, CLAIMS[1]])


@pytest.mark.parametrize(
    ("claimed", "bound", "verdict"),
    [(8.0, 8.0, "not refuted"), (8.0, 8.01, "refuted"), (None, 13.0, "no claim"), (1.0, 0.0, "not refuted")],
)
def test_a_claim_is_refuted_by_a_bound_above_it_only(claimed: float | None, bound: float, verdict: str) -> None:
    assert verdict_on(claimed, bound) == verdict


def test_the_tables_name_every_claim_and_what_became_of_it() -> None:
    text = shown(bounds_table(CLAIMS), attacks_table(CLAIMS), legend(CLAIMS))
    for part in ("none", "8.00", "9.50", "refuted", "not refuted", "no claim", "13.10", "0.520", "95%", "at most 5%"):
        assert part in text


def test_the_summary_says_what_is_refuted_and_never_that_a_claim_is_confirmed() -> None:
    assert summary(CLAIMS).startswith("REFUTED at 95% confidence: epsilon 8.00")
    assert "at most 5%" in summary(CLAIMS)
    assert summary(CLAIMS[:1]) == "Not refuted: epsilon 1.00."
    assert "No claim" in summary(CLAIMS[2:])


def test_the_files_hold_the_numbers_and_the_limits(tmp_path: Path) -> None:
    write_audit(tmp_path, CLAIMS)
    content = json.loads((tmp_path / "audit.json").read_text())
    assert "none of it is private" in content["not_private"]
    assert "cannot confirm" in content["limits"]
    assert [claim["claimed_epsilon"] for claim in content["claims"]] == [1.0, 8.0, None]
    with (tmp_path / "audit.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["verdict"] for row in rows] == ["not refuted"] * 2 + ["refuted"] * 2 + ["no claim"] * 2
    assert rows[-1]["claimed_epsilon"] == ""
    assert all("none of it is private" in row["not_private"] for row in rows)


def test_the_figure_is_drawn_for_one_claim_and_for_several(tmp_path: Path) -> None:
    for claims in (CLAIMS[:1], CLAIMS):
        path = tmp_path / f"{len(claims)}.png"
        plot_audit(path, claims)
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 20_000
        assert "none of it is private" in Image.open(path).info["Description"]


def test_progress_without_a_terminal_ends_each_step_with_a_line() -> None:
    text = StringIO()
    with StepProgress(Console(file=text, width=100)) as progress:
        progress.start("weighing", 3, "canaries")
        for done in (1, 2, 3):
            progress.advance(done)
    assert "weighing: 3/3 canaries" in text.getvalue()
