from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsim_userdp.data.corpus import Record
from fedsim_userdp.data.perplexity import PerplexityRecords
from fedsim_userdp.data.records import RandomRecords
from fedsim_userdp.data.store import open_store
from fedsim_userdp.data.writer import hash_id
from fedsim_userdp.federation.hosting import Hosts, deal_by_size
from fedsim_userdp.federation.worker import Worker
from fedsim_userdp.population import Population
from fedsim_userdp.privacy.streams import RunKey
from fedsim_userdp.settings import TokenSettings
from fedsim_userdp.training.cohort import LocalTraining
from fedsim_userdp.training.users import TrainingUsers
from tests.data.sources import MemoryCorpus, WordTokenizer

WINDOW, MOST_RECORDS = 16, 16


def imbalance(loads: list[float]) -> float:
    return (max(loads) - min(loads)) / max(loads)


def zipf_users(folder: Path, num_users: int = 400) -> TrainingUsers:
    """User u has about 3000 / (u + 1) words in records of 1 to 40 of them, cut at 16 tokens and capped at k."""
    generator = np.random.default_rng(0)
    records = []
    for user in generator.permutation(num_users):
        left = max(2, 3000 // (int(user) + 1))
        while left > 0:
            words = min(left, int(generator.integers(1, 41)))
            records.append(Record(f"user {user}", " ".join(["word"] * words)))
            left -= words
    store = open_store(
        MemoryCorpus(records), WordTokenizer(), TokenSettings(window=WINDOW, min_words=0, min_tokens=2), folder
    )
    return TrainingUsers(store, np.arange(store.num_users), RandomRecords(), MOST_RECORDS, WINDOW, RunKey.seeded(0))


def sizes_of(users: TrainingUsers, cohort: Sequence[int], round: int) -> list[float]:
    """What a worker without a model says of the users' sizes."""
    return Worker(None, users, LocalTraining()).sizes(cohort, round)  # type: ignore[arg-type]


@pytest.mark.parametrize("num_nodes", [2, 4, 8, 16])
@pytest.mark.parametrize("round", range(1, 6))
def test_loads_of_zipf_sized_users_differ_by_at_most_a_tenth(tmp_path: Path, num_nodes: int, round: int) -> None:
    users = zipf_users(tmp_path)
    cohort = np.random.default_rng(round).choice(len(users), 128, replace=False).tolist()
    sizes = sizes_of(users, cohort, round)
    tokens = {unit.index: sum(map(len, unit.records)) for unit in users.units(cohort, round)}
    assert max(tokens.values()) > 10 * min(tokens.values())
    dealt = deal_by_size(cohort, sizes, range(num_nodes))
    assert imbalance([sum(tokens[user] for user in share) for share in dealt.values()]) <= 0.1


def test_where_choosing_would_run_a_model_the_sizes_are_estimates_from_the_offsets(tmp_path: Path) -> None:
    users = zipf_users(tmp_path)
    chosen = sizes_of(users, range(100), 1)
    ranked = replace(users, selector=PerplexityRecords(highest=True))  # not bound to any scores
    estimated = sizes_of(ranked, range(100), 1)
    assert np.corrcoef(chosen, estimated)[0, 1] > 0.8
    assert sum(estimated) == pytest.approx(sum(chosen), rel=0.1)


def test_hosting_by_id_would_not_balance_the_same_users(tmp_path: Path) -> None:
    users = zipf_users(tmp_path)
    cohort = np.random.default_rng(1).choice(len(users), 128, replace=False).tolist()
    tokens = {unit.index: sum(map(len, unit.records)) for unit in users.units(cohort, 1)}
    hosted = Hosts(users.population, users.key).group(cohort, range(8))
    assert imbalance([sum(tokens[user] for user in share) for share in hosted.values()]) > 0.1


@given(st.lists(st.floats(0, 1e6), max_size=60), st.integers(1, 9))
def test_every_user_is_dealt_to_exactly_one_node_and_no_node_is_loaded_beyond_grahams_bound(
    sizes: list[float], num_nodes: int
) -> None:
    users = [7 * number + 3 for number in range(len(sizes))]
    dealt = deal_by_size(users, sizes, range(100, 100 + num_nodes))
    assert sorted(user for share in dealt.values() for user in share) == users
    assert all(share for share in dealt.values())
    of = dict(zip(users, sizes, strict=True))
    heaviest = max((sum(of[user] for user in share) for share in dealt.values()), default=0.0)
    ordered = sorted(sizes, reverse=True)
    pair = sum(ordered[num_nodes - 1 : num_nodes + 1]) if len(ordered) > num_nodes else 0.0
    least = max([sum(sizes) / num_nodes, *ordered[:1], pair])  # no schedule can do better than this
    assert heaviest <= 4 / 3 * least + 1e-6


def test_dealing_does_not_depend_on_the_order_of_the_cohort() -> None:
    users, sizes = list(range(20)), [float(user % 5) for user in range(20)]
    backwards = deal_by_size(users[::-1], sizes[::-1], [1, 2, 3])
    assert backwards == deal_by_size(users, sizes, [1, 2, 3])


def lives(names: list[str], num_nodes: int) -> dict[str, int]:
    """The node of each user, of a population in the order of its ids' hashes."""
    hashes = np.array([np.frombuffer(hash_id(name.encode()), "<u8")[0] for name in names])
    order = np.argsort(hashes)
    hosts = Hosts(Population(hashes[order]), RunKey.seeded(3)).group(range(len(names)), range(num_nodes))
    return {names[order[user]]: node for node, share in hosts.items() for user in share}


@pytest.mark.parametrize("position", [0, 7, 20])
def test_one_user_more_anywhere_in_the_population_moves_nobody_to_another_node(position: int) -> None:
    names = [f"user {number}" for number in range(20)]
    before = lives(names, 4)
    after = lives([*names[:position], "someone else", *names[position:]], 4)
    assert {name: after[name] for name in names} == before
    assert len(set(before.values())) == 4


def test_where_a_user_lives_does_not_depend_on_the_cohort() -> None:
    hosts = Hosts(Population.numbered(10), RunKey.seeded(0))
    alone = hosts.group([4], [5, 7, 9])
    assert all(user in hosts.group(range(10), [5, 7, 9])[node] for node, share in alone.items() for user in share)


def test_with_a_node_for_each_user_everybody_lives_alone() -> None:
    hosts = Hosts(Population.numbered(6), RunKey.seeded(0), has_node_per_user=True)
    hosted = hosts.group(range(6), range(100, 106))
    assert hosted == {100 + user: [user] for user in range(6)}
