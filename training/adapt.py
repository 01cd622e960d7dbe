"""Give a bundle adapters: ``python -m training.adapt --base B --release tiny-2 --adapter noisy=runs/noisy OUT``.

An adapter is a U-Net that was trained on for one kind of damage alone, told as its difference from the bundle's:

    python -m training.stage2 --init B --stage1 B --set 'stage2.mix={noisy=1}' --out runs/noisy --data …

What one network for every damage learns of one of them it pays for with the others; an adapter is used for its own
alone, so it can only gain. Of the differences those singular vectors are kept that say the most for their size.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from training.command import users_faults
from training.engine.checkpoints import Checkpoints
from vlmir.bundle import PARTS, check_free, load_bundle
from vlmir.errors import BundleError
from vlmir.nn import Adapter, Damage
from vlmir.parts import build_embedder, build_unet, save_adapters

__all__ = ["adapt", "compressed", "main"]

NOTHING = 1e-6
"""Share of the greatest singular value below which one is an error of rounding."""

MEGABYTES = 3.0
"""Size of one adapter in half precision, unless another is asked for."""


def adapt(out: Path, *, base: Path, stages: Mapping[str, Path], release: str, numbers: int) -> None:
    """Write a bundle: ``base`` with an adapter for each of some labels; others that it has stay.

    Args:
        out: The new bundle's folder.
        base: The bundle whose U-Net was trained on.
        stages: Label → folder of the stage 2 that trained it on for that damage.
        release: Name and version of the new weights.
        numbers: How many numbers an adapter may hold.

    Raises:
        BundleError: ``base`` is damaged, knows no such label, or is not what the stages began with.
        FileNotFoundError: A checkpoint is missing.
        OptionError: ``out`` is there already.
    """
    check_free(out)
    bundle = load_bundle(base)
    labels = bundle.preset.labels
    unknown = sorted({*stages} - {*labels})
    if unknown:
        raise BundleError(f"{base} knows no damage {unknown}; choose from {', '.join(labels)}.")
    embedder = build_embedder(bundle)
    before = {name: p.detach() for name, p in build_unet(bundle).named_parameters()}
    adapters = dict[str, Adapter]()
    for label, stage in stages.items():
        state = Checkpoints(stage / "sampler").require("training.stage2")
        after = {name: average.float() for name, average in state["ema"].items()}
        if {n: p.shape for n, p in after.items()} != {n: p.shape for n, p in before.items()}:
            raise BundleError(f"{stage} trained another network than that of {base}.")
        f_D = embedder.embed_label(label)
        if bundle.preset.embedder.typical_damage:
            _shift(after, state["prototypes"][labels.index(label)] - f_D)
        changes = {name: after[name] - own for name, own in before.items()}
        others = torch.stack([embedder.embed_label(other) for other in labels if other != label])
        factors, whole = compressed(changes, numbers=numbers)
        adapters[label] = Adapter(damage=Damage(f_D, others), factors=factors, whole=whole)
    _copy(bundle.folder, out)
    save_adapters(out, adapters, release=release)


def _shift(weights: dict[str, Tensor], distance: Tensor) -> None:
    """Let a network take f_D for f_D + ``distance`` (D), which it was trained with.

    Stage 2 takes for typical the mean of its own pictures; those of the bundle were of others, and maybe of an earlier
    controller. The first layer that f_D meets is linear, so its bias can make up for that.
    """
    first = "degradation.text_mlp.0."
    weights[f"{first}bias"] = weights[f"{first}bias"] + weights[f"{first}weight"] @ distance


def compressed(
    changes: Mapping[str, Tensor], *, numbers: int
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, Tensor]]:
    """Factors and whole changes of an :class:`~vlmir.nn.Adapter` near to changes of weights, in so many numbers.

    By the singular value decomposition of each matrix (Eckart and Young 1936: no sum of as many products of vectors is
    nearer), those products first whose square is greatest for the numbers they take. Vectors are kept whole; so is a
    matrix of which so many products are kept that they would take more.

    Args:
        changes: Parameter → by how much it changed.
        numbers: How many numbers the adapter may hold, about; vectors are kept even if they are more.
    """
    whole = {name: change for name, change in changes.items() if change.ndim < 2}
    left = numbers - sum(change.numel() for change in whole.values())
    matrices = {name: change.flatten(1) for name, change in changes.items() if change.ndim > 1}
    parts = {n: torch.linalg.svd(matrix, full_matrices=False) for n, matrix in matrices.items()}
    gains = [
        (float(value) ** 2 / sum(matrices[name].shape), name)
        for name, (_, values, _) in parts.items()
        for value in values[values > NOTHING * values.max()]
    ]
    ranks = dict.fromkeys(matrices, 0)
    for _, name in sorted(gains, reverse=True):
        matrix, rank = matrices[name], ranks[name]
        left -= _size(matrix, rank + 1) - _size(matrix, rank)
        if left < 0:
            break
        ranks[name] += 1
    factors = dict[str, tuple[Tensor, Tensor]]()
    for name, rank in ranks.items():
        up, values, down = parts[name]
        if rank and _size(matrices[name], rank) == matrices[name].numel():
            whole[name] = changes[name]
        elif rank:
            # The root on both sides: half precision has a narrow range.
            root = values[:rank].sqrt()
            factors[name] = (up[:, :rank] * root, root[:, None] * down[:rank])
    return factors, whole


def _size(matrix: Tensor, rank: int) -> int:
    """How many numbers so many products of vectors take, or the matrix itself where that is smaller."""
    return min(rank * sum(matrix.shape), matrix.numel())


def _copy(folder: Path, out: Path) -> None:
    """Copy the files of a bundle's parts, and its description."""
    for part, names in PARTS.items():
        for name in names:
            if (folder / part / name).is_file():
                (out / part).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(folder / part / name, out / part / name)
    shutil.copyfile(folder / "bundle.json", out / "bundle.json")


def _adapter_of(text: str) -> tuple[str, Path]:
    label, equals, folder = text.partition("=")
    if not (label and equals and folder):
        raise argparse.ArgumentTypeError(f"{text!r} is not LABEL=FOLDER, such as noisy=runs/noisy")
    return label, Path(folder)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.adapt",
        description="Give a bundle's sampler adapters for single kinds of damage.",
    )
    parser.add_argument("out", type=Path, help="folder of the new bundle")
    parser.add_argument(
        "--base", type=Path, required=True, help="bundle whose U-Net was trained on"
    )
    parser.add_argument(
        "--adapter",
        type=_adapter_of,
        action="append",
        required=True,
        metavar="LABEL=FOLDER",
        help="stage 2 that trained on for that damage alone; may be given again for others",
    )
    parser.add_argument("--release", required=True, help="name and version of these weights")
    parser.add_argument(
        "--megabytes", type=float, default=MEGABYTES, help=f"of one adapter ({MEGABYTES:g})"
    )
    arguments = parser.parse_args()
    with users_faults("adapt"):
        adapt(
            arguments.out,
            base=arguments.base,
            stages=dict(arguments.adapter),
            release=arguments.release,
            numbers=round(arguments.megabytes * 1e6 / 2),
        )
    print(
        f"{arguments.out}: {arguments.release}; measure it with training.evaluate, then register it"
    )


if __name__ == "__main__":
    main()
