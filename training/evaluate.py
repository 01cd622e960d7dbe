"""Measure a bundle: ``python -m training.evaluate --data FOLDER`` prints the README's numbers and writes them as JSON.

Every number is computed here and now, by the protocol of :mod:`vlmir.metrics`: pictures rounded to uint8, a border of
four pixels cut off.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from training.benches import BENCHES, held_out_labels, noisy_copy
from training.captioned import CaptionedPhotos
from training.language import best_constant_bleu, caption_bleu, retrieval_recall
from training.speed import measure_speed
from training.table import markdown
from vlmir.bundle import load_bundle
from vlmir.image.color import to_float, to_levels
from vlmir.metrics import Fidelity, fidelity
from vlmir.options import RestoreOptions
from vlmir.parts import build_captioner, build_embedder, build_unet
from vlmir.pipeline import Restorer
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish

__all__ = ["main", "measure_bench", "measure_consistency", "measure_labels", "measure_language"]

SETTINGS = {
    "one-step": RestoreOptions(),
    "ensemble": RestoreOptions(ensemble=True),
    "stochastic": RestoreOptions(realism=1.0, steps=20),
}
"""The default; the most faithful setting; a sample by 20 stochastic steps."""


def measure_bench(
    restorer: Restorer, folder: Path, name: str, options: RestoreOptions, limit: int | None
) -> dict[str, float]:
    """Mean fidelity over a bench, and the input's PSNR for comparison."""
    rows, inputs = [], []
    for lq, gt in islice(BENCHES[name](folder), limit):
        restored = to_levels(restorer.restore(lq, options).image.pixels, 8)
        rows.append(fidelity(restored.astype(np.uint8), gt))
        inputs.append(fidelity(lq, gt).psnr)
    means = {f: float(np.mean([getattr(row, f) for row in rows])) for f in Fidelity.__annotations__}
    return {"input_psnr": float(np.mean(inputs)), **means, "pictures": len(rows)}


def measure_labels(restorer: Restorer, folder: Path, limit: int | None) -> dict[str, Any]:
    """Share of right degradation labels on held-out photos, in all and by label."""
    right: dict[str, list[bool]] = {label: [] for label in restorer.labels}
    pictures = None if limit is None else limit * len(restorer.labels)
    for label, picture in islice(held_out_labels(folder), pictures):
        right[label].append(restorer.inspect(picture).degradation == label)
    by_label = {label: float(np.mean(hits)) for label, hits in right.items() if hits}
    return {"accuracy": float(np.mean([h for hits in right.values() for h in hits])), **by_label}


def measure_language(bundle: str, captioned: Path) -> dict[str, float]:
    """Retrieval of the frozen CLIP, and BLEU-4 of the captioner, on the test split of the captioned photos."""
    opened, photos = load_bundle(bundle), CaptionedPhotos(captioned)
    embedder, captioner = build_embedder(opened), build_captioner(opened)
    recall = retrieval_recall(embedder, photos, k=10)
    constant, sentence = best_constant_bleu(photos)
    print(f"best constant caption: {sentence!r}")
    return {
        "retrieval_recall_at_10": recall,
        "retrieval_times_chance": recall / (10 / len(photos.test)),
        "bleu4": caption_bleu(captioner, photos),
        "bleu4_best_constant": constant,
    }


def measure_consistency(restorer: Restorer, folder: Path, bundle: str) -> dict[str, float]:
    """One against four in a batch, tiled against untiled (512², σ = 50), and what is left of clean photos (dB)."""
    from skimage.data import astronaut

    lq = noisy_copy(np.ascontiguousarray(astronaut()), seed=0)  # type: ignore[no-untyped-call]
    whole, tiled = (
        restorer.restore(lq, RestoreOptions(tile=tile, steps=8, realism=1.0)).image.pixels
        for tile in (0, 256)
    )
    clean = []
    for _, gt in BENCHES["CBSD68 σ=50"](folder):
        restored = restorer.restore(gt).image.pixels
        clean.append(_psnr(restored, gt.astype(np.float32) / 255))
    return {
        "batch_difference": batch_difference(bundle, folder),
        "tiled_psnr": _psnr(tiled, whole),
        "clean_psnr_median": float(np.median(clean)),
        "clean_above_40_db": float(np.mean(np.array(clean) >= 40)),
    }


def batch_difference(bundle: str, folder: Path) -> float:
    """Greatest pixel difference between a noisy photo restored alone and in a batch of four, over all solvers."""
    opened = load_bundle(bundle)
    sampler = DiffusionSampler(build_unet(opened), opened.preset.sampler)
    embedder = build_embedder(opened)
    lq = [to_float(lq)[:320, :320] for lq, _ in islice(BENCHES["CBSD68 σ=50"](folder), 4)]
    seen = [embedder.embed_image(picture) for picture in lq]
    conditions = [Conditions(None, one.f_I, one.f_D) for one in seen]
    worst = 0.0
    for solver in sampler.solvers:
        plan = Plan(steps=8, solver=solver, realism=1.0, tile=0)
        together = finish(sampler.sample(lq, conditions, [0, 1, 2, 3], plan))
        for i in range(4):
            alone = finish(sampler.sample([lq[i]], [conditions[i]], [i], plan))[0]
            worst = max(worst, float(np.abs(alone - together[i]).max()))
    return worst


def _psnr(first: np.ndarray, second: np.ndarray) -> float:
    error = float(np.mean((first - second) ** 2))
    return -10 * math.log10(max(error, 1e-10))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with bench/ and captioned/"
    )
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation.json"))
    parser.add_argument("--limit", type=int, help="only the first pictures of each bench")
    parser.add_argument(
        "--only", choices=("bench", "labels", "language", "consistency", "speed"), action="append"
    )
    parser.add_argument(
        "--setting", choices=tuple(SETTINGS), action="append", help="bench in this setting only"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    restorer = Restorer.load(arguments.bundle)
    bench, limit = arguments.data / "bench", arguments.limit
    parts: dict[str, Callable[[], Any]] = {
        f"{name}, {setting}": partial(measure_bench, restorer, bench, name, options, limit)
        for setting, options in SETTINGS.items()
        if not arguments.setting or setting in arguments.setting
        for name in BENCHES
    }
    kinds = dict.fromkeys(parts, "bench")
    parts["labels"] = lambda: measure_labels(restorer, bench, limit)
    parts["language"] = lambda: measure_language(arguments.bundle, arguments.data / "captioned")
    parts["consistency"] = lambda: measure_consistency(restorer, bench, arguments.bundle)
    photo = next(BENCHES["CBSD68 σ=50"](bench))[0]
    parts["speed"] = lambda: measure_speed(restorer, arguments.bundle, photo)
    results: dict[str, Any] = {}
    for name, measure in parts.items():
        if arguments.only and kinds.get(name, name) not in arguments.only:
            continue
        results[name] = measure()
        text = "  ".join(f"{key} {value:.4g}" for key, value in results[name].items())
        print(f"{name}: {text}", flush=True)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.out}")
    if not (arguments.only or arguments.setting):
        print(markdown(results))


if __name__ == "__main__":
    main()
