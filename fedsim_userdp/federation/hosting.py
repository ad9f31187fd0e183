"""Which node hosts which user."""

import heapq
import time
from collections.abc import Callable, Sequence

import numpy as np
from flwr.serverapp import Grid

from fedsim_userdp.population import Population
from fedsim_userdp.privacy.streams import RunKey

# Users of a cohort, and the round, to how much work each of them is; a simulation's knowledge, never a server's.
SizesFn = Callable[[Sequence[int], int], Sequence[float]]


def wait_for_nodes(grid: Grid, num_nodes: int, timeout: float = 120.0) -> list[int]:
    """Returns the ids of the grid's nodes in ascending order, once there are at least `num_nodes`.

    Args:
        grid: the nodes.
        num_nodes: how many to wait for, at least 1.
        timeout: seconds to wait, at least 0.

    Raises:
        TimeoutError: when fewer have come up after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < num_nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(nodes)} of {num_nodes} nodes came up within {timeout:.0f} s")
        time.sleep(0.05)
    return nodes


class Hosts:
    """Where users live: each on a node of their own, or on the node that a hash of their id names.

    Guarantee: where a user lives, and with whom, does not depend on who else is in the cohort or in the population.  A
        node that is gone takes the same users with it in neighbouring data sets.

    Args:
        population: the users.
        key: the run's key, which the hash derives from.
        has_node_per_user: whether there are as many nodes as users, however many users there are.
    """

    def __init__(self, population: Population, key: RunKey, *, has_node_per_user: bool = False) -> None:
        self._num_users, self.has_node_per_user = len(population), has_node_per_user
        self._shares = key.coins("hosting", population.id_hashes)

    def group(self, users: Sequence[int], nodes: Sequence[int]) -> dict[int, list[int]]:
        """Returns the users that each node hosts, for the nodes that host any.

        Args:
            users: numbers of users, distinct.
            nodes: ids of the nodes, at least one.
        """
        hosted: dict[int, list[int]] = {}
        if self.has_node_per_user:
            places = np.arange(self._num_users) % len(nodes)  # never a remainder while all nodes are there
        else:
            places = (self._shares * len(nodes)).astype(np.int64)
        for user in users:
            hosted.setdefault(nodes[places[user]], []).append(user)
        return {node: hosted[node] for node in nodes if node in hosted}


def deal_by_size(users: Sequence[int], sizes: Sequence[float], nodes: Sequence[int]) -> dict[int, list[int]]:
    """Returns the users that each node is dealt, for the nodes that get any: the largest first, each to the node with
    the least so far.

    The largest load is at most 4/3 of the least possible one (Graham 1969, "Bounds on multiprocessing timing
    anomalies").  Who shares a node depends on everybody's size: see docs/decisions/0007 for what that asks of a node
    that fails.

    Args:
        users: the users, distinct.
        sizes: the work of each of them, at least 0.
        nodes: at least one node.
    """
    dealt: list[list[int]] = [[] for _ in nodes]
    loads = [(0.0, position) for position in range(len(nodes))]
    for size, user in sorted(zip(sizes, users, strict=True), key=lambda pair: (-pair[0], pair[1])):
        load, position = heapq.heappop(loads)
        dealt[position].append(user)
        heapq.heappush(loads, (load + size, position))
    return {node: sorted(share) for node, share in zip(nodes, dealt, strict=True) if share}
