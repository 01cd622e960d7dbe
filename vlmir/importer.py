"""A bundle from DA-CLIP's public checkpoints, ``universal-ir.pth`` and ``daclip_ViT-B-32.pt``.

Luo et al. 2023, arXiv 2310.01018; weights MIT, ``weblzw/daclip-uir-ViT-B-32-irsde``. They bring no captioner, no
semantic cross-attention, no LoRA updates and no label ``clean``.
"""

from __future__ import annotations

import dataclasses
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vlmir.bundle import Bundle, check_free, load_bundle
from vlmir.config import Preset
from vlmir.daclip import load_strictly, read_state_dict, rename
from vlmir.errors import BundleError
from vlmir.image import Image
from vlmir.nn import UNet
from vlmir.options import RestoreOptions
from vlmir.parts import save_bundle
from vlmir.pipeline import Restorer
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.embedder import ClipEmbedder
from vlmir.vlm.tokenizer import ClipTokenizer

__all__ = ["RELEASE", "import_daclip"]

RELEASE = "daclip-universal-ir"
"""Name of the imported weights."""

_MARKS: Mapping[str, tuple[str, str]] = {
    "unet": ("U-Net", "init_conv.weight"),
    "clip": ("CLIP", "visual_control.conv1.weight"),
}
"""Kind of checkpoint → what it is to people, and a tensor that it alone has."""


def import_daclip(out: Path, *, unet: Path, clip: Path, preset: Preset) -> Bundle:
    """Make the bundle ``out`` from DA-CLIP's two checkpoints; nothing in them is executed.

    Every tensor of both files must have its place in the networks and every place its tensor, all must be finite, and
    one picture must pass through the written bundle. ``out`` then appears as a whole; a failure leaves nothing.

    Args:
        out: The bundle's folder, new or empty.
        unet: The U-Net's checkpoint.
        clip: The checkpoint of CLIP with its controller.
        preset: The architecture; ``daclip`` for the public files.

    Returns:
        The bundle.

    Raises:
        OptionError: ``out`` is taken.
        BundleError: A file is missing, damaged, foreign, or of another architecture, or ``out`` cannot be written.
        VlmirError: The weights give values that are no numbers.
    """
    check_free(out)
    with _whole_or_nothing(out) as part:
        _convert(part, unet, clip, preset)
        bundle = load_bundle(part)
        _try_out(bundle)
    return dataclasses.replace(bundle, folder=out)


def _convert(folder: Path, unet: Path, clip: Path, preset: Preset) -> None:
    """Write the bundle; apart from its trial, so that the networks are not in memory twice."""
    save_bundle(
        folder,
        preset=preset,
        release=RELEASE,
        unet=_load_unet(unet, preset),
        embedder=_load_embedder(clip, preset),
        metrics={},
        # In half precision the reference's outputs are missed by 3e-3 (U-Net) and 6e-4 (CLIP); we promise 1e-4.
        dtype=torch.float32,
    )


def _load_unet(path: Path, preset: Preset) -> UNet:
    network = UNet(preset.sampler.unet)
    # The nulls are ours and stay zero: DA-CLIP always has its conditions.
    _fill(network, path, _read(path, "unet"), "unet", may_miss=r"^null\.")
    return network


def _load_embedder(path: Path, preset: Preset) -> DegradationCLIP:
    """CLIP and controller, with the labels embedded."""
    state = _read(path, "clip")
    _check_twins(path, state)
    network = DegradationCLIP(preset.embedder, len(preset.labels), lora=False)
    ours = r"^(caption_encoder\.|label_embeddings$|prototypes$|logit_scale$)"
    _fill(network, path, state, "clip", may_miss=ours)
    embedder = ClipEmbedder(network, ClipTokenizer(), preset.labels)
    with torch.no_grad():
        network.logit_scale.copy_(network.clip.logit_scale)
        network.set_labels(embedder.tokenize(preset.labels))
        # The U-Net was trained on f_D as it leaves the controller, not normalised. The text embedding that stands in
        # for it gets its length, which hardly depends on the picture.
        network.prototypes.mul_(embedder.embed_image(_picture()).f_D.norm())
    return network


def _read(path: Path, kind: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint of this kind, all sound.

    Raises:
        BundleError: It is damaged, foreign, or the other of the two.
    """
    state = read_state_dict(path)
    name, mark = _MARKS[kind]
    if mark not in state:
        for other, sign in _MARKS.values():
            if sign in state:
                raise BundleError(
                    f"{path} is DA-CLIP's {other}, but its {name} was expected; exchange the two files."
                )
        raise BundleError(f"{path} is not DA-CLIP's {name}: it has no tensor {mark!r}.")
    unsound = [n for n, tensor in state.items() if not _sound(tensor)]
    if unsound:
        raise BundleError(
            f"{path} is damaged: values of {unsound[:3]} are no numbers ({len(unsound)} tensors in all)."
        )
    return state


def _sound(tensor: Tensor) -> bool:
    plain = tensor.layout == torch.strided and tensor.device.type == "cpu"
    return plain and tensor.is_floating_point() and bool(tensor.float().isfinite().all())


def _check_twins(path: Path, state: Mapping[str, Tensor]) -> None:
    """The frozen visual tower is listed twice; one of the two would be dropped in silence.

    Raises:
        BundleError: The two differ.
    """
    for name in (n for n in state if n.startswith("visual.")):
        twin = f"clip.{name}"
        if twin in state and not torch.equal(state[name], state[twin]):
            raise BundleError(f"{path} is damaged: {name!r} and {twin!r} should be the same.")


def _fill(
    network: nn.Module, path: Path, state: Mapping[str, Tensor], kind: str, *, may_miss: str
) -> None:
    try:
        load_strictly(network, rename(state, kind, network), may_miss=may_miss)
    except BundleError as error:
        raise BundleError(f"{path} is not the expected {_MARKS[kind][0]}: {error}") from error


@contextmanager
def _whole_or_nothing(out: Path) -> Iterator[Path]:
    """A folder to write into, which becomes ``out`` at the end, or vanishes where something fails.

    Raises:
        BundleError: The file system refuses.
    """
    place = out.resolve()
    home = next(folder for folder in place.parents if folder.exists())
    part = home / f".{place.name}.{os.getpid()}.part"
    try:
        part.mkdir()
        yield part
        place.parent.mkdir(parents=True, exist_ok=True)
        part.replace(place)
    except (OSError, SafetensorError) as error:
        raise BundleError(f"Cannot write {out}: {error}.") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _try_out(bundle: Bundle) -> None:
    """Restore a picture with the bundle as it was written.

    Raises:
        BundleError: The label probabilities are no numbers.
        VlmirError: The restored pixels are no numbers.
    """
    image = Image(pixels=_picture())  # at realism 0 by one evaluation: seconds, at full size
    report = Restorer.from_bundle(bundle).restore(image, RestoreOptions(realism=0)).report
    if not all(map(math.isfinite, report.degradations.values())):
        raise BundleError("The weights judge a picture's damage by values that are no numbers.")


def _picture() -> npt.NDArray[np.float32]:
    """A grainy ramp, 64×64×3, 0…1."""
    ramp = np.linspace(0.1, 0.9, 64)[None, :, None]
    grain = np.random.default_rng(0).normal(0, 0.06, (64, 64, 3))
    return (ramp + grain).clip(0, 1).astype(np.float32)
