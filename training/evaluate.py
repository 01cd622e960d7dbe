"""Measure a bundle: ``python -m training.evaluate --data FOLDER`` prints the README's numbers and writes them as JSON.

Every number is computed here and now, by the protocol of :mod:`vlmir.metrics`: pictures rounded to uint8, a border of
four pixels cut off. MLflow gets the numbers, too, as a run of the model's experiment. The JSON is written after each
measurement and, for the same weights, added to: an interrupted run goes on with ``--only`` and ``--setting``. ``--only
steps`` compares numbers of network evaluations; it takes long and is not made unasked. ``python -m training.table``
puts it into README, model card and bundle, and with ``--tables`` into the paper's tables. A perceptual metric whose
weights are not at hand stands as null.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from training.command import users_faults
from training.data.captioned import CaptionedPhotos
from training.engine.tracking import UNTRACKED, Tracker, tracked
from training.measure.ablation import ABLATED, VARIANTS, ablated_restorers
from training.measure.alignment import measure_alignment
from training.measure.benches import BENCHES, SYNTHETIC, UNCLIPPED, FloatPair, Pair
from training.measure.consistency import measure_consistency
from training.measure.labels import measure_labels
from training.measure.language import best_constant_bleu, caption_bleu, retrieval_recall
from training.measure.realism import measure_realism
from training.measure.restoration import SETTINGS, Judges, measure_bench
from training.measure.speed import measure_speed
from training.measure.steps import PICTURES, measure_steps
from training.table import identity
from training.tables.steps import SUFFIX
from vlmir.bundle import Bundle, load_bundle
from vlmir.compute import Compute, processor_name
from vlmir.errors import OptionError, VlmirError
from vlmir.metrics.perceptual import ALEXNET, INCEPTION
from vlmir.options import RestoreOptions
from vlmir.parts import build_captioner, build_embedder
from vlmir.pipeline import Restorer

__all__ = ["main", "measure_language", "metrics_of"]

PARTS = (
    "bench",
    "synthetic",
    "realism",
    "labels",
    "language",
    "alignment",
    "consistency",
    "speed",
)

ON_REQUEST = ("steps",)
"""Parts that are measured only where they are named."""

CAPTIONED = ("language", "alignment")
"""Parts that need a captioner."""

Measurement = Callable[[], dict[str, Any]]


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
    parser = _parser()
    arguments = parser.parse_args()
    if arguments.seeds < 1:
        parser.error(f"--seeds must be at least 1, not {arguments.seeds}.")
    torch.manual_seed(0)
    try:
        judges = Judges.find(arguments.lpips_backbone, arguments.inception)
        parts = _parts(arguments, load_bundle(arguments.bundle))
    except VlmirError as error:
        parser.error(str(error))
    results = _earlier(arguments.out, arguments.bundle)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    with users_faults("evaluate"), _tracker(arguments, results) as tracker:
        for name, measure in _measurements(arguments, judges, parts):
            _put_down(results, name, measure(), arguments.out)
            tracker.metrics(metrics_of(name, results[name]), step=0)
            tracker.files(arguments.out, "evaluation")
    print(
        f"written to {arguments.out}; `python -m training.table {arguments.out}` makes tables of it"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument(
        "--data", type=Path, required=True, help="folder with bench/ and captioned/"
    )
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights")
    parser.add_argument("--out", type=Path, default=Path("out/evaluation.json"))
    parser.add_argument("--limit", type=int, help="only the first pictures of each bench")
    parser.add_argument(
        "--only", choices=(*PARTS, *ON_REQUEST), action="append", help="may be repeated"
    )
    parser.add_argument(
        "--setting", choices=tuple(SETTINGS), action="append", help="bench in this setting only"
    )
    parser.add_argument("--seeds", type=int, default=1, help="samples of each picture: seeds 0…N−1")
    parser.add_argument(
        "--ablate",
        action="store_true",
        help="the paper's ablations, conditions withheld and captions replaced; alone unless --only names more",
    )
    parser.add_argument(
        "--lpips-backbone", type=Path, help=f"{ALEXNET}, for LPIPS; else PyTorch's cache is tried"
    )
    parser.add_argument(
        "--inception", type=Path, help=f"{INCEPTION}, for FID; else PyTorch's cache is tried"
    )
    parser.add_argument("--untracked", action="store_true", help="record nothing in MLflow")
    return parser


@contextmanager
def _tracker(arguments: argparse.Namespace, results: Mapping[str, Any]) -> Iterator[Tracker]:
    """Where the numbers go beside the JSON; what is added to earlier results goes on in their run."""
    if arguments.untracked:
        yield UNTRACKED
        return
    about = results["about"]
    with tracked(
        load_bundle(arguments.bundle).preset.name,
        "evaluate",
        arguments.out.with_suffix(""),
        params=about,
        resumes=len(results) > 1,
    ) as record:
        record.tag("vlmir.release", about["release"])
        yield record


def metrics_of(name: str, numbers: Mapping[str, Any]) -> dict[str, float]:
    """The single numbers of a measurement under names that MLflow takes: ``CBSD68 sigma50 one-step/psnr``."""
    title = re.sub(r"[^A-Za-z0-9 ._-]", "", name.replace("σ", "sigma"))
    return {
        f"{title}/{key}": float(value)
        for key, value in numbers.items()
        if isinstance(value, float | int)
    }


def _put_down(results: dict[str, Any], name: str, numbers: dict[str, Any], out: Path) -> None:
    """A finished measurement joins the results, the screen and the JSON: every one passes here."""
    results[name] = numbers
    text = "  ".join(
        f"{key} not computed" if value is None else f"{key} {value:.4g}"
        for key, value in numbers.items()
        if value is None or isinstance(value, float | int)
    )
    print(f"{name}: {text}", flush=True)
    out.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def _measurements(
    arguments: argparse.Namespace, judges: Judges, parts: Collection[str]
) -> Iterator[tuple[str, Measurement]]:
    """What the arguments ask for: names, and the functions that measure them; ``parts``: of all parts."""
    bundle, limit = arguments.bundle, arguments.limit
    restorer, bench = Restorer.load(bundle), arguments.data / "bench"
    captioned = arguments.data / "captioned"

    def on_bench(
        name: str, restorer: Restorer, options: RestoreOptions, title: str
    ) -> tuple[str, Measurement]:
        pairs = partial(_pairs, bench, name, limit)
        return title, lambda: measure_bench(
            restorer, pairs(), options, judges, title=title, seeds=arguments.seeds
        )

    if "bench" in parts:
        for setting in arguments.setting or SETTINGS:
            for name in (*BENCHES, *UNCLIPPED):
                yield on_bench(name, restorer, SETTINGS[setting], f"{name}, {setting}")
    if "synthetic" in parts:
        for setting in arguments.setting or ["one-step"]:
            for name in SYNTHETIC:
                yield on_bench(name, restorer, SETTINGS[setting], f"{name}, {setting}")
    if "steps" in parts:
        for name in BENCHES:
            crops = partial(_pairs, bench, name, limit or PICTURES)
            yield name + SUFFIX, partial(_steps, restorer, crops, name)
    if arguments.ablate:
        restorers = ablated_restorers(load_bundle(bundle))
        for name in ABLATED:
            for variant, other in restorers.items():
                options = VARIANTS[variant].options
                yield on_bench(name, other, options, f"{name}, ablation: {variant}")
    noisy = BENCHES["CBSD68 σ=50"]
    photo = next(noisy(bench))[0]
    others: dict[str, Measurement] = {
        "realism": lambda: measure_realism(restorer, list(islice(noisy(bench), limit))),
        "labels": partial(measure_labels, bundle, bench, limit),
        "language": partial(measure_language, bundle, captioned),
        "alignment": partial(measure_alignment, bundle, captioned, limit),
        "consistency": partial(measure_consistency, restorer, bench, bundle),
        "speed": partial(measure_speed, restorer, bundle, photo),
    }
    yield from ((name, measure) for name, measure in others.items() if name in parts)


def _parts(arguments: argparse.Namespace, bundle: Bundle) -> tuple[str, ...]:
    """What is measured; without a captioner, what needs captions is left out where nobody named it.

    Raises:
        OptionError: Somebody did.
    """
    only = arguments.only or ()
    parts = tuple(only or _default_parts(arguments))
    if "captioner" in bundle.digests:
        return parts
    named = [name for name in CAPTIONED if name in only] + ["--ablate"] * arguments.ablate
    if named:
        raise OptionError(
            f"{', '.join(named)} cannot be measured: {bundle.folder} has no captioner."
        )
    left_out = [name for name in CAPTIONED if name in parts]
    if left_out:
        print(f"left out: {', '.join(left_out)}, since the bundle has no captioner")
    return tuple(name for name in parts if name not in CAPTIONED)


def _default_parts(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Without ``--only``: the benches where a setting is named, nothing else beside an ablation, else all."""
    if arguments.setting:
        return ("bench",)
    return () if arguments.ablate else PARTS


def _steps(
    restorer: Restorer, pairs: Callable[[], list[Pair | FloatPair]], name: str
) -> dict[str, Any]:
    """Quality against evaluations on one bench, read only now."""
    return measure_steps(restorer, pairs(), title=name)


def _pairs(folder: Path, name: str, limit: int | None) -> list[Pair | FloatPair]:
    """The first ``limit`` pictures of a bench."""
    readers: dict[str, Callable[[Path], Iterator[Pair | FloatPair]]]
    readers = {**BENCHES, **UNCLIPPED, **SYNTHETIC}
    return list(islice(readers[name](folder), limit))


def _earlier(file: Path, bundle: str) -> dict[str, Any]:
    """The results in ``file`` if they are of the same weights on the same machine, else none; with what they are of."""
    opened = load_bundle(bundle)
    predicts = opened.preset.sampler.prediction
    about = {**identity(opened), "prediction": predicts, "machine": _machine()}
    earlier: dict[str, Any] = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    return earlier if earlier.get("about") == about else {"about": about}


def _machine() -> str:
    """Processor and threads, as the README should name them."""
    unit = torch.backends.cpu.get_cpu_capability()
    compute = Compute.choose()
    return f"{processor_name()}, {unit}, {torch.get_num_threads()} threads, {compute}"


if __name__ == "__main__":
    main()
