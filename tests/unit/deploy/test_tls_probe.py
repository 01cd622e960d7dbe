"""The probes of the component tls, as the kubelet would run them, on a real server that wants to know its callers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.common.probe import main
from services.common.server import Server
from services.common.settings import ServerSettings
from tests.certificates import Authority
from tests.unit.deploy.manifests import container, needs_kubectl, rendered
from vlmir.image import Limits

pytestmark = needs_kubectl

SERVICE = "vlmir.v1.SamplerService"
PROBES = ("startupProbe", "livenessProbe", "readinessProbe")


def arguments(probe: str, address: str, authority: Authority, pair: tuple[Path, Path]) -> list[str]:
    """A probe's command with this machine's address, name and files."""
    python, module, name, *words = container(rendered("cpu"), "vlmir-sampler")[probe]["exec"][
        "command"
    ]
    assert [python, module, name] == ["python", "-m", "services.common.probe"]
    here = {
        "127.0.0.1:50063": address,
        "vlmir-sampler": "localhost",
        "/etc/vlmir/tls/ca.crt": str(authority.ca),
        "/etc/vlmir/tls/tls.crt": str(pair[0]),
        "/etc/vlmir/tls/tls.key": str(pair[1]),
    }
    assert set(here) <= set(words)
    return [here.get(word, word) for word in words]


@pytest.mark.parametrize("serving", [True, False])
def test_probes_speak_tls(tmp_path: Path, serving: bool) -> None:
    authority = Authority(tmp_path)
    cert, key = pair = authority.issue("sampler")
    settings = ServerSettings(
        port=0, grace_s=0, tls_cert=cert, tls_key=key, tls_client_ca=authority.ca
    )

    async def test() -> dict[str, int]:
        server = Server([SERVICE], lambda _: None, settings=settings, limits=Limits())
        address = await server.start(serving=serving)
        try:
            return {
                probe: await asyncio.to_thread(main, arguments(probe, address, authority, pair))
                for probe in PROBES
            }
        finally:
            await server.stop()

    # One that cannot do its work is not ready, but nobody restarts it.
    assert asyncio.run(test()) == {
        "startupProbe": 0,
        "livenessProbe": 0,
        "readinessProbe": int(not serving),
    }


def test_who_does_not_prove_himself_is_not_answered(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("sampler")
    settings = ServerSettings(
        port=0, grace_s=0, tls_cert=cert, tls_key=key, tls_client_ca=authority.ca
    )

    async def test() -> int:
        server = Server([SERVICE], lambda _: None, settings=settings, limits=Limits())
        address = await server.start()
        words = [address, "--ca", str(authority.ca), "--name", "localhost", "--timeout", "2"]
        try:
            return await asyncio.to_thread(main, words)
        finally:
            await server.stop()

    assert asyncio.run(test()) == 1
