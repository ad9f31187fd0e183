"""What a run promises, to whom and under which assumptions: as JSON for `privacy.json`, and as a paragraph."""

import dataclasses
import functools
import math
from typing import Literal

from fedsim_userdp.privacy import accountants
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.descriptions import (
    AdaptiveClipping,
    Composed,
    Description,
    FixedSize,
    HyperparameterSearch,
    NoAmplification,
    RecordLevel,
    UserWise,
)
from fedsim_userdp.privacy.entries import NoiseSource
from fedsim_userdp.privacy.ownership import ASSUMED, BLANK_RECORDS, COVERED, Ownership, check_ownership
from fedsim_userdp.privacy.serialization import Json, to_json
from fedsim_userdp.privacy.validation import check_count, check_delta, check_epsilon, check_real

NOT_PRIVATE = (
    "training metrics (losses, clip fractions, norms, per-user results)",
    "held-out evaluation, unless those users are public",
    "non-private and zero-shot baselines",
    "logs, raw results and checkpoints",
)


@dataclasses.dataclass(frozen=True)
class PrivacyStatement:
    """The statement of one run.

    Attributes:
        level: Whom the claim is for: "user", "record" (no claim for users) or "nobody".
        release: What was released, as calibrated; None without noise.
        mechanism: Name of the mechanism.
        num_users: Number of users, public, in [1, 1e9].
        rounds: Number of releases made, in [1, 1e9]; may exceed the participations of one user.
        delta: In (0, 1); None at level "nobody".
        method: Accountant of the claim; None for the default, which is "record" at level "record".
        clip_norm: C in (0, inf), the first one under adaptive clipping; None without clipping.
        records_per_user: Largest number of records of a user that were used, >= 1; None for no cap.
        target_epsilon: Epsilon that was asked for, in (0, inf); None if none was.
        noise_source: "seeded" (simulation: whoever knows the seed can take the noise away) or "os".
        num_searched: How many settings were run on these users, by hand or in a sweep, before this one was chosen.
        not_private: What in the run folder the claim does not cover.
        ownership: Whose a record is: "assigned" (of the one user it is filed under) or "declared" (of everybody whom
            the data names as an owner; nobody may own more than `records_per_user` used records).
        unchecked_selector: Name of a class, not of this package, whose word is taken for how cohorts are drawn; None if
            there is none.

    Raises:
        ValueError: An attribute is out of range, or level and release do not fit.
    """

    level: Literal["user", "record", "nobody"]
    release: Description | None
    mechanism: str
    num_users: int
    rounds: int
    delta: float | None = None
    method: str | None = None
    clip_norm: float | None = None
    records_per_user: int | None = None
    target_epsilon: float | None = None
    noise_source: NoiseSource = "seeded"
    num_searched: int = 1
    not_private: tuple[str, ...] = NOT_PRIVATE
    ownership: Ownership = "assigned"
    unchecked_selector: str | None = None

    def __post_init__(self) -> None:
        """Checks every attribute once."""
        if self.level not in ("user", "record", "nobody"):
            raise ValueError(f"level must be 'user', 'record' or 'nobody', got {self.level!r}")
        if self.noise_source not in ("seeded", "os"):
            raise ValueError(f"noise_source must be 'seeded' or 'os', got {self.noise_source!r}")
        for name in ("num_users", "rounds", "num_searched"):
            check_count(name, getattr(self, name))
        if self.clip_norm is not None:
            check_real("clip_norm", self.clip_norm, 0.0, math.inf)
        if self.records_per_user is not None:
            check_count("records_per_user", self.records_per_user)
        if self.target_epsilon is not None:
            check_epsilon("target_epsilon", self.target_epsilon)
        if self.level != "nobody":
            self._check_claim()

    @property
    def accountant(self) -> str | None:
        """Name of the accountant of the claim; None at level "nobody"."""
        if self.release is None or self.level == "nobody":
            return None
        return self.method or ("record" if self.level == "record" else accountants.methods(self.release)[0])

    @property
    def epsilon(self) -> float | None:
        """Epsilon of the claim; None where there is none."""
        return None if self.accountant is None else self.epsilon_by_accountant[self.accountant]

    @functools.cached_property
    def epsilon_by_accountant(self) -> dict[str, float | None]:
        """Epsilon by each accountant that fits; None where one has no answer. "record" is never a claim for users."""
        if self.release is None or self.delta is None or self.level == "nobody":
            return {}
        return {name: _epsilon(self.release, self.delta, name) for name in accountants.methods(self.release)}

    @property
    def adjacency(self) -> str | None:
        """Neighbouring relation of the claim, in words; None at level "nobody"."""
        if self.release is None or self.level == "nobody":
            return None
        if self.level == "record":
            return acc.Adjacency.ADD_OR_REMOVE_RECORD.value
        return BLANK_RECORDS if self.ownership == "declared" else self.release.adjacency.value

    @property
    def search(self) -> str:
        """What choosing the settings cost, in words."""
        if isinstance(self.release, HyperparameterSearch):
            return (
                f"The settings were chosen by a private search over {self.release.mean_runs:g} runs on average, "
                "whose cost is part of epsilon"
            )
        if self.num_searched == 1:
            return "No search over settings on these users was declared, and none is part of epsilon"
        text = f"The settings were chosen among {self.num_searched} runs on these users"
        if self.release is None or self.delta is None or isinstance(self.release, Composed):
            return text + ", which is part of no claim"
        cost = _epsilon(Composed((self.release,) * self.num_searched), self.delta, self.accountant)
        price = "have no finite epsilon" if cost is None else f"have an epsilon of {cost:.4g}"
        return f"{text}, which is NOT part of epsilon: all of them together {price} by composition"

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What must hold for the claim."""
        if self.accountant is None:
            return ()
        owners = ASSUMED[self.ownership]
        verb = "owns" if self.ownership == "declared" else "has"
        cap = f"no user {verb} more than {self.records_per_user} records in the training set"
        common = (
            "the number of users and the sampling probabilities are public",
            "every contribution is clipped as a whole before the sum, and the denominator is fixed",
            "the cohorts are kept secret" if _claims_amplification(self.release) else "the schedule is public",
            "floating-point noise is as good as real noise",
            *self._trust_in_selector(),
        )
        return (owners, *((cap,) if isinstance(_run(self.release), RecordLevel) else ()), *common)

    def to_json(self) -> dict[str, Json]:
        """Returns the statement as a JSON object: attributes and what follows from them; null for no number."""
        attributes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        by_accountant = dict(self.epsilon_by_accountant)
        record_level = by_accountant.pop("record", None)
        return {
            **attributes,
            "release": None if self.release is None else to_json(self.release),
            "not_private": list(self.not_private),
            "accountant": self.accountant,
            "adjacency": self.adjacency,
            "selection": self.selection,
            "noise_multiplier": self.noise_multiplier,
            "update_noise_multiplier": self.update_noise_multiplier,
            "sampling_prob": getattr(_run(self.release), "sampling_prob", None),
            "epsilon": self.epsilon if self.level == "user" else None,
            "epsilon_by_accountant": dict(by_accountant) if self.level == "user" else {},
            "record_level_epsilon": record_level,
            "search": self.search,
            "assumptions": list(self.assumptions),
            "paragraph": self.paragraph(),
        }

    def paragraph(self) -> str:
        """Returns the statement in plain words, one paragraph."""
        sentences = [self._claim(), *self._terms(), f"{self.search}.", self._noise()]
        sentences.append(f"Not covered by any claim: {'; '.join(self.not_private)}.")
        if self.assumptions:
            sentences.append(f"The claim assumes that {'; that '.join(self.assumptions)}.")
        return " ".join(sentences)

    @property
    def selection(self) -> str | None:
        """Who takes part, and what that is worth to the accountant; None at level "nobody"."""
        if self.accountant is None:
            return None
        match _run(self.release):
            case UserWise(sampling_prob=prob):
                return f"Poisson, each user with probability {prob:.4g} a round, counted as amplification"
            case RecordLevel(sampling_prob=prob):
                return f"Poisson, each record with probability {prob:.4g} a step, counted as amplification"
            case FixedSize(num_users=users, cohort_size=size):
                return (
                    f"{size} of {users} users a round without replacement, counted as amplification under replace-one"
                )
            case NoAmplification(max_participations=most):
                return f"a public schedule, at most {most} rounds a user, not counted as amplification"
        return "several runs, each as its description says"

    @property
    def noise_multiplier(self) -> float | None:
        """Noise multiplier of what is accounted for; 0 without noise, None where runs differ."""
        if self.release is None:
            return 0.0
        return None if isinstance(self.release, Composed) else self.release.noise_multiplier

    @property
    def update_noise_multiplier(self) -> float | None:
        """Noise multiplier of the update itself: larger under adaptive clipping, which spends some on counts."""
        inner = self.release.run if isinstance(self.release, HyperparameterSearch) else self.release
        return inner.update_noise_multiplier if isinstance(inner, AdaptiveClipping) else self.noise_multiplier

    def _claim(self) -> str:
        """Who is protected, and how far."""
        if self.accountant is None or self.delta is None:
            return f"The run of {self.mechanism} makes no privacy claim for anybody."
        value = "no finite epsilon" if self.epsilon is None else f"({self.epsilon:.4g}, {self.delta:.3g})-DP"
        whom = "single records" if self.level == "record" else "users"
        text = (
            f"What {self.mechanism} releases has {value} for {whom} by the accountant '{self.accountant}'; "
            f"neighbouring data sets: {self.adjacency}."
        )
        return text + " There is NO guarantee for users." if self.level == "record" else text

    def _terms(self) -> list[str]:
        """How it was reached."""
        if self.accountant is None:
            return []
        each = {name: value for name, value in self.epsilon_by_accountant.items() if name != "record"}
        numbers = ", ".join(
            f"{name} {'none' if value is None else format(value, '.4g')}" for name, value in each.items()
        )
        cap = "any number of" if self.records_per_user is None else f"at most {self.records_per_user}"
        noise = "as described" if self.noise_multiplier is None else f"{self.noise_multiplier:.4g}"
        clip = "none" if self.clip_norm is None else f"{self.clip_norm:.4g}"
        terms = [
            f"Selection: {self.selection}.",
            f"{self.num_users} users with {cap} records each, {self.rounds} releases, clip norm {clip}, "
            f"noise multiplier {noise}.",
            *self._adapted_clip_norm(),
        ]
        owners = f"Ownership: {COVERED[self.ownership]}."
        return [*terms, owners, f"User-level epsilon by accountant: {numbers}."] if self.level == "user" else terms

    def _trust_in_selector(self) -> list[str]:
        """What is believed of a selector that claims amplification and is none of this package's."""
        if self.unchecked_selector is None or not isinstance(_run(self.release), UserWise | FixedSize):
            return []
        return [f"{self.unchecked_selector}, which is not part of this package, draws cohorts at random as it declares"]

    def _adapted_clip_norm(self) -> list[str]:
        """What a round releases besides its update, where the clip norm adapts itself."""
        inner = self.release.run if isinstance(self.release, HyperparameterSearch) else self.release
        if not isinstance(inner, AdaptiveClipping):
            return []
        return [
            "That clip norm is the first round's; the others follow from a count of the users whose update was not "
            f"clipped, released each round with noise of standard deviation {inner.count_stddev:.4g}. Update and count "
            f"have that noise multiplier together, the update alone {inner.update_noise_multiplier:.4g}."
        ]

    def _noise(self) -> str:
        """Where the noise came from."""
        if self.accountant is None:
            return "There was no noise that a claim could rest on."
        if self.noise_source == "os":
            return "The noise was drawn from the operating system."
        return (
            "The noise was drawn from a seed: this is a simulation, whoever knows the seed can take the noise away, "
            "and the claim holds only towards those who do not."
        )

    def _check_claim(self) -> None:
        """Refuses a claim that its release does not carry."""
        if self.release is None:
            raise ValueError(f"release must be a description where level is {self.level!r}, got None")
        check_delta("delta", self.delta)
        name = accountants.check_method(self.release, self.accountant)
        if (name == "record") != (self.level == "record"):
            raise ValueError(f"method {name!r} makes no claim at level {self.level!r}")
        check_ownership(self.ownership, _run(self.release))
        cap = getattr(_run(self.release), "records_per_user", None)
        if cap is not None and cap != self.records_per_user:
            raise ValueError(f"records_per_user must be {cap} as in the release, got {self.records_per_user!r}")


def _run(release: Description | None) -> Description | None:
    """The single run inside of a search or adaptive clipping."""
    while isinstance(release, HyperparameterSearch | AdaptiveClipping):
        release = release.run
    return release


def _claims_amplification(release: Description | None) -> bool:
    """Whether epsilon rests on who took part being unknown."""
    parts = release.parts if isinstance(release, Composed) else (release,)
    return not all(isinstance(_run(part), NoAmplification) for part in parts)


def _epsilon(release: Description, delta: float, method: str | None) -> float | None:
    """Epsilon by one accountant, or None where it has no answer."""
    try:
        return acc.epsilon(release, delta, method)
    except acc.AccountingError:
        return None
