"""What the measurements say, on networks small enough to be measured in no time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from vlmir.bench import restoring
from vlmir.bench.network import Networks, load_networks, measure_batches, measure_evaluation
from vlmir.bench.restoring import WAYS, measure_growth
from vlmir.bench.timing import ceiling_tflops, in_turns, median_ratio
from vlmir.cli import main
from vlmir.compute import Compute

CPU = torch.device("cpu")
HALF = Compute(CPU, torch.bfloat16)


def test_ways_are_timed_in_turns_after_a_first_call_of_each() -> None:
    called, now = list[str](), [0.0]

    def way(name: str, takes: float) -> None:
        called.append(name)
        now[0] += takes

    taken = in_turns(
        {"slow": lambda: way("slow", 3), "fast": lambda: way("fast", 1)},
        rounds=2,
        device=CPU,
        clock=lambda: now[0],
    )
    assert called == ["slow", "fast"] * 3
    assert taken == {"slow": [3, 3], "fast": [1, 1]}


def test_a_ratio_is_the_median_of_the_rounds() -> None:
    assert median_ratio([2, 9, 4], [1, 1, 2]) == 2


def test_the_ceiling_is_a_speed() -> None:
    assert 1e-4 < ceiling_tflops(Compute(CPU, torch.float32), side=128) < 1e3


def test_both_networks_have_the_same_weights_in_two_types(small_bundle_folder: Path) -> None:
    networks = load_networks(str(small_bundle_folder), HALF)
    assert networks.plain.stem.weight.dtype is torch.float32
    assert torch.equal(networks.plain.stem.weight.bfloat16(), networks.chosen.stem.weight)


def test_an_evaluation_is_measured_against_the_plain_network(small_bundle_folder: Path) -> None:
    networks = load_networks(str(small_bundle_folder), Compute(CPU, torch.float32))
    numbers = measure_evaluation(networks, side=64, rounds=3)
    assert numbers["tflops"] == pytest.approx(numbers["gflop"] / numbers["ms"], rel=1e-6)
    assert numbers["of_ceiling"] == pytest.approx(numbers["tflops"] / numbers["ceiling_tflops"])
    slower = Networks(networks.plain, _Thrice(networks.chosen), networks.compute)  # type: ignore[arg-type]
    assert measure_evaluation(slower, side=64, rounds=5)["times_faster"] < 0.67


class _Thrice:
    """A network that takes three times as long."""

    def __init__(self, unet: torch.nn.Module) -> None:
        self._unet, self.device, self.prepare = unet, CPU, unet.prepare

    def __call__(self, *arguments: object) -> object:
        first, *_ = [self._unet(*arguments) for _ in range(3)]
        return first


def test_batches_are_counted_in_megapixels(small_bundle_folder: Path) -> None:
    networks = load_networks(str(small_bundle_folder), HALF)
    speeds = measure_batches(networks, side=32, batches=(1, 2), rounds=2)
    assert set(speeds) == {"batch 1", "batch 2"} and min(speeds.values()) > 0


def test_the_command_prints_and_writes_numbers(
    small_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(restoring, "SIZES", ((64, 64), (48, 72)))
    out = tmp_path / "bench.json"
    command = ["bench", "--bundle", str(small_bundle_folder), "--rounds", "1", "--json", str(out)]
    assert main([*command, "--only", "network", "--only", "restoring", "--precision", "fp32"]) == 0
    results = json.loads(out.read_text("utf-8"))
    assert results["about"]["torch"] == torch.__version__
    restored = results["a picture restored, captions and embeddings included"]
    assert len(restored) == 2 * len(WAYS)
    assert all(0 < numbers["sampling"] < 1 for numbers in restored.values())
    said = capsys.readouterr().out
    assert "times_faster" in said and "72×48, ensemble" in said


def test_growth_is_told_by_the_pixel(small_bundle_folder: Path) -> None:
    found = measure_growth(
        str(small_bundle_folder), device="cpu", precision="fp32", rounds=1, sides=(32, 64)
    )
    assert list(found) == ["32²", "64²"]
    assert found["32²"]["times_the_first"] == 1
    ratio = found["64²"]["s_per_megapixel"] / found["32²"]["s_per_megapixel"]
    assert found["64²"]["times_the_first"] == pytest.approx(ratio)


@pytest.mark.parametrize("option", [["--only", "network"], ["--precision", "fp32"]])
def test_a_server_computes_as_it_was_set_up(
    option: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--server", "localhost:1", *option]) == 2
    assert "as it was set up" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_said(
    small_bundle_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench", "--bundle", str(small_bundle_folder), "--rounds", "1"]
    assert main([*command, "--only", "network", "--json", str(tmp_path)]) == 2
    assert "Cannot write" in capsys.readouterr().err
