"""The champion moves only through the gate, or for a stated reason, and back."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.measured import BENCH, measured_bundle
from training import promote
from training.register import find_evaluation, register
from training.release.registry import MODELS, SAMPLER, aliases, find_version
from vlmir.bundle import Bundle

if TYPE_CHECKING:
    from mlflow import MlflowClient

pytestmark = pytest.mark.filterwarnings("ignore::sqlalchemy.exc.SAWarning")


@pytest.fixture
def first(registry: MlflowClient, small_bundle_folder: Path, tmp_path: Path) -> Bundle:
    """The champion, version 1."""
    bundle = measured_bundle(small_bundle_folder, tmp_path / "small-1")
    register(bundle, evaluation=find_evaluation(bundle))
    assert promote.promote()
    return bundle


def add(first: Bundle, number: int, psnr: float) -> None:
    """Register another sampler as the candidate, with its evaluation."""
    folder = first.folder.with_name(f"small-{number}")
    bundle = measured_bundle(first.folder, folder, psnr=psnr, changed=("sampler",))
    assert register(bundle, evaluation=find_evaluation(bundle))["sampler"] == str(number)


def status(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["promote", *arguments])
    with pytest.raises(SystemExit) as ended:
        promote.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_the_first_candidate_becomes_champion(registry: MlflowClient, first: Bundle) -> None:
    for part in MODELS:
        assert aliases(registry, part) == {"candidate": "1", "champion": "1"}
    tags = find_version(registry, "champion").tags
    assert tags["gate"] == "passed" and tags["promoted_by"]
    assert tags["promoted_at"].endswith("+00:00")


def test_a_better_one_takes_its_place_and_gives_it_back(
    registry: MlflowClient, first: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    add(first, 2, 26.5)
    capsys.readouterr()
    assert promote.promote()
    said = capsys.readouterr().out.splitlines()
    assert said == [
        "ok: vlmir-sampler version 2 (small-2): all files are there, digests right",
        f"ok: {BENCH}: 26.00 → 26.50 dB (+0.50, 95 % interval over pictures +0.50…+0.50)",
        "ok: degradation labels: 95.0% → 95.0% right",
        "ok: measured on the same pictures in 2 of 2 measurements",
        "vlmir-sampler version 2 (small-2) is champion now; before: vlmir-sampler version 1 (small-1)",
    ]
    assert aliases(registry) == {"candidate": "2", "champion": "2", "previous": "1"}
    assert promote.rollback()
    assert aliases(registry) == {"candidate": "2", "champion": "1", "previous": "2"}
    assert find_version(registry, 2).tags["rolled_back_by"]
    assert promote.rollback()
    assert aliases(registry) == {"candidate": "2", "champion": "2", "previous": "1"}
    assert aliases(registry, "embedder") == {"candidate": "1", "champion": "1", "previous": "1"}


def test_a_worse_one_stays_outside_unless_forced(
    registry: MlflowClient,
    first: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    add(first, 2, 25.0)
    before = aliases(registry)
    assert status(monkeypatch) == 1
    assert f"fails: {BENCH}: 26.00 → 25.00 dB" in capsys.readouterr().out
    assert aliases(registry) == before and "gate" not in find_version(registry, 2).tags
    assert status(monkeypatch, "--dry-run", "--force", "looks better") == 0
    assert "would become champion" in capsys.readouterr().out
    assert status(monkeypatch, "--dry-run", "--tolerance", "1") == 0
    assert aliases(registry) == before and "gate" not in find_version(registry, 2).tags
    assert status(monkeypatch, "--force", "looks better") == 0
    gate = find_version(registry, "champion").tags["gate"]
    assert gate.startswith(f"forced: looks better; failed: {BENCH}: 26.00 → 25.00 dB")
    assert aliases(registry)["champion"] == "2"


def test_what_is_served_moves_last(registry: MlflowClient, first: Bundle) -> None:
    from mlflow.exceptions import MlflowException

    add(first, 2, 27.0)
    move = registry.set_registered_model_alias

    def breaks(client: MlflowClient, name: str, alias: str, version: str) -> None:
        if (name, alias) == (SAMPLER, "champion"):
            raise MlflowException("connection lost")
        move(name, alias, version)

    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(type(registry), "set_registered_model_alias", breaks)
        with pytest.raises(MlflowException, match="connection lost"):
            promote.promote()
    assert aliases(registry) == {"candidate": "2", "champion": "1", "previous": "1"}
    assert not promote.rollback()
    assert promote.promote()
    assert aliases(registry) == {"candidate": "2", "champion": "2", "previous": "1"}


def test_damaged_files_are_not_forced(
    registry: MlflowClient, first: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    add(first, 2, 27.0)
    model = registry.get_model_version(SAMPLER, "2").source.removeprefix("models:/")
    weights = Path(f"runs/mlflow/files/models/{model}/artifacts/sampler/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert not promote.promote(force="never mind")
    weights.unlink()
    assert not promote.promote(force="never mind")
    said = capsys.readouterr().out
    assert said.count("fails: vlmir-sampler version 2 (small-2) cannot be served") == 2
    assert aliases(registry)["champion"] == "1"


def test_a_champion_without_numbers_is_replaced_by_one_with(
    registry: MlflowClient, first: Bundle
) -> None:
    model = registry.get_model_version(SAMPLER, "1").source.removeprefix("models:/")
    Path(f"runs/mlflow/files/models/{model}/artifacts/bundle.json").unlink()
    add(first, 2, 20.0)
    assert promote.promote()


def test_an_alias_moved_by_hand_is_taken_as_it_is(
    registry: MlflowClient,
    first: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status(monkeypatch, "--rollback") == 1
    assert "no version has the alias 'previous'" in capsys.readouterr().out
    add(first, 2, 27.0)
    registry.set_registered_model_alias(SAMPLER, "champion", "2")
    assert status(monkeypatch) == 0
    assert "version 2 (small-2) is the champion already" in capsys.readouterr().out
    add(first, 3, 26.5)
    assert status(monkeypatch) == 1  # compared with version 2
    registry.set_registered_model_alias(SAMPLER, "previous", "2")
    assert status(monkeypatch, "--rollback") == 1
    assert "the champion has the alias 'previous'" in capsys.readouterr().out
    registry.delete_registered_model_alias(SAMPLER, "champion")
    assert status(monkeypatch, "--rollback", "--dry-run") == 0
    assert "champion" not in aliases(registry)
    assert status(monkeypatch, "--rollback") == 0
    assert aliases(registry) == {"candidate": "3", "champion": "2", "previous": "2"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version", "7"],
        ["--version", "x"],
        ["--version", "1", "--rollback"],
        ["--rollback", "--force", "why"],
        ["--tolerance", "-1"],
        ["--tolerance", "nan"],
        ["--force", " "],
        [],
    ],
)
def test_bad_usage_ends_with_2(
    registry: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
) -> None:
    assert status(monkeypatch, *arguments) == 2
    assert len(capsys.readouterr().err.splitlines()[-1]) > 20


def test_a_server_that_is_gone_is_said_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert status(monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training.promote: ") and "127.0.0.1" in line
