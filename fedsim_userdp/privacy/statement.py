"""What a run promises, to whom and under which assumptions: facts, as JSON for `privacy.json`, and in words."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting import accountants
from fedsim_userdp.privacy.accounting.descriptions import (
    AdaptiveClipping,
    Composed,
    Description,
    FixedSize,
    FixedSizeStrata,
    HyperparameterSearch,
    NoAmplification,
    PaidSignals,
    PoissonGroups,
    PoissonUsers,
    RecordLevel,
    TruncatedPoisson,
    inner_run,
)
from fedsim_userdp.privacy.accounting.serialization import Json, from_json, to_json
from fedsim_userdp.privacy.accounting.trajectories import Trajectory
from fedsim_userdp.privacy.assumptions import (
    assumptions_of,
    claims_amplification,
    draws_by_itself,
    has_groups,
    single_run,
)
from fedsim_userdp.privacy.delta import large_delta_in_words
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.privacy.ledger.entries import NoiseSource
from fedsim_userdp.privacy.ownership import BLANK_RECORDS, COVERED, Ownership, check_ownership
from fedsim_userdp.privacy.validation import check_count, check_delta, check_epsilon, check_real

NOT_PRIVATE = (
    "training metrics (losses, clip fractions, norms, per-user results)",
    "evaluation, unless those users are public",
    "non-private and zero-shot baselines",
    "logs, raw results and checkpoints",
)
PUBLIC = ("the number of users", "the settings of the run")
USERS = "whoever a record is filed under"
MET = 0.98  # of a target: calibration reaches 99%, but for a jump


@dataclasses.dataclass(frozen=True)
class PrivacyStatement:
    """The statement of one run.

    Attributes:
        level: Whom the claim is for: "user", "record" (no claim for users) or "nobody".
        release: What was released, as calibrated; None without noise.
        mechanism: Name of the mechanism.
        num_users: Number of users, public, in [1, 1e9].
        rounds: Number of releases made, lost ones included, in [1, 1e9]; may exceed the participations of one user.
        delta: In (0, 1); None at level "nobody".
        method: Accountant of the claim; None for the default, which is "record" at level "record".
        clip_norm: C in (0, inf), the first one under adaptive clipping; None without clipping.
        records_per_user: Largest number of records of a user that were used at a time, >= 1; None for no cap.
        target_epsilon: Epsilon that was asked for, in (0, inf); None if none was.
        noise_source: "seeded" (simulation: whoever knows the seed recomputes noise and cohorts) or "os".
        num_searched: How many settings were run on these users, by hand or in a sweep, before this one was chosen.
        users: What a user is, as a noun phrase: the same text where ids and owners of records are told alike.
        searched_by: What tells that search from others, as text: one for one search.
        not_private: What in the run folder the claim does not cover.
        ownership: Whose a record is: "assigned" (of the one user it is filed under) or "declared" (of everybody whom
            the data names as an owner; nobody may own more than `records_per_user` used records).
        foreign: Names of classes, not of this package, whose word is taken for what they declare.
        num_lost: Releases whose result was lost in a crash, in [0, rounds]: they count all the same.
        window: Most tokens of a record, >= 1; None where that is not known.
        fresh_records: Whether a user's records are chosen anew at each participation, so that more than
            `records_per_user` of them may be used in a run.
        public: What is taken as public, each as a noun phrase.
        precision: In which numbers gradients are computed, such as "float32".
        evaluated_on: Which users the perplexity is of: "heldout" or "validation".
        selector: Name of the class, not of this package, that chooses who takes part; empty where it is this package's.
        groups: Of PoissonGroups, who is in each group, as a noun phrase; empty where that is not said.

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
    foreign: tuple[str, ...] = ()
    num_lost: int = 0
    window: int | None = None
    fresh_records: bool = False
    public: tuple[str, ...] = PUBLIC
    precision: str = "float32"
    evaluated_on: Literal["heldout", "validation"] = "heldout"
    selector: str = ""
    users: str = USERS
    searched_by: str = ""
    groups: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Checks every attribute once."""
        allowed = {
            "level": ("user", "record", "nobody"),
            "noise_source": ("seeded", "os"),
            "evaluated_on": ("heldout", "validation"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"{name} must be one of {', '.join(map(repr, values))}, got {getattr(self, name)!r}")
        for name in ("num_users", "rounds", "num_searched"):
            check_count(name, getattr(self, name))
        check_count("num_lost", self.num_lost, 0, self.rounds)
        for name in ("records_per_user", "window"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        if self.clip_norm is not None:
            check_real("clip_norm", self.clip_norm, 0.0, math.inf)
        if self.target_epsilon is not None:
            check_epsilon("target_epsilon", self.target_epsilon)
        for name in ("not_private", "foreign", "public"):
            if not isinstance(getattr(self, name), tuple):
                raise ValueError(f"{name} must be a tuple of texts, got {getattr(self, name)!r}")
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
            return f"{acc.Adjacency.ADD_OR_REMOVE_RECORD.value}, which is {self._record()}"
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
        price = "have no finite epsilon" if cost is None else f"have an epsilon of {rounded_up(cost)}"
        return (
            f"{text}, which is NOT part of epsilon: all of them together {price} by composition, if each of them cost "
            "what this one did (an assumption)"
        )

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What must hold for the claim."""
        if self.accountant is None or self.release is None:
            return ()
        return assumptions_of(
            self.release,
            ownership=self.ownership,
            records_per_user=self.records_per_user,
            noise_source=self.noise_source,
            precision=self.precision,
            foreign=self.foreign,
            selector=self.selector,
        )

    @property
    def is_met(self) -> bool:
        """Whether epsilon comes near what was asked for; it is never above, and below where noise has a least size."""
        return self.target_epsilon is None or self.epsilon is None or self.epsilon >= MET * self.target_epsilon

    @property
    def records(self) -> str:
        """How many records of a user take part, and what a record is."""
        if self.records_per_user is None:
            return f"any number of records of a user, {self._tokens()}"
        text = f"at most {self.records_per_user} records of a user in a round, {self._tokens()}"
        if isinstance(single_run(self.release), RecordLevel):
            return f"at most {self.records_per_user} records of a user in the pool, {self._tokens()}"
        if self.fresh_records:
            text += "; chosen anew at each participation, so that more are used in the run"
        return text

    @property
    def selection(self) -> str | None:
        """Who takes part, and what that is worth to the accountant; None at level "nobody"."""
        if self.accountant is None:
            return None
        match single_run(self.release):
            case PoissonUsers(sampling_prob=prob):
                return f"Poisson, each user with probability {prob:.4g} a round, counted as amplification"
            case PoissonGroups(groups=groups):
                return (
                    f"Poisson sampling of users with public {_probabilities_and_weights(groups)}, by group and round "
                    f"({len(groups)} group{'s' if len(groups) > 1 else ''}), counted as amplification"
                )
            case TruncatedPoisson(sampling_prob=prob, num_users=users, most_users=most):
                return (
                    f"Poisson, each user with probability {prob:.4g} a round, at most {most} of {users} users: of "
                    f"more, {most} at random; counted as amplification, and one user may take another one's place"
                )
            case FixedSizeStrata(num_users=users, cohort_size=size, groups=strata):
                return (
                    f"{size} of {users} users a round, a fixed number of each of {len(strata)} public groups without "
                    "replacement, counted as amplification under replace-one within a group"
                )
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
        """Noise multiplier of the update itself: larger where some is spent on counts or signals."""
        inner = self.release.run if isinstance(self.release, HyperparameterSearch) else self.release
        if isinstance(inner, AdaptiveClipping | PaidSignals):
            return inner.update_noise_multiplier
        return self.noise_multiplier

    @property
    def claim(self) -> str:
        """Who is protected, and how far, as a sentence."""
        if self.accountant is None or self.delta is None:
            return f"The run of {self.mechanism} makes no privacy claim for anybody."
        value = (
            "no finite epsilon"
            if self.epsilon is None
            else f"({rounded_up(self.epsilon)}, {rounded_up(self.delta, 3)})-DP"
        )
        whom = "single records" if self.level == "record" else "users"
        text = (
            f"What {self.mechanism} releases has {value} for {whom} by the accountant '{self.accountant}'; "
            f"neighbouring data sets: {self.adjacency}."
        )
        if has_groups(self.release):
            text += " Users differ by their group in how often they are drawn and how much they weigh; epsilon is the "
            text += "one of the costliest group."
        return text + " There is NO guarantee for users." if self.level == "record" else text

    @property
    def noise(self) -> str:
        """Where noise and cohorts came from, and who must not know, as sentences."""
        if self.accountant is None:
            return "There was no noise that a claim could rest on."
        if self.noise_source == "os" and self.selector and draws_by_itself(self.release):
            return self._noise_beside_own_selector(self.selector)
        if self.noise_source == "os":
            return (
                "The noise was drawn from the operating system, the cohorts from a secret key that it drew: no file "
                "that is to be published tells either."
            )
        return (
            "This is a simulation: noise and cohorts follow from a hash of the seed and of the run's settings. Whoever "
            "knows or guesses the seed (0 where nobody set it) can recompute both, and towards them no claim holds at "
            "all. A release wants noise.source=os."
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What else a reader must know of this run, as sentences; often nothing."""
        if self.accountant is None or self.delta is None:
            return ()
        return (*self._paid_signals(), *self._adapted_clip_norm(), *self._lost(), *self._unmet(), *self._large_delta())

    def to_json(self) -> dict[str, Json]:
        """Returns the statement as a JSON object: attributes and what follows from them; null for no number."""
        attributes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        by_accountant = dict(self.epsilon_by_accountant)
        record_level = by_accountant.pop("record", None)
        return {
            **{name: list(value) if isinstance(value, tuple) else value for name, value in attributes.items()},
            "release": None if self.release is None else to_json(self.release),
            "accountant": self.accountant,
            "adjacency": self.adjacency,
            "selection": self.selection,
            "noise_multiplier": self.noise_multiplier,
            "update_noise_multiplier": self.update_noise_multiplier,
            "sampling_prob": getattr(single_run(self.release), "sampling_prob", None),
            "epsilon": self.epsilon if self.level == "user" else None,
            "epsilon_by_accountant": dict(by_accountant) if self.level == "user" else {},
            "record_level_epsilon": record_level,
            **({"epsilon_by_group": list(self.epsilon_by_group)} if self.epsilon_by_group else {}),
            "search": self.search,
            "assumptions": list(self.assumptions),
            "paragraph": self.paragraph(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Json]) -> Self:
        """Returns the statement of what `to_json` wrote; what follows from attributes is computed anew.

        Raises:
            ValueError: An attribute is missing or out of range, or a value is of the wrong kind.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        if lacking := [name for name in names if name not in values]:
            raise ValueError(f"a statement must have {lacking[0]!r}, got {sorted(values)}")
        found: dict[str, Any] = {name: values[name] for name in names}
        found = {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}
        found["release"] = None if values["release"] is None else from_json(values["release"])
        return cls(**found)

    def paragraph(self) -> str:
        """Returns the statement in plain words, one paragraph."""
        sentences = [self.claim, *self._terms(), *self.remarks, f"{self.search}.", self.noise]
        sentences.append(f"Not covered by any claim: {'; '.join(self.not_private)}.")
        if self.assumptions:
            sentences.append(f"Taken as public: {'; '.join(self.public)}.")
            sentences.append(f"The claim assumes that {'; that '.join(self.assumptions)}.")
        return " ".join(sentences)

    def epsilons_in_words(self) -> str:
        """Returns user-level epsilon by each accountant that fits, as a list."""
        each = {name: value for name, value in self.epsilon_by_accountant.items() if name != "record"}
        return ", ".join(f"{name} {'none' if value is None else rounded_up(value)}" for name, value in each.items())

    @functools.cached_property
    def epsilon_by_group(self) -> tuple[float, ...]:
        """Epsilon of each group's users; empty without groups, in a private search, or without an answer for one."""
        release = self.release
        run = inner_run(release) if isinstance(release, AdaptiveClipping | PaidSignals) else release
        if self.level != "user" or self.delta is None or not isinstance(run, PoissonGroups):
            return ()
        with contextlib.suppress(acc.AccountingError):
            return acc.epsilons_by_group(run, self.delta, self.accountant)
        return ()

    def _noise_beside_own_selector(self, name: str) -> str:
        """What is said of noise from the operating system where a class of one's own chooses who takes part."""
        drawn = "The noise was drawn from the operating system: no file that is to be published tells it."
        if self.release is None or not claims_amplification(self.release):
            return drawn
        return (
            f"{drawn} That the cohorts are secret as well is assumed: {name} was given a generator with a secret key "
            "and may go by something else."
        )

    def _terms(self) -> list[str]:
        """How it was reached."""
        if self.accountant is None:
            return []
        noise = "as described" if self.noise_multiplier is None else f"{self.noise_multiplier:.4g}"
        clip = "none" if self.clip_norm is None else f"{self.clip_norm:.4g}"
        terms = [
            f"Selection: {self.selection}.",
            f"{self.num_users} users, {self.records}; {self.rounds} releases, clip norm {clip}, "
            f"noise multiplier {noise}.",
        ]
        if self.level != "user":
            return terms
        owners = f"A user is {self.users}. Ownership: {COVERED[self.ownership]}."
        return [*terms, owners, f"User-level epsilon by accountant: {self.epsilons_in_words()}."]

    def _tokens(self) -> str:
        """How long a record is."""
        return "each a text as it is filed" if self.window is None else f"each a window of at most {self.window} tokens"

    def _record(self) -> str:
        """What a record is, and of which pool, for a claim about records."""
        length = "records" if self.window is None else f"windows of at most {self.window} tokens"
        most = "" if self.records_per_user is None else f"at most {self.records_per_user} "
        return (
            f"one of the {most}{length} that were chosen of each user (adding a message to a user's text is another "
            "thing: it may be many records, and it changes which are chosen)"
        )

    def _paid_signals(self) -> list[str]:
        """What a round releases besides its update, where users send a signal."""
        inner = self.release.run if isinstance(self.release, HyperparameterSearch) else self.release
        signals = inner.run if isinstance(inner, AdaptiveClipping) else inner
        if not isinstance(signals, PaidSignals):
            return []
        return [
            "Each round also releases, for each public group of users, the sum of their clipped losses and their "
            f"number, with noise multiplier {signals.signal_noise_multiplier:.4g} each. All of a round together have "
            f"that noise multiplier, the update alone {self.update_noise_multiplier:.4g}."
        ]

    def _adapted_clip_norm(self) -> list[str]:
        """What a round releases besides its update, where the clip norm adapts itself."""
        inner = self.release.run if isinstance(self.release, HyperparameterSearch) else self.release
        if not isinstance(inner, AdaptiveClipping):
            return []
        has_signals = isinstance(inner.run, PaidSignals)
        together = "Update, count, sums and numbers have" if has_signals else "Update and count have"
        return [
            "That clip norm is the first round's; the others follow from a count of the users whose update was not "
            f"clipped, released each round with noise of standard deviation {inner.count_stddev:.4g}. {together} that "
            f"noise multiplier together, the update alone {inner.update_noise_multiplier:.4g}."
        ]

    def _lost(self) -> list[str]:
        """That lost releases are paid for."""
        if not self.num_lost:
            return []
        which = "One of them was" if self.num_lost == 1 else f"{self.num_lost} of them were"
        return [f"{which} lost in a crash after the release: paid for, without a result in the model."]

    def _unmet(self) -> list[str]:
        """That less epsilon was spent than asked for."""
        if self.is_met or self.epsilon is None:
            return []
        return [
            f"Epsilon {self.target_epsilon:.4g} was asked for and {rounded_up(self.epsilon)} is what holds: noise has "
            "a least size that can be accounted for, and the claim is stronger than asked."
        ]

    def _large_delta(self) -> list[str]:
        """What a large delta means."""
        words = None if self.delta is None else large_delta_in_words(self.delta)
        return [] if words is None else [words]

    def _check_claim(self) -> None:
        """Refuses a claim that its release does not carry."""
        if self.release is None:
            raise ValueError(f"release must be a description where level is {self.level!r}, got None")
        check_delta("delta", self.delta)
        name = accountants.check_method(self.release, self.accountant)
        if (name == "record") != (self.level == "record"):
            raise ValueError(f"method {name!r} makes no claim at level {self.level!r}")
        check_ownership(self.ownership, single_run(self.release))
        cap = getattr(single_run(self.release), "records_per_user", None)
        if cap is not None and cap != self.records_per_user:
            raise ValueError(f"records_per_user must be {cap} as in the release, got {self.records_per_user!r}")


def _probabilities_and_weights(groups: tuple[Trajectory, ...]) -> str:
    """From where to where probabilities and weights of groups go; weights only where one is not 1."""
    probs, weights, _ = zip(*(step for trajectory in groups for step in trajectory), strict=True)
    text = _range("probability", "probabilities", probs)
    return text if set(weights) == {1} else f"{text} and {_range('weight', 'weights', weights)}"


def _range(one: str, several: str, values: Sequence[float]) -> str:
    """A number, or the least and the largest of several."""
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return f"{one} {low}" if low == high else f"{several} from {low} to {high}"


@functools.lru_cache(maxsize=1024)
def _epsilon(release: Description, delta: float, method: str | None) -> float | None:
    """Epsilon by one accountant, or None where it has no answer."""
    try:
        return acc.epsilon(release, delta, method)
    except acc.AccountingError:
        return None
