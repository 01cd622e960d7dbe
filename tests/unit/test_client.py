"""The client's parts that need no restoration server."""

from __future__ import annotations

import hashlib
import http.server
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlmir.client import TLS, RestorationClient
from vlmir.client.channel import Budget
from vlmir.client.transfer import download, upload
from vlmir.errors import DeadlineError, OptionError, OverloadedError, UnavailableError

DATA = b"a restored picture"
DIGEST = hashlib.sha256(DATA).hexdigest()


class Shelf(http.server.BaseHTTPRequestHandler):
    """Gives out `DATA`, refuses ``/gone``, and remembers the last form."""

    form = b""

    def do_GET(self) -> None:
        self.send_response(403 if self.path == "/gone" else 200)
        self.end_headers()
        self.wfile.write(DATA)

    def do_POST(self) -> None:
        Shelf.form = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def shelf() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_link_is_followed_and_checked(shelf: str) -> None:
    assert download(f"{shelf}/x", size=len(DATA), sha256=DIGEST) == DATA
    for size, sha256 in ((len(DATA) - 1, DIGEST), (len(DATA) + 1, DIGEST), (len(DATA), "0" * 64)):
        with pytest.raises(UnavailableError, match="did not arrive as it was stored"):
            download(f"{shelf}/x", size=size, sha256=sha256)
    with pytest.raises(UnavailableError, match=r"403.*may have expired"):
        download(f"{shelf}/gone", size=len(DATA), sha256=DIGEST)


def test_a_file_of_this_machine_can_be_the_link(tmp_path: Path) -> None:
    path = tmp_path / "a result.png"
    path.write_bytes(DATA)
    assert download(path.as_uri(), size=len(DATA), sha256=DIGEST) == DATA
    with pytest.raises(UnavailableError, match=r"none\.png cannot be reached from here"):
        download((tmp_path / "none.png").as_uri(), size=1, sha256=DIGEST)


@pytest.mark.parametrize("link", ["ftp://host/x", "data:text/plain,x", "/etc/passwd", ""])
def test_other_links_are_not_followed(link: str) -> None:
    with pytest.raises(UnavailableError, match="was not followed"):
        download(link, size=1, sha256=DIGEST)


def test_nothing_is_uploaded_to_a_file(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match="was not followed"):
        upload(DATA, (tmp_path / "victim").as_uri(), {})


def test_an_upload_is_a_form_with_the_file_last(shelf: str) -> None:
    upload(DATA, f"{shelf}/bucket", {"key": "uploads/1", "policy": "signed"})
    parts = Shelf.form.split(b"\r\n--")
    assert b'name="key"\r\n\r\nuploads/1' in parts[0] and b'name="policy"' in parts[1]
    assert b'name="file"; filename="file"' in parts[2] and parts[2].endswith(DATA)
    assert parts[3] == parts[0].split(b"\r\n")[0][2:] + b"--\r\n"


def test_the_time_of_a_call_runs_out() -> None:
    assert Budget(None, 1).left() is None
    left = Budget(60.0, 1).left()
    assert left is not None and 59 < left <= 60
    late = Budget(0.001, 1)
    time.sleep(0.002)
    with pytest.raises(DeadlineError):
        late.left()


def test_an_overloaded_server_gets_the_time_it_asks_for() -> None:
    error = OverloadedError("full", retry_after_s=2.0)
    budget = Budget(None, 3)
    assert all(2.0 <= budget.delay_after(error) <= 2.6 for _ in range(2))
    with pytest.raises(OverloadedError):
        budget.delay_after(error)
    with pytest.raises(OverloadedError):  # it would come too late
        Budget(1.9, 3).delay_after(error)


def test_a_token_is_never_sent_in_plain_text() -> None:
    with pytest.raises(OptionError, match="TLS"):
        RestorationClient("127.0.0.1:1", token="abc")


def test_certificates_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"none\.pem cannot be read"):
        RestorationClient("127.0.0.1:1", tls=TLS(ca=tmp_path / "none.pem"))
    with pytest.raises(OptionError, match="go together"):
        TLS(certificate=tmp_path / "cert.pem")
