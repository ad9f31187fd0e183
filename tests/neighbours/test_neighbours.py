"""One user more, replaced or blanked: all that is public stays, and the sum before noise moves by what is accounted.

Configurations are drawn from the settings' own files: a new mechanism, selection or choice of records is tried too.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from fedsim_userdp import conf
from fedsim_userdp.errors import RoundError
from fedsim_userdp.privacy import accounting as acc
from tests.neighbours.worlds import (
    CLIP_NORM,
    FAMILIES,
    ROUNDS,
    K,
    Person,
    World,
    blanked,
    bound,
    distances,
    family_folder,
    people,
    seen,
    write,
)

CONF = Path(str(conf.__file__)).parent
NUM_PEOPLE = 9
ROUNDING = 1e-4  # of C: what the rounding of sums, and of float32 products in a shared micro-batch, amounts to
NEWCOMER = Person("somebody else", ("a treaty of peace " * 9, "law", "the great labor of the people " * 30, "is"))


def choices(group: str) -> list[str]:
    """The files of settings of a group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


BOUND = 2.0  # of the losses that users send, which are above
MECHANISMS = [name for name in choices("mechanism") if name not in ("non_private", "zero_shot")]
SELECTIONS = {
    "poisson": ["selection=poisson", "selection.sampling_prob=0.6"], "seldom": ["selection.sampling_prob=1.0"],
    "fixed_size": ["selection=fixed_size", "selection.cohort_size=4"],
    "cyclic": ["selection=cyclic", "selection.cohort_size=4"],
    "growing": ["selection=growing", "selection.first_prob=0.4", "selection.last_prob=1.0"],
    "round_robin": ["selection=round_robin", "selection.num_blocks=2", "selection.sampling_prob=0.8"],
    "fixed_strata": ["selection=fixed_strata", "selection.users_per_group=2"],
    "separated": ["selection=separated", "selection.min_separation=2", "selection.cohort_size=2"],
    "truncated_poisson": [
        "selection=truncated_poisson", "selection.sampling_prob=0.8", "selection.most_users=5",
    ],
    "stratified": ["selection=stratified", "selection.users_per_group=2"],
    "availability": ["selection=availability", "selection.sampling_prob=0.7", "selection.hours_per_day=3"],
    "importance": ["selection=importance", "selection.cohort_size=5"],
    "longest_ago": [
        "selection=longest_ago", "selection.cohort_size=4", "selection.begin=available_from",
        "selection.end=available_to", "selection.hours_per_day=3",
    ],
    "power_of_choice": [
        "selection=power_of_choice", "selection.cohort_size=5", "selection.most_prob=0.9",
        f"selection.signals.loss.bound={BOUND}",
    ],
}  # fmt: skip
SAMPLED = ("poisson", "seldom", "growing", "truncated_poisson")  # for adding or removing a user
EMPTIED = (
    "cyclic",
    "separated",
    "round_robin",
    "stratified",
    "availability",
    "importance",
    "power_of_choice",
    "longest_ago",
)
OPTIONS: dict[str, list[list[str]]] = {
    "records": [[f"records={name}"] for name in choices("records")],
    "nodes": [["engine.num_nodes=1"], ["engine.num_nodes=3"], ["engine.num_nodes=null"]],
    "dropout": [["lora.dropout=0"], ["lora.dropout=0.5"]],
    "factors": [["lora.freeze_a=true"], ["lora.freeze_a=false"]],
    "packing": [["local.max_tokens=16"], ["local.max_tokens=100"], ["local.max_tokens=4096"]],
    "local": [
        ["local.steps=1"], ["local.steps=3"], ["local.steps=10", "local.learning_rate=1000"],
        ["local.steps=4", "local.learning_rate=1e20"],
    ],
    "precision": [["model.dtype=float32"], ["model.autocast=bfloat16"], ["model.dtype=bfloat16"]],
    "text": [
        ["tokens.min_words=0"], ["tokens.min_words=20"], ["tokens.min_tokens=12"], ["tokens.long_records=truncate"],
        ["tokens.window=8", "tokens.min_tokens=2"],
    ],
    "central": [["central.engine=opacus"], ["central.engine=stacked"]],
}  # fmt: skip


def test_every_selection_of_the_settings_is_tried() -> None:
    assert sorted(SELECTIONS) == choices("selection")


def overrides(
    path: Path, folder: Path, mechanism: str, selection: Sequence[str], family: str, options: Sequence[str]
) -> list[str]:
    """The settings of a run on a file."""
    return [
        "data=jsonl", f"data.path={path}", f"cache_dir={folder / 'cache'}", "split.heldout_users=2",
        "split.validation_users=1", "tokens.window=16", "tokens.min_words=0", f"tuned.rounds={ROUNDS}",
        f"tuned.records_per_user={K}", f"mechanism={mechanism}", f"mechanism.clip_norm={CLIP_NORM}",
        "evaluation.records_per_user=1", "evaluation.every=100", "privacy.delta=0.01", "privacy.epsilon=50",
        f"model.path={family_folder(folder / 'models', family)}", "model.device=cpu", "lora.rank=2", *selection,
        *options,
    ]  # fmt: skip


def neighbours(selection: str, where: int, mechanism: str) -> tuple[list[Person], list[Person]]:
    """Two data sets that the selection's guarantee calls neighbours, and a reordering of the file besides."""
    everybody = people(NUM_PEOPLE)
    place = [0, NUM_PEOPLE // 2, NUM_PEOPLE][where]
    if selection in SAMPLED:
        return everybody, [*everybody[:place], NEWCOMER, *everybody[place:]]
    position = min(place, NUM_PEOPLE - 1)
    changed = list(everybody)
    own = everybody[position]
    changed[position] = blanked(own) if selection in EMPTIED else replace(own, texts=NEWCOMER.texts)
    return everybody, changed


def public_facts(path: Path, everybody: Sequence[Person]) -> Path:
    """Writes what is public about people, and returns its path."""
    rows = ["user_id,region,available_from,available_to,records"]
    for number, name in enumerate(sorted({person.name for person in everybody})):
        rows.append(f"{name},{'ab'[number % 3 == 0]},{number % 3},{(number + 1) % 3},{1 + number % 4}")
    path.write_text("\n".join(rows) + "\n")
    return path


def compared(
    folder: Path, before: Sequence[Person], after: Sequence[Person], dead_node: int | None = None, **chosen: Any
) -> tuple[World, World]:
    """Both worlds of a configuration."""
    found = []
    for name, everybody in (("before", before), ("after", after)):
        path = write(folder / name / "texts.jsonl", everybody)
        facts = public_facts(folder / "facts.csv", [*everybody, NEWCOMER])
        settings = [*overrides(path, folder, **chosen), f"selection.public={facts}"]
        found.append(seen(settings, folder / name / "run", dead_node))
        for file in (folder / name / "run").rglob("*"):
            file.unlink() if file.is_file() else None
    return found[0], found[1]


def check(one: World, other: World, selection: str, *, is_dead: bool = False) -> None:
    """Asserts what the guarantee rests on."""
    if selection not in SAMPLED:
        assert one.num_users == other.num_users, "who is a user followed from text"
        assert one.denominator == other.denominator
        assert one.release == other.release
    moved, allowed = distances(one, other), bound(one)
    assert max(moved.values()) <= allowed + ROUNDING, moved
    for round, told in one.signals.items():
        sums, counts = np.abs(told - other.signals[round])
        assert np.count_nonzero(counts) <= 1, "a user is in one group"
        assert max(2 * sums.sum() / BOUND, counts.sum()) <= allowed + ROUNDING
    if one.balances and not is_dead:
        assert all(abs(one.balances[r] - other.balances[r]) <= allowed / 2 for r in one.balances)


def tried(
    folder: Path, mechanism: str, selection: str, family: str, options: list[str], where: int, dead: bool
) -> bool:
    """Compares the worlds of one configuration; returns whether it was accepted."""
    nodes = next((option for option in options if option.startswith("engine.num_nodes=")), "engine.num_nodes=1")
    dead_node = 2 if dead and nodes == "engine.num_nodes=3" else None
    before, after = neighbours(selection, where, mechanism)
    chosen = {
        "mechanism": mechanism, "selection": SELECTIONS[selection], "family": family, "options": options,
    }  # fmt: skip
    try:
        one, other = compared(folder, before, after, dead_node, **chosen)
    except (ValueError, RoundError, acc.AccountingError):  # refused, or nobody answered
        return False
    note(f"{chosen} dead={dead_node} place={where}")
    check(one, other, selection, is_dead=dead_node is not None)
    return True


def configurations() -> st.SearchStrategy[tuple[str, str, str, list[str], int, bool]]:
    """Gives mechanism, selection, model family, options, where the neighbour stands, and whether a node is dead."""
    options = st.tuples(*(st.sampled_from(values) for values in OPTIONS.values()))
    return st.tuples(
        st.sampled_from(MECHANISMS),
        st.sampled_from(sorted(SELECTIONS)),
        st.sampled_from(sorted(FAMILIES)),
        options.map(lambda parts: list(itertools.chain.from_iterable(parts))),
        st.integers(0, 2),
        st.booleans(),
    )


def try_many(folder: Path, number: int) -> None:
    """Tries so many configurations; at least a fifth must be accepted, or the test would say little."""
    accepted: list[bool] = []

    @settings(
        max_examples=number,
        deadline=None,
        derandomize=number < 100,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate),
    )
    @given(configurations())
    def run(chosen: tuple[str, str, str, list[str], int, bool]) -> None:
        accepted.append(tried(folder / str(len(accepted)), *chosen))

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        run()
    finally:
        torch.set_num_threads(threads)
    assert sum(accepted) >= number / 5


def test_one_user_moves_no_accepted_configuration_further_than_is_accounted(
    tmp_path: Path, quick_accounting: None
) -> None:
    try_many(tmp_path, 12)


@pytest.mark.slow
def test_one_user_moves_no_accepted_configuration_further_than_is_accounted_at_length(
    tmp_path: Path, quick_accounting: None
) -> None:
    try_many(tmp_path, 400)
