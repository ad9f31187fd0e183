"""Settings of the engine on Flower's Simulation Runtime; what it computes is in `test_engines`."""

import socket
from typing import Any

import pytest

from fedsim_userdp.federation.engines import Engine, InProcessEngine, has_node_per_user
from fedsim_userdp.federation.engines.deployment import DeploymentEngine
from fedsim_userdp.federation.engines.flower_engine import FlowerEngine
from fedsim_userdp.federation.engines.ray_cluster import WorkerResources, connected_to_ray

WRONG = [
    {"num_nodes": 0}, {"num_nodes": 1.5}, {"num_nodes": "many"}, {"threads": 0}, {"num_cpus": 0}, {"num_cpus": "many"},
    {"num_gpus": -1}, {"num_gpus": "all"}, {"max_retries": -1}, {"max_retries": 0.5}, {"round_timeout": 0},
    {"round_timeout": "soon"},
]  # fmt: skip


@pytest.mark.parametrize("settings", WRONG, ids=str)
def test_a_wrong_setting_is_refused_by_its_name(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"^{name}={value}"):
        FlowerEngine(**settings)


@pytest.mark.parametrize("settings", [{"num_nodes": 0}, {"max_retries": -1}, {"round_timeout": -2.0}], ids=str)
def test_a_wrong_setting_of_the_deployment_is_refused_by_its_name(settings: dict[str, Any]) -> None:
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"^{name}={value}"):
        DeploymentEngine(**settings)


def test_users_are_dealt_by_size_only_where_a_failed_nodes_users_are_done_again() -> None:
    assert FlowerEngine(num_nodes=2).deals_by_size(10)
    assert not FlowerEngine(num_nodes=2, max_retries=0).deals_by_size(10)
    assert not FlowerEngine(num_nodes=None).deals_by_size(10)
    assert not InProcessEngine(num_nodes=2).deals_by_size(10)


@pytest.mark.parametrize(
    "engine",
    [
        FlowerEngine(num_nodes=4),
        FlowerEngine(num_nodes=4, max_retries=0),
        FlowerEngine(),
        DeploymentEngine(num_nodes=4),
        DeploymentEngine(num_nodes=4, max_retries=0),
        InProcessEngine(num_nodes=4),
        InProcessEngine(num_nodes=None),
    ],
    ids=str,
)
def test_how_users_are_hosted_does_not_change_with_one_user_more(engine: Engine) -> None:
    found = {(engine.deals_by_size(number), has_node_per_user(engine, number)) for number in range(4, 10)}
    assert len(found) == 1


def test_workers_that_die_are_started_again() -> None:
    options = WorkerResources(num_cpus=2, num_gpus=0.5).to_actor_options()
    assert options == {"num_cpus": 2, "num_gpus": 0.5, "max_restarts": -1}


@pytest.mark.parametrize("address", ["somewhere", ":1", "ray://127.0.0.1:1", "127.0.0.1:http"])
def test_an_address_of_no_known_form_is_refused(address: str) -> None:
    with pytest.raises(ValueError, match=r"engine\.address=.* must be auto or HOST:PORT"), connected_to_ray(address, 1):
        pass


def test_an_address_where_nothing_listens_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = pytest.raises(ConnectionError, match=rf"engine\.address=127\.0\.0\.1:{port}: nothing answers")
    with said, connected_to_ray(f"127.0.0.1:{port}", 1):
        pass


def test_the_deployment_engine_outside_of_flower_says_what_to_use() -> None:
    with pytest.raises(ValueError, match="engine=deployment runs under `flwr run` only"):
        DeploymentEngine().num_nodes_for(10)
