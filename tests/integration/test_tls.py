"""TLS between real servers and clients: who is let in, who is believed, and certificates that are renewed."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest

from services.common.channels import connect, connect_sync
from services.common.settings import ChannelSettings
from tests.certificates import Authority
from tests.unit.services.asking import Answering, a_request, serving
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("ours"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("others"))


async def ask(address: str, settings: ChannelSettings) -> str:
    async with connect(address, settings) as channel:
        stub: Any = RestorerServiceStub(channel)
        reply = await stub.Restore(a_request(), timeout=10)
        return str(reply.result.report.caption)


async def is_refused(address: str, settings: ChannelSettings) -> bool:
    with pytest.raises(grpc.RpcError) as caught:
        await ask(address, settings)
    return caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_only_tls_is_spoken_and_only_the_right_authority_believed(
    ours: Authority, others: Authority
) -> None:
    cert, key = ours.issue("server")

    async def scenario() -> None:
        async with serving(Answering(), tls_cert=cert, tls_key=key) as (address, _):
            assert await ask(address, ChannelSettings(tls_ca=ours.ca)) == "hello"
            assert await is_refused(address, ChannelSettings())
            assert await is_refused(address, ChannelSettings(tls_ca=others.ca))

            def in_thread() -> str:
                with connect_sync(address, ChannelSettings(tls_ca=ours.ca)) as channel:
                    stub: Any = RestorerServiceStub(channel)
                    return str(stub.Restore(a_request(), timeout=10).result.report.caption)

            assert await asyncio.to_thread(in_thread) == "hello"

    asyncio.run(scenario())


def test_clients_prove_themselves_where_they_have_to(ours: Authority, others: Authority) -> None:
    cert, key = ours.issue("server")
    client_cert, client_key = ours.issue("client")
    strange_cert, strange_key = others.issue("stranger")
    known = ChannelSettings(tls_ca=ours.ca, tls_client_cert=client_cert, tls_client_key=client_key)
    strange = ChannelSettings(
        tls_ca=ours.ca, tls_client_cert=strange_cert, tls_client_key=strange_key
    )

    async def scenario() -> None:
        mutual = {"tls_cert": cert, "tls_key": key, "tls_client_ca": ours.ca}
        async with serving(Answering(), **mutual) as (address, _):
            assert await ask(address, known) == "hello"
            assert await is_refused(address, ChannelSettings(tls_ca=ours.ca))
            assert await is_refused(address, strange)

    asyncio.run(scenario())


def test_a_renewed_certificate_is_shown_to_new_connections(
    ours: Authority, others: Authority
) -> None:
    """The authority changes too, so that the old certificate cannot pass for the new one."""
    cert, key = ours.issue("renewed")
    before, after = ChannelSettings(tls_ca=ours.ca), ChannelSettings(tls_ca=others.ca)

    async def scenario() -> None:
        async with (
            serving(Answering(), tls_cert=cert, tls_key=key) as (address, _),
            connect(address, before) as open_before,
        ):
            stub: Any = RestorerServiceStub(open_before)
            await stub.Restore(a_request())
            new_cert, new_key = others.issue("renewed")
            # Between the two writes the files do not match: the old certificate goes on.
            _replace(cert, new_cert)
            assert await ask(address, before) == "hello"
            _replace(key, new_key)
            assert await ask(address, after) == "hello"
            assert await is_refused(address, before)
            # A connection that is open stays so.
            await stub.Restore(a_request())

    asyncio.run(scenario())


def _replace(path: Path, new: Path) -> None:
    path.write_bytes(new.read_bytes())
