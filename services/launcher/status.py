"""What a running cluster is like: its parts, their health and memory, and how to use it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import psutil

from services.common.probe import is_serving
from services.launcher.plan import SERVICES
from services.launcher.processes import members, part_of
from services.launcher.state import State
from services.launcher.waiting import answers_http, tells_its_release

__all__ = ["checks", "show", "tell"]

_MIB = 2**20


def checks(state: State) -> dict[str, Callable[[], bool]]:
    """Part → whether it is healthy, in the order in which they depend on each other."""
    ports = state.ports
    found: dict[str, Callable[[], bool]] = {
        "mlflow": lambda: answers_http(f"http://127.0.0.1:{ports['mlflow']}/health"),
        "minio": lambda: answers_http(f"http://127.0.0.1:{ports['minio']}/minio/health/live"),
        "triton": lambda: answers_http(f"http://127.0.0.1:{ports['triton_http']}/v2/health/ready"),
    }
    for part in (*SERVICES, "restorer"):
        found[part] = _serving(f"127.0.0.1:{ports[part]}", f"vlmir.v1.{part.capitalize()}Service")
    found["gateway"] = lambda: tells_its_release(state.server)
    return {part: check for part, check in found.items() if part in state.parts}


def _serving(address: str, service: str) -> Callable[[], bool]:
    return lambda: is_serving(address, service)


def tell(folder: Path, state: State) -> None:
    """Print how to use a cluster."""
    ports = state.ports
    metrics = ", ".join(f"{part} {ports[f'{part}_metrics']}" for part in ("gateway", *SERVICES))
    print(f"restorer   {state.server}")
    print(f"registry   http://127.0.0.1:{ports['mlflow']}")
    print(f"store      {state.store}")
    print(f"metrics    http://127.0.0.1:PORT/metrics: {metrics}")
    print(f"logs       {folder / 'logs'}")
    print(
        f"\n  .venv/bin/vlmir restore photo.jpg -o restored.jpg --server {state.server}\n",
        flush=True,
    )


def show(folder: Path, state: State) -> bool:
    """Print each part with its health and the memory of its processes (resident, shared pages counted in each).

    Returns:
        Whether all are healthy.
    """
    sizes: dict[str, list[int]] = {part: [] for part in ("honcho", *state.parts)}
    for process in members(folder):
        try:
            sizes[part_of(process) or "honcho"].append(process.memory_info().rss)
        except psutil.Error:  # it has just ended
            continue
    healthy = {part: check() for part, check in checks(state).items()}
    for part, found in sizes.items():
        word = {True: "healthy", False: "not healthy"}.get(healthy.get(part, bool(found)))
        print(f"  {part:<10} {word:<12} {sum(found) // _MIB:>5} MiB in {len(found)} processes")
    return all(healthy.values()) and all(sizes.values())
