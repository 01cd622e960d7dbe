"""A real S3 server for tests, where there is one.

``VLMIR_S3_SERVER`` names a command that starts and stops one: ``start --dir D --store memstore`` prints ``S3_URL=``,
``S3_ACCESS_KEY=``, ``S3_SECRET_KEY=`` and ``S3_REGION=`` lines when it is ready, ``stop --dir D`` ends it. Without the
variable the command is looked for beside this repository.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BESIDE = Path(__file__).parents[4] / "shared" / "tools" / "s3-server"
SERVER = os.environ.get("VLMIR_S3_SERVER") or (str(BESIDE) if BESIDE.exists() else None)

needs_s3 = pytest.mark.skipif(SERVER is None, reason="no S3 server: name one in VLMIR_S3_SERVER")


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """Settings of `StoreSettings` for a server that runs as long as the context."""
    assert SERVER is not None
    where = ["--dir", str(folder)]
    try:
        printed = subprocess.run(
            [SERVER, "start", *where, "--store", "memstore"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout
        told = dict(line.split("=", 1) for line in printed.splitlines() if line.startswith("S3_"))
        yield {
            "url": told["S3_URL"],
            "access_key": told["S3_ACCESS_KEY"],
            "secret_key": told["S3_SECRET_KEY"],
            "region": told["S3_REGION"],
        }
    finally:
        subprocess.run([SERVER, "stop", *where, "--kill"], check=False, stdout=subprocess.DEVNULL)
