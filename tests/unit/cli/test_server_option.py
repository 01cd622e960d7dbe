"""``vlmir restore --server`` and ``vlmir info`` against a real server, whose restorer has no networks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.cli.conftest import FakeRestorer
from tests.unit.services.harness import Running, SmallRestorer, running_server
from vlmir.cli import main
from vlmir.image import Limits, decode


@pytest.fixture(scope="module")
def served() -> SmallRestorer:
    return SmallRestorer(limits=Limits(max_bytes=10_000))


@pytest.fixture(scope="module")
def server(served: SmallRestorer) -> Iterator[Running]:
    with running_server(served) as running:
        yield running


def test_photos_are_restored_there(
    server: Running,
    served: SmallRestorer,
    restorer: FakeRestorer,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (photos / "big.png").write_bytes(bytes(20_000))
    output = tmp_path / "out"
    command = ["restore", str(photos), "-o", str(output), "--server", server.address, "--json"]
    options = ["--seed", "7", "--solver", "ddim", "--format", "png", "--steps", "4"]
    assert main([*command, *options]) == 1
    captured = capsys.readouterr()
    told = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["status"] for line in told] == ["done", "failed", "failed", "done", "done"]
    assert "at most 10000 are taken" in told[1]["error"]
    assert told[0]["report"]["seed"] == 7 and told[0]["report"]["caption"] == "a dog"
    assert "3 done, 2 failed, 0 skipped" in captured.err
    assert decode((output / "sub/deep/c.png").read_bytes()).pixels == pytest.approx(0.75, abs=0.01)
    assert (served.options[-1].seed, served.options[-1].steps) == (7, 4)
    assert restorer.bundles == []
    assert main([*command, *options]) == 1
    assert [json.loads(line)["status"] for line in capsys.readouterr().out.splitlines()].count(
        "skipped"
    ) == 3


@pytest.mark.parametrize(
    ("more", "complaint"),
    [
        (["--solver", "dpmpp_2m"], "does not know the solver 'dpmpp_2m'"),
        (["--degradation", "hazy"], "does not know the degradation 'hazy'; choose from noisy"),
        (["--max-pixels", "9"], "its own limits hold"),
        (["--max-bytes", "9"], "its own limits hold"),
        (["--tls-ca", "none.pem"], "none.pem cannot be read"),
    ],
)
def test_a_mistaken_command_exits_2(
    more: list[str],
    complaint: str,
    server: Running,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["restore", str(photos), "-o", str(tmp_path / "out"), "--server", server.address]
    assert main([*command, *more]) == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "more", [["--bundle", "mine"], ["--timeout", "0"], ["--timeout", "nan"], ["--timeout", "soon"]]
)
def test_what_contradicts_the_server_is_refused_by_the_parser(more: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["restore", "in.png", "-o", "out.png", "--server", "127.0.0.1:1", *more])
    assert caught.value.code == 2


def test_a_token_needs_tls(
    server: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("VLMIR_TOKEN", "abc")
    assert main(["info", "--server", server.address]) == 2
    captured = capsys.readouterr()
    assert "VLMIR_TOKEN is sent over TLS only" in captured.err and "abc" not in captured.err


def test_info(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--server", server.address]) == 0
    told = capsys.readouterr().out.splitlines()
    for line in (
        "release:             small-1",
        "device:              cpu",
        "max image bytes:     10000",
        "labels:              noisy, clean",
        "takes uploads:       no",
        "queue:               0 of 17",
        f"sha256 of sampler:   {'ab' * 32}",
    ):
        assert line in told
    assert main(["info", "--server", server.address, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digests"] == {"sampler": "ab" * 32}
