"""A Ray of its own, and in it what a Serve config describes: ``python -m services.launcher.serve CONFIG``.

``serve run`` alone starts Ray with a dashboard of a third of a gigabyte, and an object store of a third of the memory.
"""

from __future__ import annotations

import os
import signal
import sys

import ray
from ray.serve.scripts import cli

__all__: list[str] = []

OBJECT_STORE_BYTES = 512 * 2**20
"""Ray's proxy hands bigger messages over by it; what does not fit goes to disk."""

LOGICAL_CPUS = 8
"""What Ray schedules by; the replicas and Serve's own actors compute next to nothing."""

METRICS = "VLMIR_RAY_METRICS_PORT"
"""Variable of the port at which Prometheus may read what Ray and Serve count; without it, any free one."""


def main(config: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    ray.init(
        address="local",
        namespace="serve",  # where `serve run` looks for what runs already
        num_cpus=LOGICAL_CPUS,
        num_gpus=0,
        object_store_memory=OBJECT_STORE_BYTES,
        include_dashboard=False,
        _metrics_export_port=int(os.environ.get(METRICS, "0")) or None,
        _temp_dir=os.path.join(os.environ["RAY_TMPDIR"], "ray"),
    )
    # Ray would abort on SIGTERM; `serve run` stops well on Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cli(["run", config])


if __name__ == "__main__":
    main(sys.argv[1])
