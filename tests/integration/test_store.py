"""Both kinds of store, one suite: a folder, and a real S3 server where there is one."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import io
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from minio import Minio

from services.common.store import TENSORS, Store, StoredObject, StoreSettings, open_store
from tests.certificates import Authority
from tests.unit.services.s3 import needs_s3, s3_server
from vlmir.client.transfer import upload
from vlmir.errors import InputError, LimitError, UnavailableError

BYTES = bytes(range(256)) * 5000
DIGEST = hashlib.sha256(BYTES).hexdigest()

Put = Callable[..., None]


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with s3_server(tmp_path_factory.mktemp("s3")) as settings:
        yield settings


def opened(settings: dict[str, Any]) -> Store:
    store = open_store(StoreSettings.model_validate(settings))
    assert store is not None
    return store


def raw(s3: dict[str, str]) -> Minio:
    return Minio(
        s3["url"].removeprefix("http://"),
        s3["access_key"],
        s3["secret_key"],
        secure=False,
        region=s3["region"],
    )


@pytest.fixture(params=["folder", pytest.param("s3", marks=needs_s3)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    where = {"url": str(tmp_path)} if request.param == "folder" else request.getfixturevalue("s3")
    return {**where, "readable": "album"}


@pytest.fixture
def store(settings: dict[str, Any]) -> Store:
    return opened(settings)


@pytest.fixture
def put(settings: dict[str, Any]) -> Put:
    """Puts an object at any place, past the store."""

    def put(bucket: str, key: str, data: bytes, sha256: str | None = None) -> None:
        if "access_key" not in settings:
            path = Path(settings["url"]) / bucket / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            return
        client = raw(settings)
        if not client.bucket_exists(bucket):
            client.make_bucket(bucket)
        metadata = None if sha256 is None else {"sha256": sha256}
        client.put_object(bucket, key, io.BytesIO(data), len(data), metadata=metadata)

    return put


def test_what_is_put_is_found_again_by_its_content(store: Store) -> None:
    stored = store.put(BYTES, "image/png")
    assert stored == StoredObject(
        uri=f"s3://vlmir/results/{DIGEST[:2]}/{DIGEST}.png",
        size=len(BYTES),
        content_type="image/png",
        sha256=DIGEST,
    )
    assert store.put(BYTES, "image/png") == stored
    assert store.get(stored.uri, len(BYTES)) == BYTES
    assert store.stat(stored.uri) == stored
    array = store.put(b"\0\0\0\0", folder=TENSORS)
    assert array.uri.startswith("s3://vlmir/tensors/") and array.uri.endswith(".bin")
    assert store.get(array.uri, 4) == b"\0\0\0\0"


def test_what_has_a_name_is_found_by_it_and_replaced(store: Store) -> None:
    first = store.put_named("results/keys/one.json", b"{}", "application/json")
    assert first.uri == "s3://vlmir/results/keys/one.json"
    assert store.get(first.uri, 9) == b"{}"
    second = store.put_named("results/keys/one.json", b"[1]", "application/json")
    assert store.stat(second.uri).size == 3
    assert store.get(second.uri, 9) == b"[1]"
    store.delete(second.uri)
    with pytest.raises(InputError, match="not in the store"):
        store.get(second.uri, 9)


@pytest.mark.parametrize(
    "key", ["", "../album/x", "a/../../x", "/x", "a//x", "a\\x", "a\0", "k" * 1025]
)
def test_no_name_leads_out(store: Store, key: str) -> None:
    with pytest.raises(InputError, match="no address"):
        store.put_named(key, b"x")


def test_no_name_replaces_what_is_named_by_its_content(store: Store) -> None:
    stored = store.put(BYTES, "image/png")
    key = stored.uri.removeprefix("s3://vlmir/")
    with pytest.raises(InputError, match="names other content"):
        store.put_named(key, b"something else", "image/png")
    assert store.put_named(key, BYTES, "image/png") == stored
    assert store.get(stored.uri, len(BYTES)) == BYTES


def test_nothing_can_be_stored_too(store: Store) -> None:
    assert store.get(store.put(b"").uri, 0) == b""


def test_the_size_is_bounded(store: Store) -> None:
    uri = store.put(BYTES).uri
    with pytest.raises(LimitError, match=f"{len(BYTES)} bytes; at most {len(BYTES) - 1}"):
        store.get(uri, len(BYTES) - 1)


def test_what_is_not_there_is_named(store: Store) -> None:
    for read in (lambda uri: store.get(uri, 9), store.stat):
        with pytest.raises(InputError, match=r"s3://vlmir/no/such\.png is not in the store"):
            read("s3://vlmir/no/such.png")
    with pytest.raises(InputError, match="s3://album/none"):  # a bucket that was never made
        store.get("s3://album/none", 9)


def test_what_is_deleted_is_gone(store: Store) -> None:
    uri = store.put(b"short-lived").uri
    store.delete(uri)
    store.delete(uri)
    with pytest.raises(InputError, match="not in the store"):
        store.get(uri, 99)


def test_the_keys_of_a_folder_are_told(store: Store) -> None:
    keys = [f"models/one/{name}" for name in ("1/model.onnx", "10/model.onnx", "config.pbtxt")]
    assert store.keys("models/one") == []
    for key in (*keys, "models/oneself/config.pbtxt", "elsewhere"):
        store.put_named(key, b"x")
    assert store.keys("models/one") == keys
    assert store.keys("models/one/10") == keys[1:2]
    with pytest.raises(InputError, match="no address"):
        store.keys("models/..")


def test_a_folder_keeps_no_folder_in_which_nothing_lies(tmp_path: Path) -> None:
    store = opened({"url": str(tmp_path)})
    for key in ("models/one/1/model.onnx", "models/one/config.pbtxt"):
        store.put_named(key, b"x")
    store.delete("s3://vlmir/models/one/1/model.onnx")
    assert [path.name for path in (tmp_path / "vlmir" / "models" / "one").iterdir()] == [
        "config.pbtxt"
    ]
    store.delete("s3://vlmir/models/one/config.pbtxt")
    assert [*tmp_path.rglob("*")] == [tmp_path / "vlmir"]


def test_a_readable_bucket_is_read_and_never_written(store: Store, put: Put) -> None:
    put("album", "2024/a photo+ü.png", b"picture")
    assert store.get("s3://album/2024/a photo+ü.png", 7) == b"picture"
    assert store.stat("s3://album/2024/a photo+ü.png").sha256 is None
    with pytest.raises(InputError, match="does not use the bucket 'album'"):
        store.delete("s3://album/2024/a photo+ü.png")


def test_of_another_bucket_nothing_is_told(store: Store, put: Put) -> None:
    put("foreign", "there", b"secret")
    told = []
    for key in ("there", "not-there"):
        for use in (lambda uri: store.get(uri, 9), lambda uri: store.link(uri, 9), store.delete):
            with pytest.raises(InputError, match="VLMIR_STORE_READABLE") as caught:
                use(f"s3://foreign/{key}")
            told.append(str(caught.value))
    assert len(set(told)) == 1


def test_content_that_is_not_what_was_stored_is_found_out(store: Store, put: Put) -> None:
    stored = store.put(b"the true content")
    put("vlmir", stored.uri.removeprefix("s3://vlmir/"), b"something else", stored.sha256)
    with pytest.raises(InputError, match="upload it again"):
        store.get(stored.uri, 99)
    store.put(b"the true content")
    assert store.get(stored.uri, 99) == b"the true content"


@pytest.mark.parametrize(
    "uri",
    [
        "",
        "s3://",
        "s3://vlmir",
        "s3://vlmir/",
        "s3://vlmir//etc/passwd",
        "s3://vlmir/../album/x",
        "s3://vlmir/results/../../album/x",
        "s3://vlmir/./x",
        "s3://vlmir/x/",
        "s3://../x",
        "s3://vlmir/a\\..\\b",
        "s3://vlmir/a\nb",
        "s3://vlmir/a\0b",
        "s3://vlmir/" + "k" * 1025,
        "S3://vlmir/x",
        "file:///etc/passwd",
        "/etc/passwd",
        "http://127.0.0.1/latest/meta-data",
    ],
)
def test_no_address_leads_out(store: Store, uri: str) -> None:
    with pytest.raises(InputError, match="write s3://bucket/key"):
        store.get(uri, 9)


@pytest.mark.parametrize("uri", ["s3://vlmir/%2e%2e/album/x", "s3://vlmir/" + "k" * 1000])
def test_a_strange_key_is_only_missing(store: Store, put: Put, uri: str) -> None:
    put("album", "x", b"picture")
    with pytest.raises(InputError, match="not in the store"):
        store.get(uri, 9)


def test_a_link_reads_without_credentials(store: Store) -> None:
    link = store.link(store.put(BYTES, "image/png").uri, 60)
    with urllib.request.urlopen(link, timeout=5) as reply:
        assert reply.read() == BYTES


def test_a_folder_takes_no_uploads(tmp_path: Path) -> None:
    store = opened({"url": str(tmp_path)})
    with pytest.raises(InputError, match="`data`"):
        store.create_upload(size=1, sha256=DIGEST, max_bytes=9, expires_s=60)


@pytest.mark.parametrize("kind", ["file", "folder", "parent"])
def test_links_in_a_folder_are_not_followed(tmp_path: Path, kind: str) -> None:
    store = opened({"url": str(tmp_path / "store"), "readable": "album"})
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    bucket = tmp_path / "store" / "vlmir"
    if kind == "file":
        (bucket / "secret").symlink_to(outside / "secret")
    elif kind == "folder":
        (bucket / "a").symlink_to(outside)
    else:
        (tmp_path / "store" / "album").symlink_to(outside)
    uri = {"file": "vlmir/secret", "folder": "vlmir/a/secret", "parent": "album/secret"}[kind]
    with pytest.raises(InputError, match="not in the store"):
        store.get(f"s3://{uri}", 99)
    if kind != "parent":
        store.delete(f"s3://{uri}")
    assert (outside / "secret").exists()


def test_a_pipe_or_folder_is_no_object(tmp_path: Path) -> None:
    store = opened({"url": str(tmp_path)})
    os.mkfifo(tmp_path / "vlmir" / "pipe")
    (tmp_path / "vlmir" / "sub").mkdir()
    for name in ("pipe", "sub"):
        with pytest.raises(InputError, match="not in the store"):
            store.get(f"s3://vlmir/{name}", 99)


def test_a_folder_forgets_what_is_old(tmp_path: Path) -> None:
    settings = {"url": str(tmp_path), "results_days": 2, "uploads_days": 0}
    store = opened(settings)
    old, new, array = store.put(b"old"), store.put(b"new"), store.put(b"array", folder=TENSORS)
    for stored in (old, array):
        path = tmp_path / stored.uri.removeprefix("s3://")
        os.utime(path, (time.time() - 3 * 86400,) * 2)
    store = opened(settings)
    with pytest.raises(InputError):
        store.get(old.uri, 9)
    assert store.get(new.uri, 9) == b"new" and store.get(array.uri, 9) == b"array"


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(UnavailableError, match="VLMIR_STORE_URL"):
        opened({"url": str(tmp_path / "file" / "store")})


@needs_s3
def test_a_link_holds_for_its_time_and_its_signature(s3: dict[str, str]) -> None:
    store = opened(s3)
    uri = store.put(b"picture").uri
    short, good = store.link(uri, 1), store.link(uri, 60)
    refused = [
        good[:-4] + "0000",
        good.replace("/results/", "/uploads/"),
        good.replace("X-Amz-Expires=60", "X-Amz-Expires=600"),
        opened_with_wrong_secret(s3).link(uri, 60),
    ]
    time.sleep(2.1)
    for link in [*refused, short]:
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(link, timeout=5)
        with caught.value as refusal:
            assert refusal.code == 403
    with urllib.request.urlopen(good, timeout=5) as reply:
        assert reply.read() == b"picture"


def opened_with_wrong_secret(s3: dict[str, str]) -> Store:
    from services.common.store.s3 import S3Store

    keys = {"access_key": s3["access_key"], "secret_key": "wrong", "region": s3["region"]}
    return S3Store(s3["url"], "vlmir", (), {}, **keys)


@needs_s3
def test_an_upload_needs_no_credentials(s3: dict[str, str]) -> None:
    store = opened(s3)
    form = store.create_upload(size=len(BYTES), sha256=DIGEST, max_bytes=10**7, expires_s=60)
    upload(BYTES, form.link, form.fields)
    assert store.get(form.uri, len(BYTES)) == BYTES
    assert store.stat(form.uri).sha256 == DIGEST
    other = store.create_upload(size=len(BYTES), sha256=DIGEST, max_bytes=10**7, expires_s=60)
    assert other.uri != form.uri


@needs_s3
@pytest.mark.parametrize("wrong", ["longer", "shorter", "key", "digest", "signature", "expired"])
def test_an_upload_is_what_was_agreed(s3: dict[str, str], wrong: str) -> None:
    store = opened(s3)
    form = store.create_upload(
        size=5, sha256=DIGEST, max_bytes=9, expires_s=1 if wrong == "expired" else 60
    )
    changes = {
        "key": {"key": "results/x"},
        "digest": {"x-amz-meta-sha256": "0" * 64},
        "signature": {"x-amz-signature": "0" * 64},
    }
    data = {"longer": b"123456", "shorter": b"1234"}.get(wrong, b"12345")
    if wrong == "expired":
        time.sleep(2.1)
    with pytest.raises(UnavailableError, match="refused the upload"):
        upload(data, form.link, form.fields | changes.get(wrong, {}))
    with pytest.raises(InputError, match="not in the store"):
        store.stat(form.uri)


@needs_s3
def test_an_upload_of_other_bytes_is_found_out(s3: dict[str, str]) -> None:
    store = opened(s3)
    form = store.create_upload(size=5, sha256=DIGEST, max_bytes=9, expires_s=60)
    upload(b"12345", form.link, form.fields)
    with pytest.raises(InputError, match="upload it again"):
        store.get(form.uri, 9)


@needs_s3
@pytest.mark.parametrize(
    ("size", "sha256", "kind"),
    [(10, DIGEST, LimitError), (0, DIGEST, InputError), (5, "XY", InputError)],
)
def test_an_upload_is_checked_beforehand(
    s3: dict[str, str], size: int, sha256: str, kind: type[InputError]
) -> None:
    with pytest.raises(kind):
        opened(s3).create_upload(size=size, sha256=sha256, max_bytes=9, expires_s=60)


@needs_s3
def test_what_is_old_expires_and_foreign_rules_stay(s3: dict[str, str]) -> None:
    from minio.commonconfig import ENABLED, Filter
    from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

    client = raw(s3)
    client.make_bucket("expiring")
    foreign = Rule(
        status=ENABLED,
        rule_filter=Filter(prefix="logs/"),
        rule_id="theirs",
        expiration=Expiration(days=30),
    )
    client.set_bucket_lifecycle("expiring", LifecycleConfig([foreign]))
    for results in (4, 9):
        opened({**s3, "bucket": "expiring", "results_days": results})
    config = client.get_bucket_lifecycle("expiring")
    assert config is not None
    days = {rule.rule_filter.prefix: rule.expiration.days for rule in config.rules}
    assert days == {"logs/": 30, "results/": 9, "uploads/": 1, "tensors/": 1}


@needs_s3
def test_encryption_is_asked_for(s3: dict[str, str]) -> None:
    """The server of the tests has no keys: that it refuses shows that it was asked."""
    store = opened({**s3, "encrypt": True})
    with pytest.raises(UnavailableError, match=r"refuses \(InvalidRequest\)"):
        store.put(b"x")
    form = store.create_upload(size=1, sha256=DIGEST, max_bytes=9, expires_s=60)
    assert form.fields["x-amz-server-side-encryption"] == "AES256"


@needs_s3
def test_links_can_be_for_another_address(s3: dict[str, str]) -> None:
    store = opened({**s3, "public_url": "https://pictures.example.org/"})
    stored = store.put(b"x")
    assert store.link(stored.uri, 60).startswith("https://pictures.example.org/vlmir/results/")
    form = store.create_upload(size=1, sha256=DIGEST, max_bytes=9, expires_s=60)
    assert form.link == "https://pictures.example.org/vlmir"


@needs_s3
def test_the_secret_can_come_from_a_file(s3: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(s3["secret_key"] + "\n")
    store = opened({**s3, "secret_key": "", "secret_key_file": str(tmp_path / "secret")})
    assert store.put(b"x").size == 1


@needs_s3
@pytest.mark.parametrize("wrong", ["access_key", "secret_key"])
def test_wrong_credentials_are_told_at_the_start(s3: dict[str, str], wrong: str) -> None:
    with pytest.raises(UnavailableError, match="VLMIR_STORE_ACCESS_KEY"):
        opened({**s3, wrong: "nobody"})


def test_a_store_is_reached_by_tls_if_it_is_trusted(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    keys = {"access_key": "a", "secret_key": "b"}
    with impostor(authority.issue("impostor")) as url:
        with pytest.raises(UnavailableError, match=r"certificate.*VLMIR_STORE_CA_FILE"):
            opened({"url": url, **keys})
        with pytest.raises(UnavailableError, match="is no S3 server in good health"):
            opened({"url": url, **keys, "ca_file": str(authority.ca)})


def test_a_server_that_lies_about_the_size_fills_no_memory() -> None:
    from services.common.store.s3 import S3Store

    with impostor() as url:
        keys = {"access_key": "a", "secret_key": "b", "region": "us-east-1"}
        store = S3Store(url, "vlmir", (), {}, **keys)
        with pytest.raises(LimitError, match="more than 3000000 bytes"):
            store.get("s3://vlmir/endless", 3_000_000)
        with pytest.raises(UnavailableError, match="does not answer"):
            store.get("s3://vlmir/broken-off", 3_000_000)


class Impostor(http.server.BaseHTTPRequestHandler):
    """Answers, but is no S3 server."""

    def do_HEAD(self) -> None:
        self.send_response(418)
        self.end_headers()

    def do_GET(self) -> None:
        self.send_response(200)
        endless = self.path.endswith("endless")
        if not endless:
            self.send_header("Content-Length", "1000")
        self.end_headers()
        with contextlib.suppress(OSError):  # the client has heard enough
            while self.wfile.write(bytes(100)) and endless:
                pass

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


@contextlib.contextmanager
def impostor(certificate: tuple[Path, Path] | None = None) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Impostor) as server:
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01))
        thread.start()
        try:
            scheme = "https" if certificate else "http"
            yield f"{scheme}://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_a_dead_server_is_told_soon() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(UnavailableError, match="does not answer"):
        opened({"url": f"http://127.0.0.1:{port}", "access_key": "a", "secret_key": "b"})
    assert time.monotonic() - started < 5
