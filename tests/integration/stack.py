"""The whole cluster for tests: Ray Serve, three services that are begun again, a real Triton and a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.integration.cluster import starting_cluster
from tests.integration.serving import Application, running_ray, serving
from tests.integration.triton import RealTriton, running_triton, write_embedder
from tests.unit.services.s3 import kill_s3, s3_server, start_s3

REPLICA = "ray::ServeReplica:vlmir:restorer"


@dataclass
class Stack:
    """It, running."""

    app: Application
    triton: RealTriton
    s3_folder: Path

    def restart_s3(self) -> None:
        """End the store as a crash would; it comes back with what it had, as by a process manager."""
        kill_s3(self.s3_folder)
        start_s3(self.s3_folder, lasting=True)

    def memory(self) -> int:
        """Bytes that the services hold, and the restorer's biggest replica: with load there come more of them."""
        own = [one for service in self.app.cluster.services for one in service.processes]
        replicas = [one for one in psutil.process_iter() if one.name().startswith(REPLICA[:15])]
        assert len(own) == 3
        held = [one.memory_full_info().uss for one in own]
        return sum(held) + max(one.memory_full_info().uss for one in replicas)


@contextmanager
def running_stack(bundle: Path, folder: Path) -> Iterator[Stack]:
    """Start it all.

    Args:
        bundle: The weights.
        folder: For what its parts write.
    """
    places = [folder / name for name in ("models", "triton", "s3", "services")]
    for place in places:
        place.mkdir()
    models, triton_folder, s3_folder, kept = places
    write_embedder(models, bundle)
    with ExitStack() as held:
        triton = held.enter_context(running_triton(models, triton_folder))
        s3 = held.enter_context(s3_server(s3_folder, lasting=True))
        store = {f"VLMIR_STORE_{name.upper()}": text for name, text in s3.items()}
        store["VLMIR_STORE_TENSORS_ABOVE"] = "100000"
        held.enter_context(running_ray(store))  # in whose environment the services start, too
        embedder = ("--backend", "triton", "--triton", triton.address)
        services = held.enter_context(starting_cluster(bundle, kept=kept, embedder=embedder))
        yield Stack(held.enter_context(serving(services)), triton, s3_folder)
