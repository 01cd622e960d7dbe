"""Who may call: bearer tokens, of which only digests are kept.

``python -m services.gateway.tokens NAME`` makes a token, and the line for the file by which it is known.
"""

from __future__ import annotations

import argparse
import hashlib
import hmac
import logging
import re
import secrets
from collections.abc import Mapping
from pathlib import Path

from services.common.errors import UnauthenticatedError
from services.common.security import WatchedFiles
from vlmir.errors import OptionError

__all__ = ["Tokens", "digest", "main"]

log = logging.getLogger("vlmir.gateway")

_LINE = re.compile(r"([\w.@-]+):([0-9a-f]{64})", re.ASCII)  # names travel as metadata


class _MissingError(OptionError):
    """There is no such file."""


class Tokens:
    """The tokens of a file, read anew when it changes; each line is ``NAME:SHA256``, or a comment after ``#``.

    Once its last token or the whole file is taken away, nobody is let in; while it cannot be read or has a line that is
    none, the old tokens hold.

    Args:
        path: The file.

    Raises:
        OptionError: It cannot be read, has no token, or has a line that is none.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file = path, WatchedFiles(path)
        self._names = _read(path)
        if not self._names:
            raise OptionError(
                f"{path} has no token; add a line from 'python -m services.gateway.tokens NAME'"
            )

    def name(self, authorization: str | None) -> str:
        """Who sent this ``authorization`` header.

        Raises:
            UnauthenticatedError: None, another scheme, or an unknown token.
        """
        if authorization is None:
            raise UnauthenticatedError(
                "No token was sent; add the metadata 'authorization: Bearer TOKEN'."
            )
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            raise UnauthenticatedError(
                "The authorization is of another kind; send the metadata 'authorization: Bearer TOKEN'."
            )
        given, found = digest(token.strip()), ""
        # All are compared, each in constant time: how long it takes tells nothing about any.
        for known, name in self._current().items():
            if hmac.compare_digest(known, given):
                found = name
        if not found:
            raise UnauthenticatedError(
                "The token is not known here; ask whoever runs this server for one."
            )
        return found

    def _current(self) -> Mapping[str, str]:
        if self._file.changed():
            try:
                self._names = _read(self._path)
            except _MissingError:
                self._names = {}
            except OptionError as error:
                log.error("going on with the old tokens: %s", error)
                return self._names
            log.info("read %d tokens from %s", len(self._names), self._path)
            if not self._names:
                log.warning("%s has no token any more: nobody is let in", self._path)
        return self._names


def digest(token: str) -> str:
    """What the file has of a token; one of 256 random bits needs no salt and no slow hash."""
    return hashlib.sha256(token.encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    """Names by digest."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        kind = _MissingError if isinstance(error, FileNotFoundError) else OptionError
        raise kind(f"the tokens in {path} cannot be read: {error}") from error
    names = dict[str, str]()
    for number, line in enumerate(text.splitlines(), start=1):
        entry = line.partition("#")[0].strip()
        if not entry:
            continue
        if not (match := _LINE.fullmatch(entry)):
            raise OptionError(
                f"line {number} of {path} is not NAME:SHA256; 'python -m services.gateway.tokens NAME' makes one"
            )
        names[match[2]] = match[1]
    return names


def main() -> None:
    """Print a new token and its line."""
    parser = argparse.ArgumentParser(description="Make a token for a caller of the gateway.")
    parser.add_argument("name", help="whose it is; it will stand in the access log")
    name = parser.parse_args().name
    token = secrets.token_urlsafe(32)
    line = f"{name}:{digest(token)}"
    if not _LINE.fullmatch(line):
        parser.error("a name may have letters, digits and . _ @ - only")
    print(f"token, for the caller alone: {token}\nline for --token-file: {line}")


if __name__ == "__main__":
    main()
