"""What a run's privacy statement says besides what was released: foreign code, and what is taken as public."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, Self

from fedsim_userdp.mechanisms.settings_tree import OWN_CODE, Tree, foreign_targets
from fedsim_userdp.participation import declared_release
from fedsim_userdp.population import Population
from fedsim_userdp.privacy import accounting as acc
from fedsim_userdp.privacy.statement import PUBLIC, USERS
from fedsim_userdp.sampling_plan import follows_population
from fedsim_userdp.selection import ClientSelector, Stating, foreign_name

_FACTS = "what selection.public says of each user, who is in it, and how many there are of each kind"


@dataclass(frozen=True)
class Circumstances:
    """What a run's privacy statement says besides what was released.

    Attributes:
        foreign: names of classes that are not this package's.
        window: most tokens of a record; None where that is not known.
        public: what is taken as public, as noun phrases.
        precision: what products are done in.
        evaluated_on: which users are scored.
        selector: name of the class, not of this package, that chooses who takes part; empty where it is this package's.
        users: what a user is, as a noun phrase.
        searched_by: what tells the search that the settings were chosen in from others; empty where there is none.
    """

    foreign: tuple[str, ...] = ()
    window: int | None = None
    public: tuple[str, ...] = PUBLIC
    precision: str = "float32"
    evaluated_on: Literal["heldout", "validation"] = "heldout"
    selector: str = ""
    users: str = USERS
    searched_by: str = ""

    def naming(self, foreign: Sequence[str]) -> Self:
        """Returns the same with more classes that are not this package's."""
        return replace(self, foreign=tuple(dict.fromkeys((*self.foreign, *foreign))))

    def after(self, notes: object) -> Self:
        """Returns what holds of a run that began under other settings, which its checkpoint noted.

        Args:
            notes: what `to_notes` gave then; anything else is none.
        """
        if not isinstance(notes, dict):
            return self
        foreign, precision = notes.get("foreign"), str(notes.get("precision", self.precision))
        names = foreign if isinstance(foreign, list) else []
        coarser = self.precision if precision == Circumstances.precision else precision
        return replace(
            self,
            foreign=tuple(dict.fromkeys((*map(str, names), *self.foreign))),
            precision=coarser,
            selector=self.selector or str(notes.get("selector", "")),
        )

    def to_notes(self) -> dict[str, object]:
        """Returns what a checkpoint keeps of it: it held of the rounds that are done, whatever changes later."""
        return {"foreign": list(self.foreign), "precision": self.precision, "selector": self.selector}


def foreign_classes(tree: Tree, selector: ClientSelector, *others: object) -> tuple[str, ...]:
    """Returns the names of classes that are not this package's; what they do is believed, as the statement says."""
    kinds = [other.func if isinstance(other, partial) else type(other) for other in others]
    classes = (f"{kind.__module__}.{kind.__qualname__}" for kind in kinds)
    foreign = [name for name in classes if name.split(".")[0] != OWN_CODE and not name.startswith("torch.optim.")]
    chooser = foreign_name(selector)
    return tuple(dict.fromkeys((*([chooser] if chooser else []), *named_foreign(tree), *foreign)))


def named_foreign(tree: Tree) -> tuple[str, ...]:
    """Returns the `_target_`s of a run's settings that are not this package's, as they are named there."""
    of_run = {key: value for key, value in tree.items() if key != "compare"}  # which names other runs' mechanisms
    return tuple(dict.fromkeys(foreign_targets(of_run)))


def is_add_or_remove(selector: ClientSelector, num_users: int, rounds: int) -> bool:
    """Returns whether the selection's claim is for adding or removing a user, so that nobody has a place to keep."""
    if isinstance(selector, Stating):
        return not follows_population(selector)
    try:
        release = declared_release(selector, 1.0, Population.numbered(num_users), rounds)
    except ValueError:  # said where the run begins
        return False
    return release.adjacency is acc.Adjacency.ADD_OR_REMOVE_USER


def taken_as_public(tree: Tree, *, keep_places: bool) -> tuple[str, ...]:
    """Returns what a claim takes as public, though some of it follows from users' text."""
    tokens, split = tree["tokens"], tree["split"]
    filters = f"at least {tokens['min_words']} words in all, and a record of at least {tokens['min_tokens']} tokens"
    who = "every id that the corpus names, with usable text or not" if keep_places else f"who has {filters}"
    return (
        f"the number of users, and who is one: {who}",
        f"the split by a hash of ids: {split['heldout_users']} held out, {split['validation_users']} for validation",
        f"that records are cut into windows of {tokens['window']} tokens"
        if tokens["long_records"] == "split"
        else f"that records are cut to their first {tokens['window']} tokens",
        *([] if tree["selection"].get("public") is None else [_FACTS]),
        *_columns_in_words(tree["selection"].get("public_columns")),
        *(["delta, which follows from the number of users"] if tree["privacy"]["delta"] is None else []),
        "the settings of the run",
    )


def _columns_in_words(names: object) -> list[str]:
    """What is public of a corpus' columns that are declared public."""
    if not isinstance(names, Sequence) or isinstance(names, str) or not names:
        return []
    named = ", ".join(map(str, names))
    return [f"what the corpus says of each user in {named}, and how many users there are of each kind"]


def licence_of(data: Tree, kind: type | None) -> str:
    """Returns the licence of a corpus's text: as set, else as a class of this package states it.

    Args:
        data: the corpus's settings.
        kind: its class; None where it must not be imported.
    """
    if (stated := data.get("license")) is not None:
        return str(stated)
    is_own = kind is not None and kind.__module__.split(".")[0] == OWN_CODE
    return str(getattr(kind, "license", "unknown")) if is_own else "unknown"
