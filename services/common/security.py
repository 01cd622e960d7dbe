"""TLS between services: certificates from files, checked when they are read, read anew when they change."""

from __future__ import annotations

import logging
import re
import ssl
from pathlib import Path

import grpc

from services.common.settings import ChannelSettings, ServerSettings
from vlmir.errors import OptionError, VlmirError

__all__ = ["WatchedFiles", "channel_credentials", "server_credentials", "without_addresses"]

log = logging.getLogger("vlmir.security")


_ADDRESS = re.compile(
    r"""[a-z][a-z0-9+.-]*://[^\s'",;)]+        # a URL
    | \b(?:\d{1,3}\.){3}\d{1,3}\b(?::\d+)?  # an IP address, of version 4
    | \[[0-9a-f:]{2,}\](?::\d+)?             # and 6
    | \b[\w.-]+:\d{2,5}\b                   # host:port
    | (?<![\w/.])/[\w.-]+/[^\s'",;:)]*       # a path""",
    re.VERBOSE | re.IGNORECASE,
)


def without_addresses(text: str) -> str:
    """A message for everybody: URLs, hosts and paths in it become ``…``."""
    return _ADDRESS.sub("…", text)


class WatchedFiles:
    """Tells when one of some files has changed.

    Args:
        paths: The files.
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self._seen = self._stamps()

    def changed(self) -> bool:
        """Whether any file is another than at the last call, or at the start."""
        before, self._seen = self._seen, self._stamps()
        return before != self._seen

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        stamps = list[tuple[int, int, int] | None]()
        for path in self._paths:
            try:
                stat = path.stat()
            except OSError:
                stamps.append(None)
            else:
                stamps.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        return stamps


def server_credentials(settings: ServerSettings) -> grpc.ServerCredentials | None:
    """What a server proves itself with, or None where it has no certificate.

    New connections get the certificate that is in the files then; while the files are unfit, the one from before.

    Raises:
        OptionError: A file is missing, cannot be read or is not what it should be, or certificate and key do not match.
    """
    cert, key, ca = settings.tls_cert, settings.tls_key, settings.tls_client_ca
    if cert is None and key is None and ca is None:
        return None
    if cert is None or key is None:
        raise OptionError("TLS needs --tls-cert and --tls-key; give both, or none of the three")
    identity = _Identity(cert, key, ca)
    return grpc.dynamic_ssl_server_credentials(
        identity.read(),
        identity.renewed,  # type: ignore[arg-type]  # may return None, whatever the type stubs say
        require_client_authentication=ca is not None,
    )


def channel_credentials(settings: ChannelSettings) -> grpc.ChannelCredentials | None:
    """What a channel trusts and proves itself with, or None for a channel without TLS.

    Raises:
        OptionError: As for :func:`server_credentials`.
    """
    ca, cert, key = settings.tls_ca, settings.tls_client_cert, settings.tls_client_key
    if ca is None and cert is None and key is None:
        return None
    if ca is None:
        raise OptionError("A client's certificate needs TLS; give --tls-ca too")
    if (cert is None) != (key is None):
        raise OptionError("Give --tls-client-cert and --tls-client-key together, or neither")
    return grpc.ssl_channel_credentials(
        _authority(ca), *((None, None) if cert is None or key is None else _pair(cert, key))
    )


class _Identity:
    """A server's certificate, key and the authority of its clients, in files that may change."""

    def __init__(self, cert: Path, key: Path, ca: Path | None) -> None:
        self._cert, self._key, self._ca = cert, key, ca
        self._files = WatchedFiles(cert, key, *([ca] if ca else []))

    def read(self) -> grpc.ServerCertificateConfiguration:
        key, chain = _pair(self._cert, self._key)
        authority = _authority(self._ca) if self._ca else None
        return grpc.ssl_server_certificate_configuration([(key, chain)], authority)

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """The new certificate, or None where nothing is new; gRPC asks at every handshake."""
        if not self._files.changed():
            return None
        try:
            renewed = self.read()
        except VlmirError as error:
            log.error("going on with the old certificate: %s", error)
            return None
        log.info("the certificate in %s was renewed", self._cert)
        return renewed


def _pair(cert: Path, key: Path) -> tuple[bytes, bytes]:
    """Key and certificate chain, in PEM."""
    chain, secret = _content(cert), _content(key)
    try:
        # With a password to try, an encrypted key is an error and no question at the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise OptionError(
            f"{cert} and {key} are not a certificate and its unencrypted key in PEM: {_why(error)}"
        ) from error
    return secret, chain


def _authority(ca: Path) -> bytes:
    content = _content(ca)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=ca)
    except ssl.SSLError as error:
        raise OptionError(f"{ca} has no certificate in PEM: {_why(error)}") from error
    return content


def _why(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("_", " ").lower()


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}") from error
