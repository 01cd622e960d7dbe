"""What the gate lets through, and what it says."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest

from tests.measured import BENCH, invented
from training.release.gate import Measured, benches, judge


def measured(psnr: float = 26.0, accuracy: float = 0.95) -> Measured:
    numbers = invented(psnr, accuracy)
    return Measured(metrics=numbers, evaluation=numbers)


def changed(**values: Any) -> Measured:
    """The bench of a candidate as good as the champion, with some values replaced."""
    metrics = copy.deepcopy(invented(26.0))
    metrics[BENCH].update(values)
    return Measured(metrics=metrics)


def lines(candidate: Measured, champion: Measured | None, tolerance: float = 0.05) -> list[str]:
    return [str(check) for check in judge(candidate, champion, tolerance)]


def test_a_better_candidate_passes_and_the_pairs_say_how_sure_that_is() -> None:
    bench, labels, protocol = lines(measured(26.3, 0.96), measured())
    # Every picture gained as much: the interval is narrow although the pictures differ.
    assert (
        bench == f"ok: {BENCH}: 26.00 → 26.30 dB (+0.30, 95 % interval over pictures +0.30…+0.30)"
    )
    assert labels == "ok: degradation labels: 95.0% → 96.0% right"
    assert protocol == "ok: measured on the same pictures in 2 of 2 measurements"


@pytest.mark.parametrize(
    ("psnr", "tolerance", "ok"),
    [(25.96, 0.05, True), (25.94, 0.05, False), (25.94, 0.1, True), (math.nan, 0.05, False)],
)
def test_a_bench_may_lose_the_tolerance(psnr: float, tolerance: float, ok: bool) -> None:
    check = judge(changed(psnr=psnr), measured(), tolerance)[0]
    assert check.ok == ok and ("at most" in check.text) != ok
    assert "interval" not in check.text  # without the candidate's pictures


@pytest.mark.parametrize(("accuracy", "ok"), [(0.946, True), (0.944, False)])
def test_labels_may_lose_half_a_point(accuracy: float, ok: bool) -> None:
    assert [check.ok for check in judge(measured(26.0, accuracy), measured())] == [True, ok, True]


def test_what_the_champion_was_measured_on_must_be_measured() -> None:
    found = lines(Measured(metrics={}), measured())
    assert found[0] == f"fails: {BENCH}: the candidate was not measured"
    assert found[1] == "fails: degradation labels: the candidate was not measured"
    assert len(judge(measured(), Measured(metrics={BENCH: invented(26.0)[BENCH]}))) == 2


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pictures": 3}, "3 instead of 4 pictures"),
        ({"seeds": 3}, "3 instead of 1 samples of each picture"),
        ({"inputs": "ba9876543210"}, "other pictures"),
    ],
)
def test_another_protocol_does_not_pass(values: dict[str, Any], reason: str) -> None:
    protocol = lines(changed(**values), measured())[-1]
    assert protocol == f"fails: measured otherwise than the champion: {BENCH} ({reason})"


def test_older_numbers_are_compared_by_their_inputs_psnr() -> None:
    old, new, other = changed(), changed(), changed(input_psnr=15.1)
    for numbers in (old, other):
        del numbers.metrics[BENCH]["inputs"]
    assert judge(new, old)[-1].ok and not judge(other, old)[-1].ok


def test_without_a_champion_it_is_enough_to_be_measured() -> None:
    assert lines(measured(), None) == [
        "ok: no champion with numbers; benches that the candidate was measured on: 1"
    ]
    assert judge(measured(), Measured())[0].ok
    assert not judge(Measured(), None)[0].ok


def test_ablations_are_no_benches() -> None:
    names = ["A, one-step", "A, ensemble", "A, stochastic", "A, ablation: no text", "speed"]
    assert benches(dict.fromkeys(names)) == names[:3]
