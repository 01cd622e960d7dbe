"""The health probe for containers, against real servers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from services.common.probe import is_serving, main
from tests.certificates import Authority

NAME = "vlmir.v1.SamplerService"


class Answering:
    """A server that says how it is."""

    def __init__(self, credentials: grpc.ServerCredentials | None = None) -> None:
        self.servicer = health.aio.HealthServicer()
        self._server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(self.servicer, self._server)
        if credentials is None:
            self.port = self._server.add_insecure_port("127.0.0.1:0")
        else:
            self.port = self._server.add_secure_port("127.0.0.1:0", credentials)

    async def ask(self, *arguments: str, serving: bool = True) -> int:
        status = health_pb2.HealthCheckResponse
        await self.servicer.set(NAME, status.SERVING if serving else status.NOT_SERVING)
        await self._server.start()
        try:
            return await asyncio.to_thread(main, [f"127.0.0.1:{self.port}", *arguments])
        finally:
            await self._server.stop(0)


@pytest.mark.parametrize(
    ("arguments", "serving", "status"),
    [
        (("--service", NAME), True, 0),
        ((), True, 0),
        (("--service", NAME), False, 1),
        (("--service", "vlmir.v1.OtherService"), True, 1),
    ],
)
def test_the_status_says_how_it_is(arguments: tuple[str, ...], serving: bool, status: int) -> None:
    async def ask() -> int:
        return await Answering().ask(*arguments, serving=serving)

    assert asyncio.run(ask()) == status


def test_nobody_there_is_not_well(capsys: pytest.CaptureFixture[str]) -> None:
    assert not is_serving("127.0.0.1:9", timeout_s=1)
    assert main(["127.0.0.1:9", "--timeout", "1"]) == 1
    assert capsys.readouterr().err == "127.0.0.1:9 is not serving\n"


def test_a_server_with_tls_is_asked_by_its_name(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("gateway")
    pair = [(key.read_bytes(), cert.read_bytes())]
    ca = ("--ca", str(authority.ca))

    async def ask(*arguments: str) -> int:
        return await Answering(grpc.ssl_server_credentials(pair)).ask(*arguments, "--timeout", "3")

    assert asyncio.run(ask(*ca, "--name", "localhost")) == asyncio.run(ask(*ca)) == 0
    assert asyncio.run(ask(*ca, "--name", "another.example")) == 1
    assert asyncio.run(ask()) == 1


def test_a_missing_certificate_is_said(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["127.0.0.1:9", "--ca", str(tmp_path / "none.pem")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_it_is_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.common.probe", "127.0.0.1:9", "--timeout", "1"],
        capture_output=True,
    )
    assert done.returncode == 1
