"""What the store is told by the environment."""

from __future__ import annotations

from pathlib import Path

import pytest

from services.common.store import StoreSettings, open_store
from services.common.store.folder import FolderStore
from vlmir.errors import OptionError


def from_environment(monkeypatch: pytest.MonkeyPatch, **variables: str) -> StoreSettings:
    for name, value in variables.items():
        monkeypatch.setenv(f"VLMIR_STORE_{name.upper()}", value)
    return StoreSettings.from_environment()


S3 = {"url": "http://127.0.0.1:9000", "access_key": "me", "secret_key": "hush"}


def test_there_is_no_store_unless_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert open_store(from_environment(monkeypatch)) is None
    assert open_store(from_environment(monkeypatch, url="")) is None


@pytest.mark.parametrize("scheme", ["", "file://"])
def test_a_path_is_a_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, scheme: str) -> None:
    settings = from_environment(
        monkeypatch, url=f"{scheme}{tmp_path / 'new' / 'store'}", readable="album, scans"
    )
    assert settings.readable == ("album", "scans")
    assert isinstance(open_store(settings), FolderStore)
    assert (tmp_path / "new" / "store" / "vlmir").is_dir()


def test_the_secret_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = from_environment(monkeypatch, **S3)
    assert "hush" not in repr(settings) + str(settings) + settings.model_dump_json()


def test_keys_expire_by_their_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = from_environment(monkeypatch, results_days="0", uploads_days="3")
    assert settings.expiry == {"uploads": 3, "tensors": 3}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"access_key": ""}, "VLMIR_STORE_ACCESS_KEY"),
        ({"secret_key": ""}, "VLMIR_STORE_SECRET_KEY"),
        ({"secret_key_file": "/also"}, "one of VLMIR_STORE_SECRET_KEY"),
        ({"url": "http://me:hush@host:9000"}, r"VLMIR_STORE_URL.*http\(s\)://host:port"),
        ({"url": "http://host:9000/vlmir"}, "VLMIR_STORE_URL"),
        ({"bucket": "../etc"}, "VLMIR_STORE_BUCKET"),
        ({"readable": "fine,NOT"}, "VLMIR_STORE_READABLE.*'NOT'"),
        ({"results_days": "-1"}, "VLMIR_STORE_RESULTS_DAYS"),
        ({"link_s": "604801"}, "VLMIR_STORE_LINK_S"),
    ],
)
def test_nonsense_is_refused(
    monkeypatch: pytest.MonkeyPatch, wrong: dict[str, str], told: str
) -> None:
    with pytest.raises(OptionError, match=told) as caught:
        from_environment(monkeypatch, **S3 | wrong)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None and caught.value.__suppress_context__


def test_a_secret_file_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = from_environment(
        monkeypatch,
        url=S3["url"],
        access_key="me",
        secret_key_file=str(tmp_path / "none"),
    )
    with pytest.raises(OptionError, match="VLMIR_STORE_SECRET_KEY_FILE"):
        open_store(settings)
