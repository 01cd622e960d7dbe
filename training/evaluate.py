"""Measure a bundle: ``python -m training.evaluate --data FOLDER`` prints the README's numbers and writes them as JSON.

Every number is computed here and now, by the protocol of :mod:`vlmir.metrics`: pictures rounded to uint8, a border of
four pixels cut off. The JSON is written after each measurement and, for the same weights, added to: an interrupted run
goes on with ``--only`` and ``--setting``. ``python -m training.table`` puts it into README, model card and bundle.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track

from training.benches import BENCHES, held_out_labels
from training.captioned import CaptionedPhotos
from training.consistency import measure_consistency
from training.language import best_constant_bleu, caption_bleu, retrieval_recall
from training.speed import measure_speed
from training.table import identity
from vlmir.bundle import load_bundle
from vlmir.image.color import to_float, to_levels
from vlmir.metrics import Fidelity, fidelity
from vlmir.options import RestoreOptions
from vlmir.parts import build_captioner, build_embedder
from vlmir.pipeline import Restorer

__all__ = ["main", "measure_bench", "measure_labels", "measure_language"]

PARTS = ("bench", "labels", "language", "consistency", "speed")

SETTINGS = {
    "one-step": RestoreOptions(),
    "ensemble": RestoreOptions(ensemble=True),
    "stochastic": RestoreOptions(realism=1.0, steps=20),
}
"""The default; the most faithful setting; a sample by 20 stochastic steps of the bundle's solver."""


def measure_bench(
    restorer: Restorer, folder: Path, name: str, options: RestoreOptions, limit: int | None
) -> dict[str, float]:
    """Mean fidelity over a bench, and the input's PSNR for comparison."""
    rows, inputs = [], []
    pairs = list(islice(BENCHES[name](folder), limit))
    for lq, gt in track(pairs, name):
        restored = to_levels(restorer.restore(lq, options).image.pixels, 8)
        rows.append(fidelity(restored.astype(np.uint8), gt))
        inputs.append(fidelity(lq, gt).psnr)
    means = {f: float(np.mean([getattr(row, f) for row in rows])) for f in Fidelity.__annotations__}
    return {"input_psnr": float(np.mean(inputs)), **means, "pictures": len(rows)}


def measure_labels(bundle: str, folder: Path, limit: int | None) -> dict[str, Any]:
    """Share of right degradation labels on held-out photos, in all and by label."""
    embedder = build_embedder(load_bundle(bundle))
    right: dict[str, list[bool]] = {label: [] for label in embedder.labels}
    pictures = list(islice(held_out_labels(folder), limit and limit * len(embedder.labels)))
    for label, picture in track(pictures, "labels"):
        right[label].append(embedder.embed_image(to_float(picture)).degradation == label)
    by_label = {label: float(np.mean(hits)) for label, hits in right.items() if hits}
    hits = [hit for label in right.values() for hit in label]
    return {"accuracy": float(np.mean(hits)), "pictures": len(hits), **by_label}


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


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with bench/ and captioned/"
    )
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation.json"))
    parser.add_argument("--limit", type=int, help="only the first pictures of each bench")
    parser.add_argument("--only", choices=PARTS, action="append", help="may be repeated")
    parser.add_argument(
        "--setting", choices=tuple(SETTINGS), action="append", help="bench in this setting only"
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    results = _earlier(arguments.out, arguments.bundle)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in _measurements(arguments).items():
        results[name] = measure()
        text = "  ".join(f"{key} {value:.4g}" for key, value in results[name].items())
        print(f"{name}: {text}", flush=True)
        arguments.out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(
        f"written to {arguments.out}; `python -m training.table {arguments.out}` makes tables of it"
    )


def _measurements(arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """What the arguments ask for: name → the function that measures it."""
    bundle, limit = arguments.bundle, arguments.limit
    restorer, bench = Restorer.load(bundle), arguments.data / "bench"
    captioned = arguments.data / "captioned"
    photo = next(BENCHES["CBSD68 σ=50"](bench))[0]
    benches: dict[str, Callable[[], Any]] = {
        f"{name}, {setting}": partial(
            measure_bench, restorer, bench, name, SETTINGS[setting], limit
        )
        for setting in arguments.setting or SETTINGS
        for name in BENCHES
    }
    others: dict[str, Callable[[], Any]] = {
        "labels": partial(measure_labels, bundle, bench, limit),
        "language": partial(measure_language, bundle, captioned),
        "consistency": partial(measure_consistency, restorer, bench, bundle),
        "speed": partial(measure_speed, restorer, bundle, photo),
    }
    only = arguments.only or (["bench"] if arguments.setting else PARTS)
    chosen = benches if "bench" in only else {}
    return chosen | {name: measure for name, measure in others.items() if name in only}


def _earlier(file: Path, bundle: str) -> dict[str, Any]:
    """The results in ``file`` if they are of the same weights on the same machine, else none; with what they are of."""
    about = {**identity(load_bundle(bundle)), "machine": _machine()}
    earlier: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return earlier if earlier.get("about") == about else {"about": about}


def _machine() -> str:
    """Processor and threads, as the README should name them."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text("utf-8").splitlines() if cpuinfo.is_file() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    unit = torch.backends.cpu.get_cpu_capability()
    return f"{next(names, platform.machine())}, {unit}, {torch.get_num_threads()} threads, float32"


if __name__ == "__main__":
    main()
