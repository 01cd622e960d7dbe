"""One picture through a deployed system, by the real client, to see that all parts work together."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from deploy.contract import PORTS
from deploy.manifests.kubectl import KubectlError, executable
from deploy.manifests.render import Manifest
from deploy.manifests.secrets import NAMESPACE, secret_value
from deploy.manifests.workloads import named
from vlmir.client import TLS, RestorationClient
from vlmir.errors import OptionError
from vlmir.image import Image, encode

__all__ = ["forwarded", "smoke"]

_PATIENCE_S = 300.0
_SIDE = 64


def smoke(objects: Sequence[Manifest]) -> str:
    """Restore a small picture through the gateway.

    Args:
        objects: The manifests that were deployed: they tell whether TLS and a token are needed.

    Returns:
        What came back, in a sentence.

    Raises:
        VlmirError: It cannot be restored, or the gateway cannot be reached.
    """
    told = _gateway(objects)
    # A token is only sent over TLS, so one without the other is not deployed.
    token = (os.environ.get("VLMIR_TOKEN") or _token()) if "VLMIR_TOKEN_FILE" in told else None
    with forwarded("service/vlmir-gateway", PORTS["gateway"]["grpc"]) as port, _trust(told) as tls:
        address = f"localhost:{port}"
        with RestorationClient(
            address, timeout_s=_PATIENCE_S, tls=tls, token=token, upload_above=None
        ) as client:
            restored = client.restore(_picture())
    report = restored.report
    return f"a picture was restored by {report.release}: {report.caption!r}"


def _gateway(objects: Sequence[Manifest]) -> dict[str, str]:
    """Variables of the gateway."""
    maps = named(objects, "ConfigMap")
    name = next(name for name in maps if name.startswith("vlmir-gateway"))
    data: dict[str, str] = maps[name]["data"]
    return data


def _token() -> str:
    try:
        return secret_value("vlmir-batch", "token")
    except KubectlError as error:
        raise OptionError("Set VLMIR_TOKEN to a token that the gateway knows.") from error


@contextmanager
def _trust(told: dict[str, str]) -> Iterator[TLS | None]:
    if "VLMIR_TLS_CERT" not in told:
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        authority = Path(folder) / "ca.crt"
        authority.write_text(secret_value("vlmir-gateway-tls", "ca.crt"))
        yield TLS(ca=authority)


@contextmanager
def forwarded(target: str, port: int) -> Iterator[int]:
    """A port of this machine that leads to one in the cluster while the block runs.

    Args:
        target: Such as service/vlmir-gateway.
        port: In the cluster.

    Raises:
        KubectlError: kubectl does not forward it.
    """
    command = [executable(), "--namespace", NAMESPACE, "port-forward", target, f":{port}"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None and process.stderr is not None
            line = process.stdout.readline()
            found = re.search(r":(\d+) ->", line)
            if found is None:
                raise KubectlError(f"{target} cannot be reached: {process.stderr.read().strip()}")
            yield int(found[1])
        finally:
            process.terminate()


def _picture() -> bytes:
    """A grey slope with noise, as PNG."""
    slope = np.linspace(0.2, 0.8, _SIDE, dtype=np.float32)
    pixels = np.broadcast_to(slope[None, :, None], (_SIDE, _SIDE, 3))
    noise = np.random.default_rng(0).normal(0, 0.1, pixels.shape).astype(np.float32)
    return encode(Image(pixels=np.clip(pixels + noise, 0, 1)))
