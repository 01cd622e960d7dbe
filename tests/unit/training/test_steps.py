"""Quality against network evaluations, measured and as a table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.unit.training.pictures import scene
from training import evaluate, table
from training.measure import steps
from training.measure.benches import BENCHES, noisy_copy
from training.measure.restoration import restored_bytes
from training.tables import steps as steps_tables
from vlmir.metrics import fidelity
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

RESULTS = "<!-- numbers -->\nkept\n<!-- /numbers -->\n<!-- steps -->\n<!-- /steps -->\n"


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Little work: small crops, few evaluations."""
    monkeypatch.setattr(steps, "SIDE", 48)
    monkeypatch.setattr(steps, "EVALUATIONS", (1, 2))
    monkeypatch.setattr(steps, "SAMPLE_STEPS", 2)


def test_the_middle_is_kept() -> None:
    picture = np.arange(60 * 50 * 3).reshape(60, 50, 3)
    assert np.array_equal(steps.centre(picture), picture[6:54, 1:49])
    assert steps.centre(picture[:20, :10]).shape == (20, 10, 3)


def test_every_solver_and_the_dial_are_measured_on_the_middle(small_bundle_folder: Path) -> None:
    restorer, gt = Restorer.load(small_bundle_folder), scene(0)
    found = steps.measure_steps(restorer, [(noisy_copy(gt, 0), gt)], title="test")
    assert set(found["solvers"]) == set(restorer.solvers)
    assert all(list(by) == ["1", "2"] for by in found["solvers"].values())
    assert list(found["dial"]) == ["0.0", "0.25", "0.5", "0.75", "1.0"]
    assert found["pictures"] == 1 and found["side"] == 48 and found["evaluations"] == 1
    lq, middle = steps.centre(noisy_copy(gt, 0)), steps.centre(gt)
    for numbers, options in (
        (found, RestoreOptions()),
        (found["dial"]["0.0"], RestoreOptions()),
        (found["dial"]["0.5"], RestoreOptions(realism=0.5, steps=2)),
        (found["solvers"]["ddim"]["2"], RestoreOptions(realism=1.0, steps=2, solver="ddim")),
    ):
        expected = fidelity(restored_bytes(restorer, lq, options), middle)
        assert numbers["psnr"] == pytest.approx(expected.psnr)
        assert numbers["ssim"] == pytest.approx(expected.ssim)


def test_it_is_measured_only_where_named_and_leaves_other_tables_alone(
    monkeypatch: pytest.MonkeyPatch, data: Path, small_bundle_folder: Path, tmp_path: Path
) -> None:
    assert not set(evaluate.ON_REQUEST) & set(evaluate.PARTS)
    monkeypatch.setattr(steps_tables, "REFERENCE", ("posterior", "2"))
    monkeypatch.setattr(
        evaluate, "BENCHES", {name: BENCHES[name] for name in ("CBSD68 σ=50", "RainDrop")}
    )
    out, report = tmp_path / "evaluation.json", tmp_path / "RESULTS.md"
    arguments = f"--data {data} --bundle {small_bundle_folder} --out {out} --limit 1 --untracked"
    monkeypatch.setattr(sys, "argv", ["evaluate", *arguments.split(), "--only", "steps"])
    evaluate.main()
    assert set(json.loads(out.read_text("utf-8"))) == {
        "about",
        "CBSD68 σ=50, steps",
        "RainDrop, steps",
    }
    report.write_text(RESULTS, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["table", str(out), "--tables", str(report)])
    table.main()
    lines = report.read_text("utf-8").splitlines()
    assert lines[:3] == ["<!-- numbers -->", "kept", "<!-- /numbers -->"]
    assert "| bench | way | 1 | 2 |" in lines
    assert "the middle 48² of the first 1 pictures" in " ".join(lines)


def numbers(one: float, few: float, many: float, dial: tuple[float, ...]) -> dict[str, Any]:
    """A bench on which every solver gets the same; SSIM follows PSNR."""

    def both(psnr: float) -> dict[str, float]:
        return {"psnr": psnr, "ssim": psnr / 50}

    by = {"8": both(few), "16": both(99.0), "100": both(many)}
    return {
        **both(one),
        "input_psnr": 10.0,
        "evaluations": 8,
        "pictures": 2,
        "side": 256,
        "solvers": {"posterior": by, "ddim": by},
        "dial": {str(n): both(psnr) for n, psnr in enumerate(dial)},
    }


def told(**benches: dict[str, Any]) -> str:
    results = {f"{name}, steps": found for name, found in benches.items()}
    about = {"release": "tiny-9", "machine": "a machine"}
    return steps_tables.markdown({"about": about, **results})


def test_the_table_says_what_equals_a_hundred_steps() -> None:
    text = told(
        noise=numbers(27.0, 25.0, 25.0, (27.0, 26.5, 26.0)),
        haze=numbers(23.0, 19.0, 20.0, (23.0, 21.0, 21.5)),
    )
    lines = text.splitlines()
    assert "| bench | way | 8 | 16 | 100 |" in lines
    assert "| noise (input 10.00) | realism 0 | 27.00 / 0.540 | – | – |" in lines
    assert "|  | `ddim` | 19.00 / 0.380 | 99.00 / 1.980 | 20.00 / 0.400 |" in lines
    said = " ".join(lines)
    assert "on every bench: realism 0 with 8 (by 2.00 to 3.00 dB). " in said
    assert "PSNR does not fall at every step of the dial on haze." in said


def test_networks_that_predict_noise_have_a_place_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, report = tmp_path / "steps.json", tmp_path / "RESULTS.md"
    empty = RESULTS + "<!-- noise-steps -->\n<!-- /noise-steps -->\n"
    for prediction, filled in (("noise", "noise-steps"), ("x0", "steps"), ("v", "steps")):
        about = {"release": f"{prediction}-9", "machine": "a machine", "prediction": prediction}
        found = numbers(27.0, 25.0, 25.0, (27.0, 26.5))
        out.write_text(json.dumps({"about": about, "haze, steps": found}), encoding="utf-8")
        report.write_text(empty, encoding="utf-8")
        monkeypatch.setattr(sys, "argv", ["table", str(out), "--tables", str(report)])
        table.main()
        assert f"<!-- {filled} -->\n`{prediction}-9` on a machine" in report.read_text("utf-8")


def test_it_says_where_few_are_not_enough() -> None:
    text = told(noise=numbers(20.0, 20.0, 25.0, (20.0, 19.0)))
    assert "No 8 evaluations or fewer equal 100 posterior steps" in text
    assert "PSNR falls at every step of the dial on every bench." in text
    equal = told(noise=numbers(25.0, 25.0, 25.0, (20.0, 19.0)))
    assert "`ddim` with 8 (by 0.00 to 0.00 dB)" in equal
    assert steps_tables.markdown({"about": {}}) == ""
