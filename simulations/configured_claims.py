"""What a configuration alone says of a run's privacy statement, for `fedsim verify`; no code that it names is run.

Where a class is not this package's, what it would say is left out: its name is in the statement instead.
"""

import math
import re
from collections.abc import Iterator, Sequence

from omegaconf import DictConfig

from fedsim_userdp.data.booksum import BooksumCorpus
from fedsim_userdp.data.chitchat import ChitchatCorpus
from fedsim_userdp.data.enron import EnronCorpus
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.data.shakespeare import ShakespeareCorpus
from fedsim_userdp.data.table import TableCorpus
from fedsim_userdp.mechanisms.circumstances import is_add_or_remove, named_foreign, taken_as_public
from fedsim_userdp.mechanisms.guarantee import default_count_stddev, level_of
from fedsim_userdp.mechanisms.searches import search_in_words, searched_runs
from fedsim_userdp.mechanisms.units import user_in_words
from fedsim_userdp.participation import declared_release, expected_share
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.delta import default_delta
from fedsim_userdp.privacy.statement import NOT_PRIVATE, PrivacyStatement
from fedsim_userdp.selection import OWN, ClientSelector
from fedsim_userdp.selectors import GrowingSelector
from fedsim_userdp.simulations.arguments import foreign_targets, is_own_code
from fedsim_userdp.simulations.checks import is_same
from fedsim_userdp.simulations.names import PUBLIC

_UNKNOWN = object()
_UNITS = {
    "fedsim_userdp.mechanisms.user_wise.UserWise": "user",
    "fedsim_userdp.mechanisms.user_wise_adaptive.UserWiseAdaptive": "user",
    "fedsim_userdp.mechanisms.record_level.RecordLevelDP": "record",
    "fedsim_userdp.mechanisms.plain.NonPrivate": "none",
    "fedsim_userdp.mechanisms.plain.ZeroShot": "none",
}
_ADAPTIVE = "fedsim_userdp.mechanisms.user_wise_adaptive.UserWiseAdaptive"
_MODEL = "fedsim_userdp.models.loading.ModelSource"
_CORPORA = (BooksumCorpus, ChitchatCorpus, EnronCorpus, ShakespeareCorpus)
Pair = tuple[str, object, object]  # of a key, what is stated, and what the configuration says


def unit_of(config: DictConfig) -> str | None:
    """Returns the privacy unit of a configuration's mechanism, "user", "record" or "none"; None of a foreign one."""
    return _UNITS.get(str(config.mechanism._target_))


def differences(statement: PrivacyStatement, config: DictConfig) -> list[str]:
    """Returns how a statement differs from what was configured, a phrase for each difference."""
    pairs = [*_of_run(statement, config), *_of_circumstances(statement, config), *_of_budget(statement, config)]
    if statement.release is not None:
        told = _released(statement.release, statement.num_users, config)
        pairs.append(("selection, mechanism and rounds, which release", statement.release, told))
    other = [pair for pair in pairs if _differ(pair[1], pair[2])]
    wrong = [f"{key}: {told} is configured and {stated} is stated" for key, stated, told in other]
    rounds = config.mechanism.get("rounds")
    if rounds is not None and statement.rounds > rounds:
        wrong.append(f"mechanism.rounds: {rounds} is configured and {statement.rounds} releases are stated")
    return wrong + _foreign_problems(statement, config)


def _of_run(statement: PrivacyStatement, config: DictConfig) -> Iterator[Pair]:
    """What the mechanism's settings say of a statement."""
    missing = None if unit_of(config) else _UNKNOWN  # a foreign class may have a default of its own
    yield "mechanism.records_per_user", statement.records_per_user, config.mechanism.get("records_per_user", missing)
    yield "mechanism.clip_norm", statement.clip_norm, config.mechanism.get("clip_norm", missing)
    level, method = _claim(config)
    yield "whom mechanism protects", statement.level, level
    yield "mechanism.accountant", statement.method, method
    yield from _of_search(statement, config)


def _of_circumstances(statement: PrivacyStatement, config: DictConfig) -> Iterator[Pair]:
    """What data, model and evaluation settings say of a statement."""
    may_declare = _may_declare_owners(config.data)
    yield "noise.source", statement.noise_source, config.noise.source
    yield "evaluation.users", statement.evaluated_on, config.evaluation.users
    yield "tokens.window", statement.window, config.tokens.window
    is_told = statement.release is None or not may_declare
    yield "the ownership of records", statement.ownership, "assigned" if is_told else _UNKNOWN
    told = _precision(config.model)
    is_coarser = told == "float32" and statement.precision == "bfloat16"  # of rounds before the settings were changed
    yield "model.dtype and model.autocast", statement.precision, _UNKNOWN if is_coarser else told
    yield "data, whose user is", statement.users, user_in_words(config.data)
    yield "selection", statement.selector, _own_selector(statement, config)
    yield "records.fresh", statement.fresh_records, _is_fresh(config)
    yield "what is not private", statement.not_private, NOT_PRIVATE
    public = [taken_as_public(config, keep_places=kept) for kept in _kept_places(statement, config, may_declare)]
    yield "what is public", statement.public, statement.public if statement.public in public else public[0]


def _of_budget(statement: PrivacyStatement, config: DictConfig) -> Iterator[Pair]:
    """What was asked for; nothing where nothing is promised."""
    rounds = config.mechanism.get("rounds", 1)
    if statement.release is None:
        yield "without noise, privacy.epsilon", statement.target_epsilon, None
        yield "without noise, privacy.delta", statement.delta, None
        yield "mechanism.rounds", statement.rounds, _UNKNOWN if unit_of(config) is None else rounds
        return
    delta = config.privacy.delta
    yield "privacy.epsilon", statement.target_epsilon, config.privacy.epsilon
    yield "privacy.delta", statement.delta, default_delta(statement.num_users) if delta is None else delta


def _released(release: acc.Description, num_users: int, config: DictConfig) -> object:
    """What is released, but for the size of the noise, which is the ledger's to say; unknown of foreign code."""
    selector, unit, users = _selector(config.selection), unit_of(config), Population.numbered(num_users)
    noise_multiplier, rounds = release.noise_multiplier, config.mechanism.get("rounds")
    if selector is None or unit is None:
        return _UNKNOWN
    if unit == "none":
        return None
    if unit == "record":
        prob = min(expected_share(selector, users, rounds), 1.0)
        return acc.RecordLevel(noise_multiplier, prob, rounds, config.mechanism.records_per_user)
    run = declared_release(selector, noise_multiplier, users, rounds)
    if config.mechanism._target_ != _ADAPTIVE:
        return run
    given = config.mechanism.get("count_stddev")
    default = default_count_stddev(expected_share(selector, users, rounds) * num_users, noise_multiplier)
    return acc.AdaptiveClipping(run, default if given is None else given)


def _claim(config: DictConfig) -> tuple[object, object]:
    """Whom a mechanism protects, and by which accountant; the default one is None."""
    unit = unit_of(config)
    if unit is None:
        return _UNKNOWN, _UNKNOWN
    if unit == "none" or math.isinf(config.privacy.epsilon):
        return "nobody", None
    if unit == "user":
        return "user", None
    accountant = str(config.mechanism.get("accountant", "group"))
    level = level_of(accountant)
    return level, accountant if level == "user" else None


def _of_search(statement: PrivacyStatement, config: DictConfig) -> Iterator[Pair]:
    """Runs that the settings were chosen among; unknown where that depends on the name of a foreign corpus."""
    name = _corpus_name(config.data)
    is_told = name is not None or config.privacy.num_searched is not None or config.tuned.get("searched") is None
    number = searched_runs(config, name or "") if is_told else _UNKNOWN
    yield "privacy.num_searched", statement.num_searched, number
    yield "tuned.searched", statement.searched_by, search_in_words(config, name or "") if is_told else _UNKNOWN


def _corpus_name(data: DictConfig) -> str | None:
    """The name of a corpus; None of a foreign one."""
    if _named(data, (TableCorpus,)):
        return str(data.get("name") or data.form)
    kind = _named(data, _CORPORA)
    return None if kind is None else str(vars(kind)["name"])


def _may_declare_owners(data: DictConfig) -> bool:
    """Whether a corpus may name several owners of a record; if its text does, only the data tells."""
    if _named(data, (TableCorpus,)):
        return data.get("owners_column") is not None
    if _named(data, (EnronCorpus,)):
        return bool(data.get("owners", "sender") != "sender")
    return _named(data, _CORPORA) is None


def _precision(model: DictConfig) -> object:
    """What products are done in."""
    return (model.get("autocast") or model.get("dtype", "float32")) if model._target_ == _MODEL else _UNKNOWN


def _is_fresh(config: DictConfig) -> object:
    """Whether users choose records anew at each participation."""
    unit = unit_of(config)
    if unit is None or (unit == "user" and foreign_targets(config.records, ())):
        return _UNKNOWN
    is_random = config.records._target_.startswith(f"{RandomRecords.__module__}.Random")
    return unit == "user" and bool(config.records.get("fresh", is_random))


def _kept_places(statement: PrivacyStatement, config: DictConfig, may_declare: bool) -> Sequence[bool]:
    """Whether users without a usable record stay as places; both where only the data tells."""
    selector = _selector(config.selection)
    if selector is None:
        return (True, False)
    if (
        not is_add_or_remove(selector, statement.num_users, int(config.mechanism.get("rounds", 1)))
        or statement.ownership == "declared"
    ):
        return (True,)
    return (False, True) if may_declare else (False,)


def _selector(selection: DictConfig) -> ClientSelector | None:
    """The configured selector; None of a foreign one, and where what it states follows from who the users are."""
    kind = _named(selection, (*OWN, GrowingSelector))
    settings = {str(key): value for key, value in selection.items() if key not in ("_target_", *PUBLIC)}
    return None if kind is None else kind(**settings)


def _own_selector(statement: PrivacyStatement, config: DictConfig) -> object:
    """The name of a foreign class that chooses who takes part; any where it is stated as foreign, as a class may have
    several names, and another one may have been configured before a run went on under changed settings."""
    name = str(config.selection._target_)
    return _UNKNOWN if statement.selector in statement.foreign else "" if is_own_code(name) else name


def _named(node: DictConfig, kinds: Sequence[type]) -> type | None:
    """Which of these classes a node's `_target_` names; None for any other."""
    return next((kind for kind in kinds if f"{kind.__module__}.{kind.__qualname__}" == node.get("_target_")), None)


def _foreign_problems(statement: PrivacyStatement, config: DictConfig) -> list[str]:
    """Foreign code that a statement does not name, or names without need."""
    configured = named_foreign(config)
    wrong = [f"{name} is configured and not stated as foreign" for name in configured if name not in statement.foreign]
    spare = [name for name in statement.foreign if name not in configured]
    wrong += [f"{name!r} is stated as foreign and is no name" for name in spare if not re.fullmatch(r"[\w.<>]+", name)]
    return wrong  # others may have been configured before a run went on under changed settings


def _differ(stated: object, told: object) -> bool:
    """Whether something stated is not what was configured."""
    if told is _UNKNOWN:
        return False
    return stated != told if isinstance(told, tuple) else not is_same(stated, told)
