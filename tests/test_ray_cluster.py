"""How much room a cluster has, without one."""

from __future__ import annotations

import pytest

from ldeval import ray_cluster
from ldeval.ray_cluster import Cluster
from ldeval.room import fit

ray = pytest.importorskip("ray")


@pytest.mark.parametrize(
    ("gpus", "needed", "workers"),
    [
        (8, 0.6, 8),
        (8, 0.5, 16),
        (1, 0.1, 10),
        (8, 0.3, 24),
        (8, 2, 4),
        (7, 2, 3),
        (2.5, 0.5, 5),
        (0.4, 0.6, 0),
        (0, 1, 0),
    ],
)
def test_workers_share_a_gpu_only_where_each_fits_whole(
    gpus: float, needed: float, workers: int
) -> None:
    assert fit({"CPU": 100, "GPU": gpus}, {"CPU": 1, "GPU": needed}) == workers


def test_a_part_of_a_cpu_may_be_of_several() -> None:
    assert fit({"CPU": 3}, {"CPU": 0.6, "GPU": 0}) == 5


@pytest.mark.parametrize(
    ("free", "asked", "workers"),
    [
        ((8, 4), None, 12),
        ((3, 0), None, 3),
        ((0, 0), None, 1),  # waits for room
        ((3, 0), 5, 5),  # two wait
        ((8, 4), 99, 12),
    ],
)
def test_workers_are_as_many_as_have_room_beside_what_else_runs(
    monkeypatch: pytest.MonkeyPatch,
    free: tuple[int, int],
    asked: int | None,
    workers: int,
) -> None:
    def nodes() -> list[dict[str, object]]:
        held = ((8, True), (4, True), (64, False))
        return [{"Alive": alive, "Resources": {"CPU": cpus}} for cpus, alive in held]

    monkeypatch.setattr(ray, "nodes", nodes)
    monkeypatch.setattr(
        "ray._private.state.available_resources_per_node",
        lambda: {str(n): {"CPU": cpus} for n, cpus in enumerate(free)},
    )
    monkeypatch.setattr(ray_cluster, "FREED", 0.0)
    assert ray_cluster._with_room(Cluster(workers=asked)).workers == workers


def test_without_what_ray_does_not_promise_nodes_count_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8}}]
    )
    monkeypatch.delattr("ray._private.state.available_resources_per_node")
    assert ray_cluster._with_room(Cluster(cpus=2)).workers == 4


def test_at_an_address_of_ray_client_nodes_count_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """This process is no part of the cluster then, and Ray's own call says so."""

    def refused() -> None:
        raise ray.exceptions.RaySystemError("Ray has not been started yet.")

    monkeypatch.setattr(
        ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8}}]
    )
    monkeypatch.setattr("ray._private.state.available_resources_per_node", refused)
    assert ray_cluster._with_room(Cluster(cpus=2)).workers == 4
