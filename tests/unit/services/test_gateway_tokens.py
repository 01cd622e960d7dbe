"""Tokens in a file: who is known, who is not, and what is wrong with the file."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from services.common.errors import UnauthenticatedError
from services.gateway.tokens import Tokens, digest, main
from vlmir.errors import OptionError


def a_file(folder: Path, *lines: str) -> Path:
    path = folder / "tokens"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_known_tokens_have_names(tmp_path: Path) -> None:
    path = a_file(
        tmp_path, "# ours", "", f"anna:{digest('secret-a')}  # on leave", f"b@x.y:{digest('b')}"
    )
    tokens = Tokens(path)
    assert tokens.name("Bearer secret-a") == "anna"
    assert tokens.name("bearer  b ") == "b@x.y"


@pytest.mark.parametrize(
    ("sent", "told"),
    [
        (None, "No token was sent"),
        ("", "another kind"),
        ("Bearer", "another kind"),
        ("Basic c2VjcmV0", "another kind"),
        ("Bearer wrong", "not known"),
        ("Bearer sécret", "not known"),
        (f"Bearer {digest('secret')}", "not known"),
    ],
)
def test_others_are_told_what_to_send(tmp_path: Path, sent: str | None, told: str) -> None:
    with pytest.raises(UnauthenticatedError, match=told):
        Tokens(a_file(tmp_path, f"anna:{digest('secret')}")).name(sent)


def test_the_file_is_read_anew_when_it_changes(tmp_path: Path) -> None:
    tokens = Tokens(a_file(tmp_path, f"anna:{digest('a')}"))
    a_file(tmp_path, f"anna:{digest('a')}", f"bert:{digest('b')}")
    assert (tokens.name("Bearer a"), tokens.name("Bearer b")) == ("anna", "bert")
    a_file(tmp_path, f"bert:{digest('b')}")
    with pytest.raises(UnauthenticatedError):
        tokens.name("Bearer a")
    a_file(tmp_path, "broken")
    assert tokens.name("Bearer b") == "bert"


@pytest.mark.parametrize("away", ["emptied", "commented out", "deleted"])
def test_taking_away_the_last_token_lets_nobody_in(tmp_path: Path, away: str) -> None:
    path = a_file(tmp_path, f"anna:{digest('a')}")
    tokens = Tokens(path)
    assert tokens.name("Bearer a") == "anna"
    match away:
        case "emptied":
            path.write_text("")
        case "deleted":
            path.unlink()
        case _:
            a_file(tmp_path, f"# anna:{digest('a')}")
    with pytest.raises(UnauthenticatedError, match="not known"):
        tokens.name("Bearer a")
    a_file(tmp_path, f"bert:{digest('b')}")
    assert tokens.name("Bearer b") == "bert"


@pytest.mark.parametrize(
    ("line", "told"),
    [("anna", "line 1 of"), ("anna:abc", "NAME:SHA256"), ("", "has no token")],
)
def test_a_file_that_is_none_is_told(tmp_path: Path, line: str, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        Tokens(a_file(tmp_path, line))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="cannot be read"):
        Tokens(tmp_path / "no")


def test_a_new_token_fits_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tokens", "anna"])
    main()
    token, line = (text.rpartition(" ")[2] for text in capsys.readouterr().out.splitlines())
    assert Tokens(a_file(tmp_path, line)).name(f"Bearer {token}") == "anna"
    assert len(token) >= 43 and token not in line


def test_a_name_that_would_break_the_file_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["tokens", "a:b"])
    with pytest.raises(SystemExit):
        main()
    assert "a name may have" in capsys.readouterr().err
