"""Certificates that are unfit are told in a sentence, before anything listens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from pydantic_settings import CliApp

from services.common.security import WatchedFiles, channel_credentials, server_credentials
from services.common.settings import ChannelSettings, ServerSettings
from services.gateway.server import GatewaySettings
from tests.certificates import Authority
from tests.unit.services.asking import Answering, serving
from vlmir.errors import OptionError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def test_without_files_there_is_no_tls() -> None:
    assert server_credentials(ServerSettings()) is None
    assert channel_credentials(ChannelSettings()) is None


def test_files_come_from_flags_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TLS_CA", "TLS_CLIENT_CERT", "TLS_CLIENT_KEY", "TLS_CLIENT_CA"):
        monkeypatch.setenv(f"VLMIR_{name}", f"/env/{name}")
    flags = ["--upstream", "x:1", "--tls-cert", "/c", "--tls-key", "/k", "--metrics-port", "0"]
    settings = CliApp.run(GatewaySettings, flags)
    assert (settings.tls_cert, settings.tls_key) == (Path("/c"), Path("/k"))
    assert (settings.tls_ca, settings.tls_client_ca) == (
        Path("/env/TLS_CA"),
        Path("/env/TLS_CLIENT_CA"),
    )
    assert settings.tls_client_cert == Path("/env/TLS_CLIENT_CERT")
    assert (settings.metrics_port, ServerSettings().metrics_port) == (0, None)


def test_a_pair_and_an_authority_are_taken(authority: Authority) -> None:
    cert, key = authority.issue("fit")
    server = ServerSettings(tls_cert=cert, tls_key=key, tls_client_ca=authority.ca)
    assert server_credentials(server) is not None
    assert channel_credentials(ChannelSettings(tls_ca=authority.ca)) is not None
    client = ChannelSettings(tls_ca=authority.ca, tls_client_cert=cert, tls_client_key=key)
    assert channel_credentials(client) is not None


def test_half_of_it_is_refused(authority: Authority) -> None:
    cert, key = authority.issue("half")
    for half in (
        ServerSettings(tls_cert=cert),
        ServerSettings(tls_key=key),
        ServerSettings(tls_client_ca=authority.ca),
    ):
        with pytest.raises(OptionError, match="--tls-cert and --tls-key"):
            server_credentials(half)
    with pytest.raises(OptionError, match="--tls-ca"):
        channel_credentials(ChannelSettings(tls_client_cert=cert, tls_client_key=key))
    with pytest.raises(OptionError, match="--tls-client-cert and --tls-client-key"):
        channel_credentials(ChannelSettings(tls_ca=authority.ca, tls_client_cert=cert))


def test_a_missing_file_is_named(authority: Authority, tmp_path: Path) -> None:
    cert, _ = authority.issue("missing")
    settings = ServerSettings(tls_cert=cert, tls_key=tmp_path / "no.key")
    with pytest.raises(OptionError, match=r"no\.key cannot be read: No such file"):
        server_credentials(settings)
    with pytest.raises(OptionError, match=r"no\.pem cannot be read"):
        channel_credentials(ChannelSettings(tls_ca=tmp_path / "no.pem"))


def test_an_unreadable_file_is_named(authority: Authority, tmp_path: Path) -> None:
    cert, _ = authority.issue("unreadable")
    with pytest.raises(OptionError, match="cannot be read: Is a directory"):
        server_credentials(ServerSettings(tls_cert=cert, tls_key=tmp_path))


def test_a_key_of_another_certificate_is_told(authority: Authority) -> None:
    (cert, _), (_, key) = authority.issue("one"), authority.issue("two")
    with pytest.raises(OptionError, match=r"one\.pem and .*two\.key .*: key values mismatch"):
        server_credentials(ServerSettings(tls_cert=cert, tls_key=key))


def test_a_file_that_is_no_certificate_is_told(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("fine")
    (tmp_path / "text.pem").write_text("hello")
    with pytest.raises(OptionError, match=r"text\.pem and .*fine\.key are not"):
        server_credentials(ServerSettings(tls_cert=tmp_path / "text.pem", tls_key=key))
    with pytest.raises(OptionError, match=r"text\.pem has no certificate"):
        channel_credentials(ChannelSettings(tls_ca=tmp_path / "text.pem"))
    settings = ServerSettings(tls_cert=cert, tls_key=key, tls_client_ca=tmp_path / "text.pem")
    with pytest.raises(OptionError, match=r"text\.pem has no certificate"):
        server_credentials(settings)


def test_an_encrypted_key_is_told_and_not_asked_about(authority: Authority, tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = authority.issue("encrypted")
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(OptionError, match="unencrypted key"):
        server_credentials(ServerSettings(tls_cert=cert, tls_key=key))


def test_a_server_with_unfit_files_does_not_start(authority: Authority, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with serving(Answering(), tls_cert=tmp_path / "no.pem", tls_key=tmp_path / "no.key"):
            pass

    with pytest.raises(OptionError, match="cannot be read"):
        asyncio.run(scenario())


def test_a_file_that_changes_is_noticed_once(tmp_path: Path) -> None:
    path = tmp_path / "file"
    files = WatchedFiles(path)
    assert not files.changed()
    path.write_text("a")
    assert files.changed() and not files.changed()
    (tmp_path / "new").write_text("b")
    (tmp_path / "new").replace(path)
    assert files.changed() and not files.changed()
    path.unlink()
    assert files.changed() and not files.changed()
