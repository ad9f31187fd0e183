"""One case of each kind that once moved other users' updates, or who is a user at all."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.neighbours.test_neighbours import SELECTIONS, check, compared, neighbours
from tests.neighbours.worlds import people, seen, write

pytestmark = pytest.mark.usefixtures("quick_accounting")
MORE: dict[str, tuple[str, str, str, list[str]]] = {
    "masks of dropout": ("user_wise", "seldom", "gpt2", ["lora.dropout=0.5"]),
    "masks of dropout on records": ("group_privacy", "seldom", "gpt2", ["lora.dropout=0.5", "central.engine=stacked"]),
    "local steps that diverge": ("user_wise", "seldom", "gpt2", ["local.steps=10", "local.learning_rate=1000"]),
    "products in bfloat16": ("user_wise", "seldom", "gpt2", ["model.autocast=bfloat16"]),
    "records in bfloat16": ("group_privacy", "seldom", "llama", ["model.autocast=bfloat16"]),
    "experts that see all tokens": ("user_wise", "seldom", "qwen2_moe", []),
    "cohorts by coins": ("user_wise", "poisson", "gpt2", ["records=random_chunk"]),
    "users who are emptied": ("user_wise", "cyclic", "gpt2", ["tokens.min_words=20"]),
    "losses that are sent as well": ("user_wise_adaptive", "power_of_choice", "gpt2", []),
    "losses after several steps": ("user_wise", "power_of_choice", "gpt2", ["local.steps=3", "engine.num_nodes=2"]),
    "users who are replaced": ("user_wise", "fixed_size", "gpt2", ["tokens.min_words=20"]),
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("kind", MORE)
def test_one_user_moves_the_sum_by_what_is_accounted(kind: str, tmp_path: Path) -> None:
    mechanism, selection, family, options = MORE[kind]
    for where in (0, 1):
        before, after = neighbours(selection, where, mechanism)
        one, other = compared(
            tmp_path / str(where), before, after, mechanism=mechanism, selection=SELECTIONS[selection], family=family,
            options=[*options, "lora.freeze_a=false"],
        )  # fmt: skip
        check(one, other, selection)
        assert max(one.run.study.num_users, other.run.study.num_users) >= 5


@pytest.mark.parametrize("dead", [1, 2, 3])
def test_a_dead_node_takes_the_same_users_with_it_in_both_worlds(dead: int, tmp_path: Path) -> None:
    before, after = neighbours("seldom", 0, "user_wise")
    one, other = compared(
        tmp_path, before, after, dead, mechanism="user_wise", selection=SELECTIONS["seldom"], family="gpt2",
        options=["engine.num_nodes=3"],
    )  # fmt: skip
    check(one, other, "seldom", is_dead=True)


def settings_of(folder: Path, path: Path, extra: Sequence[str] = ()) -> list[str]:
    from tests.neighbours.test_neighbours import overrides

    return overrides(path, folder, "user_wise", SELECTIONS["seldom"], "gpt2", ["lora.dropout=0.3", *extra])


def test_the_order_of_the_file_changes_nothing(tmp_path: Path) -> None:
    everybody = people(9)
    shuffled = [everybody[number] for number in (4, 2, 8, 0, 6, 1, 3, 7, 5)]
    worlds = [
        seen(settings_of(tmp_path, write(tmp_path / name / "texts.jsonl", order)), tmp_path / name / "run")
        for name, order in (("a", everybody), ("b", shuffled))
    ]
    for round, sums in worlds[0].sums.items():
        for name, tensor in sums.items():
            torch.testing.assert_close(worlds[1].sums[round][name], tensor, rtol=1e-5, atol=1e-8)


def test_the_harness_sees_a_user_who_moves_everybody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With masks by place, as they once were, one user more moves the sum by more than the clip norm."""
    from fedsim_userdp.training.batches import MicroBatch

    real = MicroBatch.dropout_rows

    def by_place(batch: MicroBatch, at: object) -> object:
        named = tuple(replace(unit, owner=str(unit.index)) for unit in batch.members)
        return real(replace(batch, members=named), at)  # type: ignore[arg-type]

    monkeypatch.setattr(MicroBatch, "dropout_rows", by_place)
    moved = []
    for where in (0, 1):
        before, after = neighbours("seldom", where, "user_wise")
        one, other = compared(
            tmp_path / str(where), before, after, mechanism="user_wise", selection=SELECTIONS["seldom"],
            family="gpt2", options=["lora.dropout=0.5"],
        )  # fmt: skip
        with pytest.raises(AssertionError):
            check(one, other, "seldom")
        moved.append(one)
