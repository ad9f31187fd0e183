"""What several runs on the same users promise together: one (epsilon, delta) of all that claims anything.

Guarantee: adaptive composition of every release that a user-level claim in the list covers. Runs with keys of their own
    have independent noise and cohorts. Runs with one key (the same seed, settings and data) have the same: where they
    ended with the same adapter, they are one release and count once; where they did not (a node failed in one of them,
    or sums were rounded otherwise), the difference tells of users' updates without noise, and no epsilon is finite.
    So it is where a folder was copied while a release was under way: two releases share their cohorts.  A run that went
    on under changed settings has several keys, and any of them can be another run's.
    Where a user is not the same in all of them (other columns of ids or owners), one person may be several users of one
    run, and no epsilon is finite.
Assumes: all runs are of the same users, the worst case, one id being one user in every file; what the statements
    assume.

Neighbouring relations are brought together so:

- *Empty one user's records* and *add or remove a user* compose under the former. In a Poisson-sampled sum an emptied
  user adds zero whether drawn or not, the others are drawn independently of them, and denominators are public
  constants: the sum has the distribution that it has without the user. So an add-or-remove bound bounds emptying as
  well. Releases without amplification are, for an emptied user, Gaussians of sensitivity C, the same as Poisson
  sampling with probability 1.
- *Groups of users* with probabilities and weights of their own may be other users in each run: the costliest
  combination of groups counts.
- *Replace one user* beside others: a schedule is accounted with sensitivity 2 C, and the relation is that the user's
  records are replaced and their id is kept, since another id would shift everybody's place in the schedule. What is
  known for adding or removing is taken twice (remove the one, add the other): (2 epsilon, (1 + e^epsilon) delta),
  added by basic composition, delta divided evenly among the claims that are added.
- *Blank all records of one owner* covers emptying the records that are filed under a user, who is one of their owners.
  It says nothing of replacing a user by a person with other records, who may own others' records too: beside a claim
  for replacing there is no joint epsilon.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.accounting import accountants
from fedsim_userdp.privacy.accounting.descriptions import (
    Adjacency,
    Composed,
    Description,
    HyperparameterSearch,
    NoAmplification,
    PoissonGroups,
    PoissonUsers,
    Run,
    TruncatedPoisson,
    inner_run,
)
from fedsim_userdp.privacy.accounting.serialization import Json
from fedsim_userdp.privacy.figures import rounded_up
from fedsim_userdp.privacy.statement import PrivacyStatement

_TIGHTEST_FIRST = ("tight", "pld", "rdp", "group")
_NARROW = 0.01
_LEAST_LOG_DELTA = -600.0
UNNAMED_IDS = "an id that a program gave with the text"  # what a user is where nothing names it
_REPLACED = "one user with all their records replaced by another"
_RECORDS_REPLACED = "one user's records replaced by others, their id and so their place in the schedule kept"
_EMPTIED = "one user's records are emptied"


@dataclasses.dataclass(frozen=True)
class StatedRun:
    """A run and what it promises.

    Attributes:
        statement: What it promises.
        seed: The run's seed.
        job: The folder of a sweep that it lies in; empty outside of one.
        draws: One for each key that the run has had: two runs with one in common have the same cohorts and, if seeded,
            the same noise. What is before its colon is equal where two can be compared. Empty for a key that no other
            run can have.
        adapter: sha256 of the released weights, in hexadecimal; empty where there are none.
    """

    statement: PrivacyStatement
    seed: int
    job: str = ""
    draws: tuple[str, ...] = ()
    adapter: str = ""

    @property
    def name(self) -> str:
        """Names the run among others: mechanism, seed and job."""
        return f"{self.statement.mechanism}, seed {self.seed}{f' (job {self.job})' if self.job else ''}"


@dataclasses.dataclass(frozen=True)
class Composition:
    """What several releases promise users together.

    Attributes:
        epsilon: None where there is no finite number.
        accountant: In words; None likewise.
    """

    epsilon: float | None
    accountant: str | None


@dataclasses.dataclass(frozen=True)
class JointStatement:
    """What all runs of a folder, or of a sweep, promise together.

    Attributes:
        runs: The runs, at least one.
    """

    runs: tuple[StatedRun, ...]

    @functools.cached_property
    def claims(self) -> tuple[StatedRun, ...]:
        """The runs that promise users something."""
        return tuple(run for run in self.runs if run.statement.level == "user")

    @property
    def of_records(self) -> tuple[StatedRun, ...]:
        """The runs that promise something for single records only."""
        return tuple(run for run in self.runs if run.statement.level == "record")

    @property
    def without_noise(self) -> tuple[StatedRun, ...]:
        """The runs that train without noise: they promise nothing. The untrained model is none of them."""
        return tuple(run for run in self.runs if _is_trained_without_noise(run.statement))

    @property
    def delta(self) -> float | None:
        """The delta of the claims, the largest where they differ; None where there is no claim."""
        return max((run.statement.delta or 0.0 for run in self.claims), default=None)

    @functools.cached_property
    def together(self) -> Composition:
        """What the claims add up to."""
        if len(_distinct(self.claims)) == 1 and not _torn_apart(self.claims):
            statement = self.claims[0].statement
            return Composition(statement.epsilon, statement.accountant)
        return self._composed(self.claims)

    @property
    def num_searched(self) -> int:
        """Runs elsewhere, on the same users, that the settings were chosen among: those of every declared search."""
        return sum(number - 1 for number in self._searches.values())

    @property
    def _searches(self) -> dict[str, int]:
        """How many runs each search had, by what tells it from others: several claims may come from one."""
        found: dict[str, int] = {}
        for statement in (run.statement for run in self.claims if run.statement.num_searched > 1):
            found[statement.searched_by] = max(found.get(statement.searched_by, 1), statement.num_searched)
        return found

    @functools.cached_property
    def costliest(self) -> StatedRun | None:
        """The claim that the searched runs are counted as: the one of which so many cost most; None without claims."""

        def cost(run: StatedRun) -> float:
            found = self._composed((run,), (run.statement,) * self.num_searched)
            return math.inf if found.epsilon is None else found.epsilon

        return max(self.claims, key=cost, default=None)

    @functools.cached_property
    def with_search(self) -> Composition | None:
        """The same with the declared search; None where none was declared."""
        if not self.num_searched or self.costliest is None:
            return None
        return self._composed(self.claims, (self.costliest.statement,) * self.num_searched)

    @functools.cached_property
    def with_record_level(self) -> Composition | None:
        """The same with the runs that promise something for single records; None where there is none, or no claim."""
        if not self.of_records or not self.claims:
            return None
        return self._composed((*self.claims, *self.of_records))

    @functools.cached_property
    def adjacency(self) -> str | None:
        """Neighbouring relation of the sum, in words; None where there is no claim."""
        if _why_not_together(self.claims):
            return None
        relations = {str(run.statement.adjacency) for run in self.claims}
        if len(relations) < 2:
            return relations.pop() if relations else None
        parts = [part for run in self.claims for part in _parts(run.statement.release)]
        if not any(_is_replacing(part) for part in parts):
            return _EMPTIED
        has_places = any(isinstance(one, NoAmplification) or one.adjacency is Adjacency.ZERO_OUT_USER for one in parts)
        if not has_places and any(part.adjacency is Adjacency.REPLACE_USER_IN_GROUP for part in parts):
            return Adjacency.REPLACE_USER_IN_GROUP.value
        return _RECORDS_REPLACED if has_places else _REPLACED

    def sentences(self) -> list[str]:
        """Returns the joint statement in plain words."""
        return [*self._sum(), *self._seeded(), *self._search(), *self._unprotected(), *self._choice()]

    def to_json(self) -> dict[str, Json]:
        """Returns the joint statement as a JSON object; null for no number."""
        return {
            "epsilon": self.together.epsilon,
            "delta": self.delta,
            "accountant": self.together.accountant,
            "adjacency": self.adjacency,
            "num_runs": len(self.runs),
            "claims": [run.name for run in self.claims],
            "without_user_level_claim": [run.name for run in (*self.of_records, *self.without_noise)],
            "num_searched_elsewhere": self.num_searched,
            "epsilon_with_search": None if self.with_search is None else self.with_search.epsilon,
            "epsilon_with_record_level": None if self.with_record_level is None else self.with_record_level.epsilon,
            "sentences": list(self.sentences()),
        }

    def _composed(self, runs: Sequence[StatedRun], more: Sequence[PrivacyStatement] = ()) -> Composition:
        """What the releases of these runs, and of `more` with keys of their own, add up to at the joint delta."""
        if self.delta is None or _torn_apart(runs) or _why_not_together(runs):
            return Composition(None, None)
        statements = [*(run.statement for run in _distinct(runs)), *more]
        releases = [statement.release for statement in statements if statement.release is not None]
        return composed(releases, self.delta)

    def _sum(self) -> list[str]:
        """What all claims add up to."""
        if not self.claims or self.delta is None:
            return ["Nothing here promises users anything."]
        value, number = _value(self.together.epsilon, self.delta), len(self.claims)
        if len(self.claims) == 1:
            return [f"One run here makes a claim for users ({self.claims[0].name}): all that it releases has {value}."]
        if reasons := _why_not_together(self.claims):
            return [
                f"{number} runs here make a claim for users, each for itself. All of them together have {value}: "
                f"{'; '.join(reasons)}.{self._repeated()}"
            ]
        deltas = sorted({run.statement.delta or 0.0 for run in self.claims})
        least, most = rounded_up(deltas[0], 3), rounded_up(deltas[-1], 3)
        at = f"; the runs' deltas differ ({least} to {most}), this is the largest"
        return [
            f"{number} runs here make a claim for users, each for itself. All of them together have {value} "
            f"by composition (accountant {self.together.accountant}; neighbouring data sets: {self.adjacency})"
            f"{at if len(deltas) > 1 else ''}. All are counted as runs on the same users; noise and cohorts of runs "
            f"with different seeds or settings are independent.{self._repeated()}"
        ]

    def _repeated(self) -> str:
        """What runs with one key, which have the same noise, mean for the sum."""
        found = ""
        for group in _of_one_draw(self.claims):
            names = " and ".join(run.name for run in group)
            if any(run.statement.noise_source == "os" for run in group):
                found += f" {names} have one secret key, so the same cohorts: a folder was copied during the run"
                why = "the same cohorts in several releases cost more than is accounted for"
            else:
                found += f" {names} have the same seed, settings and data, so the same noise and cohorts"
                why = "the difference of their adapters tells of users' updates without noise"
            found += (
                f"; {why}, so that both together promise nothing (repeat a run anew, with another seed)."
                if _torn_apart(group)
                else " and the same adapter: one release, counted once."
            )
        for group in _incomparable(self.claims):
            names = " and ".join(run.name for run in group)
            found += (
                f" Whether {names} have the same noise cannot be told any more, since `not_private/` of the folder was "
                "removed or a run was moved here: both together promise nothing."
            )
        return found

    def _seeded(self) -> list[str]:
        """To whom seeded runs promise nothing."""
        seeded = [run for run in self.claims if run.statement.noise_source == "seeded"]
        if not seeded:
            return []
        which = (
            "They are"
            if len(seeded) == len(self.claims)
            else f"{len(seeded)} of them {'is' if len(seeded) == 1 else 'are'}"
        )
        which = "It is" if len(self.claims) == 1 else which
        return [f"{which} seeded: nothing holds towards whoever knows or guesses the seed."]

    def _search(self) -> list[str]:
        """What the declared search adds."""
        if self.with_search is None or self.costliest is None or self.delta is None:
            return []
        among = f" of {len(self._searches)} searches" if len(self._searches) > 1 else ""
        return [
            f"The settings were chosen among runs elsewhere on the same users: {self.num_searched} more{among}, each "
            f"counted like {self.costliest.name} (an assumption; a run without noise among them is covered by "
            f"nothing). With these, all have {_value(self.with_search.epsilon, self.delta)}."
        ]

    def _unprotected(self) -> list[str]:
        """What no claim covers."""
        found = []
        if self.of_records:
            names = "; ".join(run.name for run in self.of_records)
            extra = "nothing is promised to users"
            if self.with_record_level is not None and self.delta is not None:
                extra = f"all have {_value(self.with_record_level.epsilon, self.delta)} for users"
            found.append(f"NOT in this sum, since single records only are protected: {names}. With these, {extra}.")
        if self.without_noise:
            names = "; ".join(run.name for run in self.without_noise)
            found.append(f"Without noise: {names}. Where these are published too, NO guarantee for users is left.")
        return found

    def _choice(self) -> list[str]:
        """What choosing among the runs costs."""
        if len(self.claims) < 2:
            return []
        return [
            "Publishing the best of them, or one alone after looking at all, is a choice by data: the joint figure is "
            "what covers it, not the run's own."
        ]


def _why_not_together(runs: Sequence[StatedRun]) -> list[str]:
    """Why runs have no joint epsilon, whatever noise they had: a clause for each reason."""
    found = []
    kinds = sorted({run.statement.users for run in runs})
    if len(kinds) > 1:
        found.append(
            f"a user is not the same in all of them ({'; '.join(kinds)}), and who is one user of one run may be "
            "several of another"
        )
    if kinds == [UNNAMED_IDS] and len({run.job for run in runs}) > 1:
        found.append(
            "what an id stands for is not known of text that programs gave as pairs, and may be another thing in each "
            "of them (give tables, whose column of ids has a name)"
        )
    if _blanks_and_replaces(runs):
        found.append(
            "some claims are for replacing a user, others for blanking all records of one of several declared owners, "
            "and no relation is known that both cover"
        )
    if _cuts_off_and_empties(runs):
        found.append(
            "some claims are for emptying a user's records, and a user who is emptied keeps a place in cohorts that "
            "are cut off at a size, which adding or removing one does not cover"
        )
    return found


def _cuts_off_and_empties(runs: Sequence[StatedRun]) -> bool:
    """Whether cohorts that are cut off stand beside claims for a user who keeps their place."""
    parts = [part for run in runs for part in _parts(run.statement.release)]
    keeps_place = any(isinstance(part, NoAmplification) or part.adjacency is Adjacency.ZERO_OUT_USER for part in parts)
    return keeps_place and any(isinstance(part, TruncatedPoisson) for part in parts)


def _blanks_and_replaces(runs: Sequence[StatedRun]) -> bool:
    """Whether claims for all declared owners of records stand beside claims for replacing a user."""
    is_declared = any(run.statement.ownership == "declared" for run in runs)
    return is_declared and any(_is_replacing(part) for run in runs for part in _parts(run.statement.release))


def _of_one_draw(runs: Sequence[StatedRun]) -> list[list[StatedRun]]:
    """The runs that share a key with another one, or with one that does so."""
    groups: list[list[StatedRun]] = []
    for run in runs:
        mine = [group for group in groups if any(set(run.draws) & set(other.draws) for other in group)]
        groups = [group for group in groups if group not in mine]
        groups.append([*(other for group in mine for other in group), run])
    return [group for group in groups if len(group) > 1]


def _torn_apart(runs: Sequence[StatedRun]) -> bool:
    """Whether some runs with the same noise released different adapters, or that cannot be told."""
    same = (all(run.adapter and run.adapter == group[0].adapter for run in group) for group in _of_one_draw(runs))
    return bool(_incomparable(runs)) or not all(same)


def _incomparable(runs: Sequence[StatedRun]) -> list[list[StatedRun]]:
    """Seeded runs of one seed of which it cannot be told whether they have one key; names do not enter a key."""
    groups: dict[int, list[StatedRun]] = {}
    for run in runs:
        if run.draws and run.statement.noise_source == "seeded":
            groups.setdefault(run.seed, []).append(run)
    return [group for group in groups.values() if len(group) > 1 and len(_secrets(group)) > 1]


def _secrets(runs: Sequence[StatedRun]) -> set[str]:
    """What the marks of runs' keys were made with: only marks of one secret compare."""
    return {draw.partition(":")[0] for run in runs for draw in run.draws}


def _distinct(runs: Sequence[StatedRun]) -> list[StatedRun]:
    """The runs without those that are the same release as an earlier one."""
    seen = set[str]()
    found = []
    for run in runs:
        if seen.isdisjoint(run.draws):
            found.append(run)
        seen.update(run.draws)
    return found


def composed(releases: Sequence[Description], delta: float) -> Composition:
    """Returns what several releases on the same users add up to.

    Args:
        releases: At least one, of user-level claims or of records (whose users have at most k each); any mix.
        delta: In (0, 1).

    Returns:
        The least epsilon that is found, as a rule by one accountant over everything, else by basic composition.
    """
    parts = [part for release in releases for part in _parts(release)]
    is_replacing = any(_is_replacing(part) for part in parts)
    runs = [_run(part, is_replacing) for part in parts if not isinstance(part, HyperparameterSearch)]
    searches = [part for part in parts if isinstance(part, HyperparameterSearch)]
    groups: list[tuple[Description, bool]] = [
        (search, is_replacing and not _is_replacing(search)) for search in searches
    ]
    for kind, is_doubled in (([run for run in runs if _is_replacing(run)], False), (_emptied(runs), is_replacing)):
        if kind:
            groups.append((Composed(tuple(kind)), is_doubled))
    share = math.log(delta / len(groups))
    found = [_twice(group, share) if is_doubled else _least(group, share) for group, is_doubled in groups]
    epsilon = math.fsum(each for each, _ in found)
    if not math.isfinite(epsilon):
        return Composition(None, None)
    names = [
        f"{name}, taken twice" if is_doubled else name for (_, name), (_, is_doubled) in zip(found, groups, strict=True)
    ]
    return Composition(epsilon, names[0] if len(names) == 1 else f"{' + '.join(names)}, by basic composition")


def _parts(release: Description | None) -> list[Run | HyperparameterSearch]:
    """Single runs and private searches of which a release consists."""
    if release is None:
        return []
    if isinstance(release, Composed):
        return [part for each in release.parts for part in _parts(each)]
    return [release if isinstance(release, HyperparameterSearch) else inner_run(release)]


def _is_replacing(part: Run | HyperparameterSearch) -> bool:
    """Whether a part is accounted for replacing a user."""
    return part.adjacency in (Adjacency.REPLACE_USER, Adjacency.REPLACE_USER_IN_GROUP, Adjacency.REPLACE_RECORDS)


def _run(run: Run, is_replacing: bool) -> Run:
    """The run under the relation of the sum, where it is known under more than one."""
    if is_replacing and isinstance(run, NoAmplification):
        return dataclasses.replace(run, adjacency=Adjacency.REPLACE_RECORDS)
    return run


def _emptied(runs: Sequence[Run]) -> list[Run]:
    """The runs that are accounted for an emptied or absent user, all under one relation."""
    found = [run for run in runs if not _is_replacing(run)]
    if all(isinstance(run, NoAmplification) for run in found):
        return found
    return [_as_absent(run) for run in found]


def _as_absent(run: Run) -> Run:
    """A run as it is for a user who is there or is not: the two distributions are those of one who is emptied."""
    if isinstance(run, NoAmplification):
        return PoissonUsers(run.noise_multiplier, 1.0, run.max_participations)
    if isinstance(run, PoissonGroups):
        return dataclasses.replace(run, adjacency=Adjacency.ADD_OR_REMOVE_USER)
    return run


def _least(release: Description, log_delta: float) -> tuple[float, str]:
    """Epsilon by the tightest accountant that has an answer, and its name; infinite where none has."""
    for name in [name for name in _TIGHTEST_FIRST if name in accountants.methods(release)]:
        try:
            return acc.epsilon(release, math.exp(log_delta), name), name
        except acc.AccountingError:
            continue
    return math.inf, "none"


def _twice(release: Description, log_delta: float) -> tuple[float, str]:
    """Epsilon of an add-or-remove claim under replace-one: 2 epsilon at (1 + e^epsilon) delta."""

    def is_within(own: float) -> bool:
        """Whether the claim at log delta `own` has at most the delta that is wanted once it is taken twice."""
        epsilon = _least(release, own)[0]
        return own + max(epsilon, 0.0) + math.log1p(math.exp(-epsilon)) <= log_delta

    high = log_delta - math.log(2.0)
    low = _bracket(is_within, high)
    if low is None:
        return math.inf, "none"
    while high - low > _NARROW:
        middle = (low + high) / 2.0
        low, high = (middle, high) if is_within(middle) else (low, middle)
    epsilon, name = _least(release, low)
    return 2.0 * epsilon, name


def _bracket(is_within: Callable[[float], bool], high: float) -> float | None:
    """A log delta that is within, found by doubling the distance from `high`; None where there is none."""
    step = 1.0
    while high - step > _LEAST_LOG_DELTA:
        if is_within(high - step):
            return high - step
        step *= 2.0
    return None


def _is_trained_without_noise(statement: PrivacyStatement) -> bool:
    """Whether a run that claims nothing was trained; what is not known to be the untrained model was."""
    is_untrained = statement.mechanism == "zero_shot" and statement.records_per_user is None
    return statement.level == "nobody" and not is_untrained


def _value(epsilon: float | None, delta: float) -> str:
    """An (epsilon, delta) in words."""
    return "no finite epsilon" if epsilon is None else f"({rounded_up(epsilon)}, {rounded_up(delta, 3)})-DP"
