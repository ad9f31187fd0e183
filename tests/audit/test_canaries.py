import numpy as np
import pytest
import torch

from fedsim_userdp.audit.canaries import canary_kinds, draw_canaries, kinds_of
from fedsim_userdp.audit.directions import Directions
from fedsim_userdp.audit.training import GradientsWithCanaries, UsersWithCanaries, flatten
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.data.store import TokenStore
from fedsim_userdp.models.stacked import stack
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.training.batches import StepAddress, Unit, collate
from fedsim_userdp.training.users import TrainingUsers
from tests.audit.world import CLIP_NORM, RECORDS, SIZE, STATE, WINDOW, FakeGradients, plant

DIRECTIONS = Directions(SIZE, 1024, seed=0)


def test_coins_are_fair_and_directions_and_places_uniform() -> None:
    """4000 canaries; six standard deviations, a failure of 1e-8 in all had the seed not been fixed."""
    kind = canary_kinds(RECORDS, WINDOW)["direction"]
    canaries = draw_canaries([kind] * 4000, 6000, DIRECTIONS, seed=1)
    assert abs(canaries.included.mean() - 0.5) < 6 * 0.5 / 4000**0.5
    assert abs(canaries.candidates.mean() / 1023 - 0.5) < 6 * 0.29 / 4000**0.5
    assert abs(canaries.numbers.mean() / 9999 - 0.5) < 6 * 0.29 / 4000**0.5
    assert len(set(canaries.numbers.tolist())) == 4000
    assert abs(np.corrcoef(canaries.included, canaries.candidates)[0, 1]) < 6 / 4000**0.5


def test_the_same_seed_draws_the_same_canaries_and_another_seed_others() -> None:
    kinds = [canary_kinds(RECORDS, WINDOW)["direction"]] * 50
    first, again, other = (draw_canaries(kinds, 10, DIRECTIONS, seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.included, again.included)
    np.testing.assert_array_equal(first.numbers, again.numbers)
    assert (first.included != other.included).any()


def users_of(store: TokenStore, seed: int = 0) -> UsersWithCanaries:
    canaries = plant(store, seed)
    return UsersWithCanaries(
        store, np.arange(store.num_users), RandomRecords(), RECORDS, WINDOW, RunKey.seeded(seed), canaries
    )


def test_real_users_contribute_what_they_would_without_canaries(store: TokenStore) -> None:
    audited = users_of(store)
    plain = TrainingUsers(store, np.arange(store.num_users), RandomRecords(), RECORDS, WINDOW, RunKey.seeded(0))
    real = [number for number in range(len(audited)) if number not in audited.canaries.of_number]
    assert len(real) == len(plain)
    for user, number in enumerate(real):
        for with_canaries, without in zip(
            audited.chosen_records(number, 3), plain.chosen_records(user, 3), strict=True
        ):
            np.testing.assert_array_equal(with_canaries, without)


def test_absent_canaries_are_users_without_records(store: TokenStore) -> None:
    users = users_of(store)
    assert len(users) == store.num_users + len(users.canaries)
    for canary, number in enumerate(users.canaries.numbers):
        records = users.chosen_records(int(number), round=1)
        expected = users.canaries.kinds[canary].num_records if users.canaries.included[canary] else 0
        assert len(records) == expected
    units = users.units(range(len(users)), round=1)
    assert len(units) == store.num_users + users.canaries.included.sum()


def test_a_canary_sends_its_direction_and_a_real_unit_beside_it_its_own_gradient(store: TokenStore) -> None:
    canaries = plant(store, seed=0)
    number = int(canaries.numbers[np.flatnonzero(canaries.included)[0]])
    canary = canaries.of_number[number]
    real = next(user for user in range(canaries.num_users) if user not in canaries.of_number)
    batch = collate([Unit(real, [np.arange(4)]), Unit(number, [np.arange(2)])])
    gradients = GradientsWithCanaries(FakeGradients(), canaries, CLIP_NORM)
    found, _ = gradients(stack(STATE, 2, "cpu"), batch, StepAddress())
    alone, _ = FakeGradients()(stack(STATE, 1, "cpu"), batch.of_unit(0), StepAddress())
    for name in STATE:
        torch.testing.assert_close(found[name][0], alone[name][0])
    sent = flatten({name: found[name][1] for name in STATE})
    np.testing.assert_allclose(sent, canaries.update(canary, CLIP_NORM), rtol=1e-6)
    assert float(np.linalg.norm(sent)) == pytest.approx(canaries.kinds[canary].norm * CLIP_NORM, rel=1e-4)


def test_in_later_local_steps_a_canary_adds_nothing(store: TokenStore) -> None:
    canaries = plant(store, seed=0)
    batch = collate([Unit(int(canaries.numbers[0]), [np.arange(2)])])
    gradients = GradientsWithCanaries(FakeGradients(), canaries, CLIP_NORM)
    found, _ = gradients(stack(STATE, 1, "cpu"), batch, StepAddress(round=1, local_step=1))
    assert max(float(tensor.abs().max()) for tensor in found.values()) == 0


def test_the_kinds_go_to_the_worst_that_a_user_may_bring() -> None:
    kinds = canary_kinds(records_per_user=7, window=33)
    assert kinds["oversized"].norm == 100
    assert (kinds["many_records"].num_records, kinds["many_records"].record_tokens) == (7, 33)


@pytest.mark.parametrize("wrong", [{"nosuch": 1}, {"direction": -1}, {"direction": 1.5}, {"direction": True}])
def test_wrong_numbers_of_canaries_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"audit\.canaries"):
        kinds_of(wrong, canary_kinds(RECORDS, WINDOW))


def test_an_audit_without_canaries_is_refused() -> None:
    with pytest.raises(ValueError, match=r"audit\.canaries"):
        draw_canaries([], 10, DIRECTIONS, 0)
