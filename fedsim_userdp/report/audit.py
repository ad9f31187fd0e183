"""What `fedsim audit` says: two tables, plain words, and the files `audit.json` and `audit.csv`."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from rich.table import Table

from fedsim_userdp.privacy.figures import in_column, in_powers
from fedsim_userdp.report.files import write_csv, write_json

GAMES = {"which_direction": "which direction", "in_or_out": "in or out"}
LIMITS = """\
An audit can refute a claim; it cannot confirm one. "not refuted" proves nothing: the canaries show the mistakes they
were made for, of a size that so few of them can show in one run. "at most" is the largest bound that the test could
have given; it cannot refute a claim above that. The claim itself rests on the proof and on the accounting."""
_LEGEND = """\
{confidence:.0%} confidence for all bounds together: if every claim holds, the chance that any of them is refuted is
at most {chance:.0%}. bound: lower bound on epsilon from right guesses about {canaries} canary users, each in by a coin.
one-shot: a rough estimate from the final model alone, no bound. AUC, TPR: user inference from the text of training and
held-out users; 0.5 and the false positive rate are chance. {not_private}."""
NOT_PRIVATE = "Computed from users' text and from the canaries' secrets without noise: none of it is private"


@dataclass(frozen=True)
class AuditRow:
    """One test of one audited run, a row of `audit.csv`.

    Attributes:
        claimed_epsilon: user-level epsilon that the run claims, None where it claims nothing (epsilon = infinity).
        delta: the claim's delta.
        test: "which_direction" or "in_or_out".
        num_canaries: canaries with a fair coin each.
        num_candidates: directions that each canary chose from.
        num_guesses: canaries that were guessed.
        num_correct: right guesses.
        lower_bound: on epsilon.
        ceiling: the bound that all guesses being right would have given.
        confidence: that all bounds of the audit hold together.
        significance: of this test.
        verdict: "refuted", "not refuted" or "no claim".
    """

    claimed_epsilon: float | None
    delta: float
    test: str
    num_canaries: int
    num_candidates: int
    num_guesses: int
    num_correct: int
    lower_bound: float
    ceiling: float
    confidence: float
    significance: float
    verdict: str


@dataclass(frozen=True)
class AuditedClaim:
    """One audited run.

    Attributes:
        claimed_epsilon: see `AuditRow`.
        target_epsilon: epsilon that the noise was calibrated to, None for infinity.
        delta: the claim's delta.
        noise_multiplier: standard deviation of the noise on the sum, divided by `clip_norm`; 0 without noise.
        clip_norm: bound on the norm of a user's update.
        rounds: releases.
        sampling_prob: expected share of the users in a round.
        num_users: real users and canaries.
        canaries: by kind, how many were planted, took part, were guessed by *which direction*, and rightly so.
        estimate: one-shot estimate of epsilon from the final model; None where there is none, or it is infinite.
        estimate_spread: quantiles over resampled canaries, ends None where infinite; None where there is no estimate.
        auc: area under the ROC curve of user inference.
        auc_interval: 95% interval.
        false_positive_rate: where `true_positive_rate` is measured.
        true_positive_rate: of user inference.
        true_positive_interval: 95% interval.
        curve: false and true positive rates.
        num_members: training users whose text was tried.
        num_others: held-out users whose text was tried.
        observer: what somebody who knows all that is published tells of cohorts and noise, in words.
        is_secret_found: whether that is something that the run's statement takes as secret.
        is_secret_shared: whether an earlier run has the same noise or secret cohorts, against their joint statement.
        observed: the same in numbers, by name.
        seconds: wall-clock time of run and audit.
        tests: the tests.
    """

    claimed_epsilon: float | None
    target_epsilon: float | None
    delta: float
    noise_multiplier: float
    clip_norm: float
    rounds: int
    sampling_prob: float
    num_users: int
    canaries: dict[str, dict[str, int]]
    estimate: float | None
    estimate_spread: tuple[float | None, float | None] | None
    auc: float
    auc_interval: tuple[float, float]
    false_positive_rate: float
    true_positive_rate: float
    true_positive_interval: tuple[float, float]
    curve: tuple[list[float], list[float]]
    num_members: int
    num_others: int
    observer: str
    is_secret_found: bool
    is_secret_shared: bool
    observed: dict[str, float]
    seconds: float
    tests: tuple[AuditRow, ...]

    @property
    def is_refuted(self) -> bool:
        """Whether one of the tests or the observer refuted what the run claims, alone or with others."""
        return self.is_claim_refuted or self.is_secret_shared

    @property
    def is_claim_refuted(self) -> bool:
        """Whether one of the tests refuted the run's own claim, or the observer found what it takes as secret."""
        is_found = self.is_secret_found or any(row.verdict == "refuted" for row in self.tests)
        return self.claimed_epsilon is not None and is_found


def verdict_on(claimed_epsilon: float | None, lower_bound: float) -> str:
    """Returns what a bound says about a claim."""
    if claimed_epsilon is None:
        return "no claim"
    return "refuted" if lower_bound > claimed_epsilon else "not refuted"


def bounds_table(claims: Sequence[AuditedClaim]) -> Table:
    """Returns the tests as a table, a section for each claim."""
    table = Table()
    for heading in ("claimed", "delta", "test", "guesses", "right", "bound", "at most", "verdict"):
        table.add_column(heading, justify="left" if heading in ("test", "verdict") else "right", no_wrap=True)
    for claim in claims:
        for row in claim.tests:
            table.add_row(
                _epsilon(row.claimed_epsilon),
                in_powers(row.delta),
                GAMES[row.test],
                str(row.num_guesses),
                str(row.num_correct),
                f"{row.lower_bound:.2f}",
                f"{row.ceiling:.2f}",
                f"[bold red]{row.verdict}[/]" if row.verdict == "refuted" else row.verdict,
            )
        table.add_section()
    return table


def attacks_table(claims: Sequence[AuditedClaim]) -> Table:
    """Returns the estimates without confidence and user inference as a table."""
    table = Table()
    rates = {claim.false_positive_rate for claim in claims}
    at = f"{rates.pop():.0%}" if len(rates) == 1 else "low"
    for heading in ("claimed", "noise", "one-shot", "spread", "AUC", "95%", f"TPR at {at} FPR", "95%"):
        table.add_column(heading, justify="right", no_wrap=True)
    for claim in claims:
        table.add_row(
            _epsilon(claim.claimed_epsilon),
            f"{claim.noise_multiplier:.3f}" if claim.noise_multiplier else "-",
            _estimate(claim.estimate),
            "-" if claim.estimate_spread is None else "-".join(_estimate(end) for end in claim.estimate_spread),
            f"{claim.auc:.3f}",
            _interval(claim.auc_interval),
            f"{claim.true_positive_rate:.3f}",
            _interval(claim.true_positive_interval),
        )
    return table


def legend(claims: Sequence[AuditedClaim]) -> str:
    """Returns what the columns mean."""
    row = claims[0].tests[0]
    return _LEGEND.format(
        confidence=row.confidence, chance=1 - row.confidence, canaries=row.num_canaries, not_private=NOT_PRIVATE
    )


def observers(claims: Sequence[AuditedClaim]) -> list[str]:
    """Returns what the observer tells of each run."""
    names = ["no claim" if c.claimed_epsilon is None else f"epsilon {_epsilon(c.claimed_epsilon)}" for c in claims]
    return [f"{name}: {claim.observer}" for name, claim in zip(names, claims, strict=True)]


def summary(claims: Sequence[AuditedClaim]) -> str:
    """Returns the outcome in one sentence."""
    own = [_epsilon(claim.claimed_epsilon) for claim in claims if claim.is_claim_refuted]
    refuted = [f"epsilon {', '.join(own)} of the run that was audited"] if own else []
    if any(claim.is_secret_shared for claim in claims):
        refuted.append("the joint epsilon of the runs, which are not independent")
    if refuted:
        confidence = claims[0].tests[0].confidence
        return (
            f"REFUTED at {confidence:.0%} confidence: {' and '.join(refuted)}. "
            f"If every claim were true, an audit would refute one with a chance of at most {1 - confidence:.0%}."
        )
    tested = [_epsilon(claim.claimed_epsilon) for claim in claims if claim.claimed_epsilon is not None]
    return f"Not refuted: epsilon {', '.join(tested)}." if tested else "No claim to refute: the runs had no noise."


def write_audit(folder: Path, claims: Sequence[AuditedClaim]) -> None:
    """Writes `audit.csv` (the tests) and `audit.json` (everything, the limits of an audit included)."""
    rows = [{**asdict(row), "not_private": NOT_PRIVATE} for claim in claims for row in claim.tests]
    write_csv(folder / "audit.csv", [*(field.name for field in fields(AuditRow)), "not_private"], rows)
    content = {"not_private": NOT_PRIVATE, "summary": summary(claims), "limits": LIMITS.replace("\n", " ")}
    write_json(folder / "audit.json", content | {"claims": [asdict(claim) for claim in claims]})


def _epsilon(value: float | None) -> str:
    """A claimed epsilon."""
    return "none" if value is None else in_column(value)


def _estimate(value: float | None) -> str:
    """A one-shot estimate."""
    return "inf" if value is None else f"{value:.1f}"


def _interval(value: tuple[float, float]) -> str:
    """An interval."""
    return f"{value[0]:.3f}-{value[1]:.3f}"
