"""Which node hosts which user."""

import time
from collections.abc import Sequence

from flwr.serverapp import Grid


def wait_for_nodes(grid: Grid, num_nodes: int, timeout: float = 120.0) -> list[int]:
    """Returns the ids of the grid's nodes in ascending order, once there are at least `num_nodes`.

    Raises:
        TimeoutError: when fewer have come up after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while len(nodes := sorted(grid.get_node_ids())) < num_nodes:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(nodes)} of {num_nodes} nodes came up within {timeout:.0f} s")
        time.sleep(0.05)
    return nodes


def group_by_host(users: Sequence[int], nodes: Sequence[int]) -> dict[int, list[int]]:
    """Returns the users that each node hosts, for the nodes that host any: user i lives on node i mod nodes."""
    hosted: dict[int, list[int]] = {}
    for user in users:
        hosted.setdefault(nodes[user % len(nodes)], []).append(user)
    return {node: hosted[node] for node in nodes if node in hosted}
