"""A Ray cluster to compute on: which one, with how much for each worker, and the
connection to it.

Apart from :mod:`ray_pool`, whose workers do not care where they are.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from urllib.parse import urlsplit

from ldeval.errors import ClusterError, MissingExtraError
from ldeval.redact import redact_url
from ldeval.room import fit

log = logging.getLogger(__name__)

KNOCK = 5.0
"""Seconds to wait for an answer from an address."""
FREED = 1.0
"""Seconds after which what workers held that have just ended is counted as free."""


@dataclass(frozen=True)
class Cluster:
    """Where to compute, with what for each worker."""

    address: str | None = None
    """Of a running cluster; None for RAY_ADDRESS, else this machine alone."""
    workers: int | None = None
    """None for as many as the cluster has room for now."""
    shards: int | None = None
    """None for one a worker."""
    cpus: float = 1.0
    gpus: float | None = None
    """None for one where the cluster has any."""
    retries: int = 3
    """How often a task is given out again after its worker was lost."""

    @property
    def needs(self) -> str:
        """What a worker needs, in words."""
        return f"{self.cpus:g} CPUs and {self.gpus or 0:g} GPUs"


@contextlib.contextmanager
def connected(cluster: Cluster) -> Iterator[Cluster]:
    """Be part of a cluster, or of one that is started on this machine and ends with the
    block.

    Yields:
        The cluster with the number of its workers, and their GPUs.

    Raises:
        MissingExtraError: ray is not installed.
        ClusterError: nobody answers at the address, or there is no room for a worker.
    """
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError(error.name or "ray", "ray") from error
    if ray.is_initialized():
        yield _with_room(cluster)
        return
    address = cluster.address or os.environ.get("RAY_ADDRESS") or None
    name = "--ray" if cluster.address or not address else "RAY_ADDRESS"
    if address is not None:
        name = f"{name} {redact_url(address)}"
        _knock(address, name)
    try:
        # a cluster that happens to run on this machine is taken only if it is named
        ray.init(
            address=address or "local",
            include_dashboard=None if address else False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError) as error:
        raise ClusterError(
            f"{name}: no Ray cluster to be had ({error}). Start one with 'ray start "
            "--head' and the same versions of Ray and Python, or leave the address out."
        ) from error
    try:
        yield _with_room(cluster)
    finally:
        ray.shutdown()


def _with_room(cluster: Cluster) -> Cluster:
    """As many workers as fit; no worker is spread over machines.

    More than there is room for now may be asked for: they wait until there is. More
    than there could ever be room for are not started.
    """
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = cluster.gpus
    if gpus is None:
        gpus = 1.0 if any(node.get("GPU", 0) >= 1 for node in nodes) else 0.0
    asked = replace(cluster, gpus=gpus)
    if not asked.cpus and not gpus:
        return replace(asked, workers=cluster.workers or 1)
    needs = {"CPU": asked.cpus, "GPU": gpus}
    most = sum(fit(node, needs) for node in nodes)
    if most < 1:
        held = " and ".join(
            f"{max((node.get(kind, 0) for node in nodes), default=0):g} {kind}s"
            for kind in ("CPU", "GPU")
        )
        raise ClusterError(
            f"a worker needs {asked.needs}, and no machine of the cluster has more "
            f"than {held}. Ask for less with --ray-cpus and --ray-gpus."
        )
    if cluster.workers is not None:
        return replace(asked, workers=min(cluster.workers, most))
    return replace(asked, workers=max(1, min(_free(needs, most), most)))


def _free(needs: Mapping[str, float], most: int) -> int:
    """For how many workers there is room now, beside what else runs on the cluster."""
    import ray

    try:
        # public calls tell what is free of all machines together, not of each
        from ray._private.state import available_resources_per_node
    except ImportError:
        log.info("this Ray does not tell what is free of each machine: all is taken so")
        return most

    def count() -> int:
        return sum(fit(node, needs) for node in available_resources_per_node().values())

    try:
        found = count()
    except ray.exceptions.RaySystemError:  # of Ray Client, which is not told either
        log.info("at a ray:// address nothing tells what is free: all is taken so")
        return most
    if found < most:
        time.sleep(FREED)
        found = max(found, count())
    return found


def _knock(address: str, name: str) -> None:
    """Ray itself would try a dead address for minutes.

    Args:
        name: what the address is called in an error.
    """
    if address in ("auto", "local"):
        return
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        where = parts.hostname, parts.port
    except ValueError:  # no number, or none of a port
        where = None, None
    if where[0] is None or where[1] is None:
        raise ClusterError(
            f"{name}: is no address. Give host:port, or auto for the "
            "cluster that this machine is part of."
        )
    try:
        socket.create_connection((where[0], where[1]), KNOCK).close()
    except OSError as error:
        raise ClusterError(
            f"{name}: nobody answers there ({error.strerror or error}). Is the "
            "cluster up, and its port open to this machine?"
        ) from error
