"""Measuring a bundle on a small folder of benchmarks, and the tables made of it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pytest

from tests.small import CAPTIONS
from tests.unit.training.pictures import scene
from training import evaluate, table
from training.measure.ablation import ABLATED, VARIANTS
from training.measure.alignment import measure_alignment
from training.measure.benches import BENCHES, SYNTHETIC, held_out_labels
from training.measure.consistency import measure_consistency
from training.measure.realism import measure_realism, sharpness
from training.measure.restoration import restored_bytes
from vlmir.bundle import load_bundle
from vlmir.degradations import LABELS
from vlmir.metrics import fidelity
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer

if TYPE_CHECKING:
    from mlflow import MlflowClient

README = "before\n<!-- numbers -->\nold\n<!-- /numbers -->\nafter\n"


def measured(
    monkeypatch: pytest.MonkeyPatch, data: Path, bundle: Path, out: Path, arguments: str
) -> dict[str, Any]:
    """What ``training.evaluate`` writes."""
    fixed = ["evaluate", "--data", str(data), "--bundle", str(bundle), "--out", str(out)]
    fixed.append("--untracked")
    monkeypatch.setattr(sys, "argv", [*fixed, *arguments.split()])
    evaluate.main()
    results: dict[str, Any] = json.loads(out.read_text("utf-8"))
    return results


def test_parts_are_measured_one_by_one_and_kept(
    monkeypatch: pytest.MonkeyPatch, data: Path, small_bundle_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "new" / "evaluation.json"
    first = measured(monkeypatch, data, small_bundle_folder, out, "--setting one-step --limit 1")
    assert len(first) == 6 and first["about"]["release"] == "small-1"
    assert "CBSD68 σ=50 float, one-step" in first
    rain = first["Rain100H, one-step"]
    assert rain["pictures"] == 1 and 5 < rain["input_psnr"] < 25
    both = measured(monkeypatch, data, small_bundle_folder, out, "--only labels --limit 1")
    assert set(both) == {*first, "labels"} and both["Rain100H, one-step"] == rain
    shares = both["labels"]
    assert shares["accuracy"] == pytest.approx(np.mean([shares[k] for k in LABELS]))
    assert shares["pictures"] == len(LABELS)
    confusion = shares["confusion"]
    assert all(sum(confusion[label].values()) == 1 for label in LABELS)
    assert shares["accuracy"] == sum(confusion[k][k] for k in LABELS) / len(LABELS)


def test_mlflow_gets_the_numbers_in_one_run_of_the_weights(
    registry: MlflowClient,
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    small_bundle_folder: Path,
    tmp_path: Path,
) -> None:
    out = tmp_path / "evaluation.json"
    for arguments in ("--setting one-step --limit 1", "--only labels --limit 1"):
        fixed = ["evaluate", "--data", str(data), "--bundle", str(small_bundle_folder)]
        monkeypatch.setattr(sys, "argv", [*fixed, "--out", str(out), *arguments.split()])
        evaluate.main()
    preset = load_bundle(small_bundle_folder).preset.name
    experiment = registry.get_experiment_by_name(f"vlmir-{preset}")
    assert experiment is not None
    (run,) = registry.search_runs([experiment.experiment_id])
    results = json.loads(out.read_text("utf-8"))
    psnr = results["CBSD68 σ=50, one-step"]["psnr"]
    assert run.data.metrics["CBSD68 sigma50 one-step/psnr"] == pytest.approx(psnr)
    assert run.data.metrics["labels/accuracy"] == results["labels"]["accuracy"]
    assert run.data.tags["vlmir.release"] == "small-1" and run.info.status == "FINISHED"
    assert run.data.params["digests.sampler"] == results["about"]["digests"]["sampler"]
    assert [f.path for f in registry.list_artifacts(run.info.run_id, "evaluation")] == [
        "evaluation/evaluation.json"
    ]


def test_a_bundle_without_captioner_is_measured_by_its_own_labels(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    imported_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """DA-CLIP's weights: ten labels, no captions. The benches and what takes long are left out here."""
    out = tmp_path / "evaluation.json"
    monkeypatch.setattr(evaluate, "PARTS", ("labels", "language", "alignment"))
    results = measured(monkeypatch, data, imported_bundle_folder, out, "--limit 2")
    assert "left out: language, alignment, since the bundle has no captioner\n" in (
        capsys.readouterr().out
    )
    assert set(results) == {"about", "labels"} and results["labels"]["pictures"] == 20
    assert set(results["labels"]["confusion"]) == set(LABELS) - {"clean"}


@pytest.mark.parametrize(
    ("arguments", "named"),
    [("--only alignment --only bench", "alignment"), ("--ablate", "--ablate")],
)
def test_what_needs_captions_is_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    imported_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    named: str,
) -> None:
    out = tmp_path / "evaluation.json"
    with pytest.raises(SystemExit) as stopped:
        measured(monkeypatch, data, imported_bundle_folder, out, arguments)
    assert stopped.value.code == 2 and not out.exists()
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"error: {named} cannot be measured: " in error and "has no captioner" in error


def test_a_damaged_picture_does_not_depend_on_which_other_labels_are_asked_for(data: Path) -> None:
    every = list(held_out_labels(data / "bench", LABELS))
    some = list(held_out_labels(data / "bench", ("noisy", "rainy")))
    own = [picture for label, picture in every if label in ("noisy", "rainy")]
    assert all(np.array_equal(one, own[i]) for i, (_, one) in enumerate(some))
    assert len(some) == len(own) == 4


def test_synthetic_sets_are_measured_in_one_step_unless_asked(
    monkeypatch: pytest.MonkeyPatch, data: Path, small_bundle_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation.json"
    arguments = "--only synthetic --limit 1"
    results = measured(monkeypatch, data, small_bundle_folder, out, arguments)
    assert set(results) == {"about", *(f"{name}, one-step" for name in SYNTHETIC)}


def test_ablation_is_measured_alone_and_shown_in_the_papers_tables(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    small_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, report = tmp_path / "evaluation.json", tmp_path / "RESULTS.md"
    monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
    results = measured(monkeypatch, data, small_bundle_folder, out, "--ablate --limit 1")
    names = {f"{bench}, ablation: {variant}" for bench in ABLATED for variant in VARIANTS}
    assert set(results) == {"about", *names}
    assert all(results[name]["lpips"] is None for name in names)
    assert "lpips not computed" in capsys.readouterr().out
    report.write_text(README)
    monkeypatch.setattr(sys, "argv", ["table", str(out), "--tables", str(report)])
    table.main()
    assert "Table 3" in report.read_text() and "not computed" in report.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("--seeds 0", "--seeds must be at least 1"), ("--lpips-backbone nowhere.pth", "nowhere.pth")],
)
def test_wrong_arguments_are_told(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    small_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    with pytest.raises(SystemExit):
        measured(monkeypatch, data, small_bundle_folder, tmp_path / "e.json", arguments)
    assert message in capsys.readouterr().err


def test_captions_are_compared_before_and_after_stage_1(
    small_bundle_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    names = [f"{number}.png" for number in range(4)]
    for number, name in enumerate(names):
        cv2.imwrite(str(tmp_path / "images" / name), scene(number, 64, 64))
    captions = {name: CAPTIONS[: 1 + number % 3] for number, name in enumerate(names)}
    (tmp_path / "captions.json").write_text(json.dumps(captions))
    (tmp_path / "split.json").write_text(
        json.dumps({"train": names[:1], "val": [], "test": names[1:]})
    )
    found = measure_alignment(str(small_bundle_folder), tmp_path, None)
    assert found["pictures"] == 3
    # LoRA starts as the identity: without training nothing changes.
    assert found["after"] == pytest.approx(found["before"], abs=1e-4)
    assert -1 <= found["before_other"] <= 1 and len(found["per_picture"]["after"]) == 3
    assert measure_alignment(str(small_bundle_folder), tmp_path, 2)["pictures"] == 2


def test_results_of_other_weights_are_not_kept(
    monkeypatch: pytest.MonkeyPatch, data: Path, small_bundle_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "evaluation.json"
    first = measured(monkeypatch, data, small_bundle_folder, out, "--only labels --limit 1")
    for change in ({"digests": {}}, {"preset": "other"}, {"machine": "other"}, {"release": "r"}):
        other = {"about": first["about"] | change, "speed": {"cli_s": 1}}
        out.write_text(json.dumps(other))
        again = measured(monkeypatch, data, small_bundle_folder, out, "--only labels --limit 1")
        assert again == first
    out.write_text(json.dumps(first | {"speed": {"cli_s": 1}}))
    results = measured(monkeypatch, data, small_bundle_folder, out, "--only labels --limit 1")
    assert set(results) == {"about", "labels", "speed"}


def test_tables_go_into_the_readme_and_the_bundle(
    monkeypatch: pytest.MonkeyPatch,
    data: Path,
    small_bundle_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, readme, bundle = tmp_path / "e.json", tmp_path / "README.md", tmp_path / "bundle"
    readme.write_text(README)
    shutil.copytree(small_bundle_folder, bundle)
    results = measured(monkeypatch, data, bundle, out, "--setting one-step --only bench")
    monkeypatch.setattr(
        sys, "argv", ["table", str(out), "--into", str(readme), "--bundle", str(bundle)]
    )
    table.main()
    text = readme.read_text()
    assert text.startswith("before\n<!-- numbers -->\n`small-1`, measured on ")
    assert text.endswith("\n<!-- /numbers -->\nafter\n") and "old" not in text
    psnr = results["Rain100H, one-step"]["psnr"]
    assert f"| Rain100H, rain (2) | {results['Rain100H, one-step']['input_psnr']:.2f} dB |" in text
    assert f" {psnr:.2f} ± " in text and "| – | – |" in text
    stored = json.loads((bundle / "bundle.json").read_text())["metrics"]
    assert "per_picture" in results["Rain100H, one-step"] and "per_picture" not in str(stored)
    assert stored["Rain100H, one-step"]["psnr"] == psnr and "threads, cpu, " in stored["machine"]
    assert "Rain100H" in capsys.readouterr().out


def test_numbers_of_other_weights_are_refused(small_bundle_folder: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(small_bundle_folder, bundle)
    before = (bundle / "bundle.json").read_bytes()
    with pytest.raises(ValueError, match="not of the bundle"):
        table.write_into_bundle(bundle, {"about": {"digests": {}, "machine": ""}})
    assert (bundle / "bundle.json").read_bytes() == before


def test_a_readme_without_markers_is_refused(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("nothing here")
    with pytest.raises(ValueError, match="numbers"):
        table.write_into_markdown(tmp_path / "README.md", "text")


def test_a_cell_says_when_it_is_of_fewer_pictures() -> None:
    numbers = {"input_psnr": 12.0, "psnr": 20.0, "ssim": 0.5, "pictures": 20}
    results = {
        "about": {"release": "r", "machine": "m"},
        "SOTS-indoor, one-step": numbers,
        "SOTS-indoor, stochastic": numbers | {"pictures": 6},
        "labels": {
            "accuracy": 0.75,
            "pictures": 8,
            "clean": 0.5,
            "noisy": 1.0,
            "hazy": 0.75,
            "rainy": 0.9,
        },
    }
    text = table.markdown(results)
    assert "| SOTS-indoor, haze (20) | 12.00 dB | 20.00 dB / 0.5000 | – |" in text
    assert "20.00 dB / 0.5000 (of 6) |" in text
    assert "| 75.0% of 8 (weakest: clean 50%, hazy 75%, rainy 90%) |" in text


def test_the_dial_is_measured_between_its_ends(data: Path) -> None:
    pairs = list(BENCHES["CBSD68 σ=50"](data / "bench"))
    numbers = measure_realism(Restorer.load(), pairs)
    assert numbers["pictures"] == 2
    assert 0.5 < numbers["sharpness_faithful"] < 1.5 and 0.5 < numbers["sharpness"] < 1.5
    faithful = [
        fidelity(restored_bytes(Restorer.load(), lq, RestoreOptions()), gt) for lq, gt in pairs
    ]
    assert 15 < numbers["psnr"] < np.mean([f.psnr for f in faithful])


def test_sharpness_is_that_of_the_truth_or_less() -> None:
    gt = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    assert sharpness(gt, gt) == 1
    assert sharpness(cv2.GaussianBlur(gt, (0, 0), 2), gt) < 0.7


def test_consistency_is_measured(data: Path, small_bundle_folder: Path) -> None:
    restorer = Restorer.load(small_bundle_folder)
    numbers = measure_consistency(restorer, data / "bench", str(small_bundle_folder))
    assert 0 <= numbers["batch_difference"] < 1e-4
    assert numbers["batch_psnr_bf16"] > 40 and numbers["tiled_psnr"] > 20
    assert numbers["bf16_psnr"] > 40
    assert 0 <= numbers["clean_above_40_db"] <= 1 and numbers["clean_psnr_median"] > 5
