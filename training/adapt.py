"""Give a bundle adapters: ``python -m training.adapt --base B --release tiny-2 --adapter noisy=runs/noisy OUT``.

An adapter is a U-Net that was trained on for one kind of damage alone, told as its difference from the bundle's:

    python -m training.stage2 --init B --stage1 B --set 'stage2.mix={noisy=1}' --out runs/noisy --data …

What one network for every damage learns of one of them it pays for with the others; an adapter is used for its own
alone, so the others lose nothing.
"""

from __future__ import annotations

import argparse
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from training.command import users_faults
from training.engine.checkpoints import Checkpoints
from vlmir.bundle import PARTS, check_free, load_bundle
from vlmir.errors import BundleError
from vlmir.nn import Adapter, Damage
from vlmir.parts import build_embedder, build_unet, save_adapters

__all__ = ["adapt", "compressed", "main"]

SHARE = 0.12
"""Of a network's numbers that an adapter keeps in eight bits: in ``tiny`` the two levels of highest resolution."""

LEAST = 2.0**-24
"""The least number of half precision above 0: what has not changed still needs a scale."""


def adapt(
    out: Path,
    *,
    base: Path,
    stages: Mapping[str, Path],
    release: str,
    share: float = SHARE,
) -> None:
    """Write a bundle: ``base`` with an adapter for each of some labels; others that it has stay.

    Args:
        out: The new bundle's folder.
        base: The bundle whose U-Net was trained on.
        stages: Label → folder of the stage 2 that trained it on for that damage.
        release: Name and version of the new weights.
        share: See :func:`compressed`.

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
    typical = build_embedder(bundle).network.prototypes
    before = {name: p.detach() for name, p in build_unet(bundle).named_parameters()}
    adapters = dict[str, Adapter]()
    for label, stage in stages.items():
        state = Checkpoints(stage / "sampler").require("training.stage2")
        after = {name: average.float() for name, average in state["ema"].items()}
        if {n: p.shape for n, p in after.items()} != {n: p.shape for n, p in before.items()}:
            raise BundleError(f"{stage} trained another network than that of {base}.")
        damage = Damage.of(typical, labels.index(label))
        if bundle.preset.embedder.typical_damage:
            _shift(after, state["prototypes"][labels.index(label)] - damage.f_D)
        changes = {name: after[name] - own for name, own in before.items()}
        adapters[label] = compressed(changes, damage=damage, share=share)
    _copy(bundle.folder, out)
    save_adapters(out, adapters, release=release)


def _shift(weights: dict[str, Tensor], distance: Tensor) -> None:
    """Let a network take f_D for f_D + ``distance`` (D), which it was trained with.

    Stage 2 takes for typical the mean of its own pictures; those of the bundle were of others, and maybe of an earlier
    controller. The first layer that f_D meets is linear, so its bias can make up for that.
    """
    first = "degradation.text_mlp.0."
    weights[f"{first}bias"] = weights[f"{first}bias"] + weights[f"{first}weight"] @ distance


def compressed(changes: Mapping[str, Tensor], *, damage: Damage, share: float) -> Adapter:
    """An adapter near to changes of weights.

    Most of what a run for one damage learns is in the few numbers of the levels of high resolution, and must be kept
    exactly; of the many others the sign and the mean size are enough, in an eighth of the bytes.

    Args:
        changes: Parameter → by how much it changed.
        damage: For which.
        share: Of all numbers, those of the highest resolution first, so many are kept in eight bits.
    """
    whole = {name: change for name, change in changes.items() if change.ndim < 2}
    kernels = sorted(changes.keys() - whole.keys(), key=lambda name: (_depth(name, changes), name))
    room = share * sum(change.numel() for change in changes.values())
    codes, signs, scales = dict[str, Tensor](), dict[str, Tensor](), dict[str, Tensor]()
    for name in kernels:
        rows = changes[name].flatten(1)
        room -= rows.numel()
        if room >= 0:
            scales[name] = (rows.abs().amax(1) / 127).clamp_min(LEAST)
            codes[name] = (rows / scales[name][:, None]).round().to(torch.int8)
            codes[name] = codes[name].reshape(changes[name].shape)
        else:
            scales[name] = rows.abs().mean(1)  # of all factors of the signs the nearest
            signs[name] = torch.from_numpy(np.packbits((rows > 0).numpy()))
    return Adapter(damage=damage, whole=whole, codes=codes, signs=signs, scales=scales)


def _depth(name: str, names: Iterable[str]) -> int:
    """How often the resolution was halved where a parameter of the U-Net works: 0 at the first level."""
    levels = 1 + max((int(found[1]) for found in map(_DOWN.match, names) if found), default=0)
    if name.startswith("middle"):
        return levels
    if (up := re.match(r"ups\.(\d+)\.", name)) is not None:
        return levels - 1 - int(up[1])
    return int(down[1]) if (down := _DOWN.match(name)) is not None else 0


_DOWN = re.compile(r"downs\.(\d+)\.")


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
        "--share", type=float, default=SHARE, help=f"of the numbers kept in eight bits ({SHARE:g})"
    )
    arguments = parser.parse_args()
    with users_faults("adapt"):
        adapt(
            arguments.out,
            base=arguments.base,
            stages=dict(arguments.adapter),
            release=arguments.release,
            share=arguments.share,
        )
    print(
        f"{arguments.out}: {arguments.release}; measure it with training.evaluate, then register it"
    )


if __name__ == "__main__":
    main()
