"""What must hold for a claim to be true, one sentence for each assumption."""

from collections.abc import Iterator, Sequence

from fedsim_userdp.privacy.accounting.descriptions import (
    AdaptiveClipping,
    Composed,
    Description,
    HyperparameterSearch,
    NoAmplification,
    PaidSignals,
    PoissonGroups,
    RecordLevel,
)
from fedsim_userdp.privacy.ledger.entries import NoiseSource
from fedsim_userdp.privacy.ownership import ASSUMED, Ownership

_OF_EVERY_CLAIM = (
    "the number of users and the sampling probabilities are public",
    "every contribution is clipped as a whole before the sum, and the denominator is a constant",
    "base model and tokenizer were made without the data of these users",
    "nodes fail for reasons that have nothing to do with the data of their users",
)
_GROUPS = (
    "which group a user is in, and the probability and weight of every group in every round, are public and do not "
    "depend on anybody's data"
)
_OWN_RECORDS = (
    "where one of these classes reads the users' records or chooses among them, one user's records do not depend on "
    "another user's: none is left out, cut or put first for what another user wrote"
)
_KEY = {
    "seeded": "nobody towards whom anything is claimed knows or guesses the seed, which the files of this folder tell "
    "and which is 0 where nobody set it",
    "os": "the secret key from which the cohorts derive was known to the server alone, and was removed at the end; "
    "no copy of the folder that was made before the end was gone on with",
}


def assumptions_of(
    release: Description,
    *,
    ownership: Ownership,
    records_per_user: int | None,
    noise_source: NoiseSource,
    precision: str,
    foreign: Sequence[str],
    selector: str = "",
) -> tuple[str, ...]:
    """Returns the assumptions of a claim, each to be read after "the claim assumes that".

    Args:
        release: What was released.
        ownership: Whose a record is.
        records_per_user: k, for a release of records; None for no cap.
        noise_source: "seeded" or "os".
        precision: In which numbers gradients are computed.
        foreign: Names of classes that are not this package's.
        selector: Which of them chooses who takes part; empty where none does.
    """
    return (
        ASSUMED[ownership],
        *_cap(release, ownership, records_per_user),
        *_OF_EVERY_CLAIM,
        *([_GROUPS] if has_groups(release) else []),
        _secrecy(selector, release) if claims_amplification(release) else "the schedule is public, whatever the data",
        _KEY[noise_source],
        floating_point(precision),
        *(f"{name}, which is not part of this package, does what it declares, by its code alone" for name in foreign),
        *([_OWN_RECORDS] if foreign else []),
    )


def claims_amplification(release: Description) -> bool:
    """Returns whether epsilon rests on who took part being unknown."""
    return not all(isinstance(run, NoAmplification) for run in _single_runs(release))


def has_groups(release: Description | None) -> bool:
    """Returns whether epsilon is that of the costliest of several groups of users."""
    return any(isinstance(run, PoissonGroups) and len(run.groups) > 1 for run in _single_runs(release))


def single_run(release: Description | None) -> Description | None:
    """Returns the single run inside of a private search, adaptive clipping or signals; anything else as it is."""
    while isinstance(release, HyperparameterSearch | AdaptiveClipping | PaidSignals):
        release = release.run
    return release


def floating_point(precision: str) -> str:
    """Returns what is assumed of sums in finite precision."""
    moved = "about a ten-millionth of the clip norm for each user of the cohort"
    if precision != "float32":
        moved = f"far more than in float32, where it is {moved}"
    return (
        "floating-point sums and noise are as good as real numbers: gradients are computed in "
        f"{precision}, norms, clip factors and sums in float32, and what one user adds depends on others in the same "
        f"micro-batch by rounding only ({moved}; not accounted)"
    )


def _single_runs(release: Description | None) -> list[Description | None]:
    """The single runs of which a release consists."""
    parts = release.parts if isinstance(release, Composed) else (release,)
    return [single_run(part) for part in parts]


def draws_by_itself(release: Description | None) -> bool:
    """Returns whether a selector of one's own, where there is one, draws what is released; else this package does."""
    return not any(isinstance(run, PoissonGroups | RecordLevel) for run in _single_runs(release))


def _secrecy(selector: str, release: Description) -> str:
    """What must not be known of the cohorts."""
    kept = "the cohorts are kept secret"
    if not selector:
        return kept
    if draws_by_itself(release):
        return f"{kept}, and {selector} draws them from the generator that it is given alone"
    return f"{kept}, and what {selector} states follows from public facts and from what was released alone"


def _cap(release: Description, ownership: Ownership, records_per_user: int | None) -> Iterator[str]:
    """That nobody has more records in the pool than the accounting says."""
    if isinstance(single_run(release), RecordLevel):
        verb = "owns" if ownership == "declared" else "has"
        yield f"no user {verb} more than {records_per_user} records in the training set"
