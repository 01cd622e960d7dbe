"""Pictures by link: uploads to a server's object store and downloads from it, without its credentials."""

from __future__ import annotations

import hashlib
import ssl
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from vlmir.errors import UnavailableError

__all__ = ["download", "upload"]

_TIMEOUT_S = 30.0


def upload(
    data: bytes,
    link: str,
    fields: Mapping[str, str],
    *,
    ca: Path | None = None,
    timeout_s: float | None = None,
) -> None:
    """POST a form with ``fields`` and then the file.

    Args:
        data: The file.
        link: Where to, http or https.
        fields: The form's other fields.
        ca: Certificates to trust besides the public ones, as PEM.
        timeout_s: Seconds without any answer after which to give up; at most 30.

    Raises:
        UnavailableError: The store cannot be reached, or refuses.
    """
    boundary = uuid.uuid4().hex
    head = "".join(f"{_part(boundary, name)}\r\n\r\n{value}\r\n" for name, value in fields.items())
    head += f'{_part(boundary, "file")}; filename="file"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    # Pieces, not one body: a big picture is not copied.
    body = [head.encode(), data, f"\r\n--{boundary}--\r\n".encode()]
    headers = {
        "Content-Type": f"multipart/form-data; boundary={boundary}",
        "Content-Length": str(sum(map(len, body))),
    }
    request = urllib.request.Request(
        _checked(link, "http", "https"), data=body, headers=headers, method="POST"
    )
    try:
        with urllib.request.urlopen(request, timeout=_timeout(timeout_s), context=_context(ca)):
            pass
    except urllib.error.HTTPError as error:
        with error:
            raise UnavailableError(
                f"The store refused the upload ({error.code}); try again."
            ) from error
    except OSError as error:
        raise _unreachable(link, error) from error


def download(
    link: str,
    *,
    size: int,
    sha256: str,
    ca: Path | None = None,
    timeout_s: float | None = None,
) -> bytes:
    """The file behind ``link``, known to be whole.

    Args:
        link: http, https, or file where the server keeps its results in a folder of this machine.
        size: Its bytes; not one more is read.
        sha256: Its digest, hexadecimal.
        ca: Certificates to trust besides the public ones, as PEM.
        timeout_s: Seconds without any answer after which to give up; at most 30.

    Raises:
        UnavailableError: It cannot be read, or is not what the server stored.
    """
    checked = _checked(link, "http", "https", "file")
    try:
        with urllib.request.urlopen(
            checked, timeout=_timeout(timeout_s), context=_context(ca)
        ) as reply:
            data: bytes = reply.read(size + 1)
    except urllib.error.HTTPError as error:
        with error:
            raise UnavailableError(
                f"The store does not give out the result ({error.code}); its link may have expired, restore it again."
            ) from error
    except OSError as error:
        raise _unreachable(link, error) from error
    if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
        raise UnavailableError("The result did not arrive as it was stored; restore it again.")
    return data


def _part(boundary: str, name: str) -> str:
    return f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"'


def _checked(link: str, *schemes: str) -> str:
    """``link``, if it is of a kind that a server may make a client follow."""
    if urlsplit(link).scheme not in schemes:
        raise UnavailableError(
            f"The server sent the link {link[:200]!r}, which is none of {', '.join(schemes)}; it was not followed."
        )
    return link


def _timeout(timeout_s: float | None) -> float:
    return _TIMEOUT_S if timeout_s is None else min(timeout_s, _TIMEOUT_S)


def _context(ca: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if ca is not None:
        context.load_verify_locations(ca)
    return context


def _unreachable(link: str, error: OSError) -> UnavailableError:
    parts = urlsplit(link)
    where = f"{parts.scheme}://{parts.netloc}" if parts.netloc else parts.path
    reason = getattr(error, "reason", None) or error
    return UnavailableError(
        f"The server's store at {where} cannot be reached from here ({reason}); see its VLMIR_STORE_PUBLIC_URL."
    )
