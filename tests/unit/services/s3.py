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
def s3_server(folder: Path, *, lasting: bool = False) -> Iterator[dict[str, str]]:
    """Settings of `StoreSettings` for a server that runs as long as the context.

    Args:
        folder: Where it lies.
        lasting: What it stores outlives `kill_s3`.
    """
    try:
        yield start_s3(folder, lasting=lasting)
    finally:
        kill_s3(folder)


def start_s3(folder: Path, *, lasting: bool) -> dict[str, str]:
    """Start it, or start it again at the same address; its settings, once it is ready."""
    assert SERVER is not None
    kind = "bluestore" if lasting else "memstore"
    command = [SERVER, "start", "--dir", str(folder), "--store", kind]
    printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    told = dict(line.split("=", 1) for line in printed.splitlines() if line.startswith("S3_"))
    return {
        "url": told["S3_URL"],
        "access_key": told["S3_ACCESS_KEY"],
        "secret_key": told["S3_SECRET_KEY"],
        "region": told["S3_REGION"],
    }


def kill_s3(folder: Path) -> None:
    """End it as a crash would."""
    assert SERVER is not None
    command = [SERVER, "stop", "--dir", str(folder), "--kill"]
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL)
