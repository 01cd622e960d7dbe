"""A pool of degraded pictures with their clean originals: what both stages train on.

Whole photos are degraded, captioned and embedded, and crops are cut later, because the conditions describe the whole
picture. The pool is a folder: one flat file of pixels (memory-mapped, so it may exceed the memory) and an index.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.cache import fingerprint
from training.data.rehaze import other_hazes
from vlmir.degradations import degrade
from vlmir.image.color import to_float, to_levels

__all__ = [
    "Bytes",
    "Entry",
    "Pool",
    "build_pool",
    "degrade_bytes",
    "read_folder",
    "read_pairs",
    "to_tensor",
    "transplant",
]

Bytes = npt.NDArray[np.uint8]

RECIPE: dict[str, tuple[int, float, float]] = {
    "noisy": (5, 0.0, 1.0),
    "rainy": (5, 0.3, 1.0),
    "hazy": (4, 0.2, 0.9),
    "raindrop": (3, 0.2, 1.0),
    "low-light": (2, 0.1, 0.9),
    "snowy": (2, 0.2, 1.0),
    "motion-blurry": (2, 0.1, 0.9),
    "jpeg-compressed": (2, 0.1, 1.0),
    "shadowed": (2, 0.2, 1.0),
    "uncompleted": (2, 0.2, 1.0),
    "clean": (1, 0.0, 0.0),
}
"""Label → (degraded copies of each photo, least and greatest strength)."""


LAYOUT = 3
"""Version of what :func:`build_pool` makes of the same pictures by the same recipe."""

HELD_OUT = 50
"""One photo (and one real pair) of so many is kept from training."""


@dataclass(frozen=True)
class Entry:
    """One degraded picture."""

    label: str
    lq: int
    """Offset of the degraded picture in the pixel file, in bytes."""
    gt: int
    """Offset of its clean original."""
    height: int
    width: int
    photo: int
    """Number of the original."""
    strength: float = 0.0
    """How bad a synthetic damage is; 0 where it is real or transplanted."""


class Pool:
    """A pool on disk, or ``limit`` random entries of it.

    ``pool.lq(i)`` and ``pool.gt(i)`` are H×W×3 uint8 views of the file.
    """

    def __init__(self, folder: Path, limit: int | None = None) -> None:
        index = json.loads((folder / "index.json").read_text("utf-8"))
        if not isinstance(index, dict):
            raise ValueError(f"The pool in {folder} is of an older version; delete it.")
        self.folder = folder
        self.digest: str = index["made_of"]
        """Fingerprint of what the whole pool was made of."""
        self.entries = [Entry(**entry) for entry in index["entries"]]
        # Of all entries, not of those kept below: clean photos come first, and each is degraded to `clean` too.
        self._last_clean = max(entry.photo for entry in self.entries if entry.label == "clean")
        if limit is not None and limit < len(self.entries):
            kept = np.random.default_rng(0).permutation(len(self.entries))[:limit]
            self.entries = [self.entries[i] for i in sorted(kept)]
        self._pixels = np.memmap(folder / "pixels.bin", np.uint8, mode="r")
        self.training = [i for i, e in enumerate(self.entries) if not _held_out(e.photo)]
        """Entries to train on."""
        self.held_out = [i for i, e in enumerate(self.entries) if _held_out(e.photo)]
        """Entries of other photos, to validate with; none where there are few photos."""

    def __len__(self) -> int:
        return len(self.entries)

    def lq(self, i: int) -> Bytes:
        """The degraded picture of entry ``i``."""
        return self._view(self.entries[i].lq, self.entries[i])

    def gt(self, i: int) -> Bytes:
        """The clean picture of entry ``i``."""
        return self._view(self.entries[i].gt, self.entries[i])

    def is_real(self, entry: Entry) -> bool:
        """Whether an entry is of a real pair, not of a photo degraded by us."""
        return entry.photo > self._last_clean

    def _view(self, offset: int, entry: Entry) -> Bytes:
        size = entry.height * entry.width * 3
        return self._pixels[offset : offset + size].reshape(entry.height, entry.width, 3)


def _held_out(photo: int) -> bool:
    """Whether a photo, by its number, is one of the few that are kept from training, whatever the damage."""
    return photo % HELD_OUT == HELD_OUT - 1


def read_folder(folder: Path) -> list[Bytes]:
    """Every picture of a folder in the order of names, H×W×3 uint8 RGB."""
    return [_read(path) for path in sorted(folder.iterdir())]


def read_pairs(folder: Path) -> Iterator[tuple[str, Bytes, Bytes]]:
    """(label, LQ, GT) of the reference layout ``<label>/{LQ,GT}/<same name>``, in capitals or not.

    Raises:
        FileNotFoundError: A label lacks one of the two folders, or an LQ picture its GT.
    """
    for task in sorted(path for path in folder.iterdir() if path.is_dir()):
        truths = {path.stem: path for path in _side(task, "gt").iterdir()}
        for lq in sorted(_side(task, "lq").iterdir()):
            if lq.stem not in truths:
                raise FileNotFoundError(f"{lq} has no picture of the same name in GT.")
            yield task.name, _read(lq), _read(truths[lq.stem])


def _side(task: Path, name: str) -> Path:
    """The folder ``name`` of a task, in capitals or not."""
    for path in task.iterdir():
        if path.name.lower() == name:
            return path
    raise FileNotFoundError(f"{task} has no folder {name.upper()}; pairs lie in LQ and GT.")


def build_pool(
    folder: Path,
    photos: Sequence[Bytes],
    pairs: Sequence[tuple[str, Bytes, Bytes]],
    *,
    pair_copies: int = 8,
    seed: int = 0,
) -> Pool:
    """Degrade every photo by the recipe, add the real pairs, and write the pool; an existing one is opened.

    Half of the rainy copies carry streaks of the real pairs (their difference LQ − GT, turned and shifted) instead of
    synthetic ones. Real pairs are listed ``pair_copies`` times, so that sampling evenly meets them often enough; hazy
    ones in another haze each time but the first.

    Raises:
        ValueError: The existing pool was made of other pictures or by another recipe.
    """
    made_of = fingerprint(LAYOUT, RECIPE, pair_copies, seed, list(photos), list(pairs))
    if (folder / "index.json").is_file():
        pool = Pool(folder)
        if pool.digest != made_of:
            raise ValueError(
                f"The pool in {folder} was made of other pictures or by another recipe; delete it or name another."
            )
        return pool
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    numbers = _numbers(pairs, len(photos))
    streaks = [
        lq.astype(np.int16) - gt
        for number, (label, lq, gt) in zip(numbers, pairs, strict=True)
        if label == "rainy" and not _held_out(number)
    ]
    entries: list[Entry] = []
    with (folder / "pixels.bin").open("wb") as file:

        def write(pixels: Bytes) -> int:
            offset = file.tell()
            file.write(np.ascontiguousarray(pixels).tobytes())
            return offset

        for number, photo in enumerate(photos):
            gt, (height, width) = write(photo), photo.shape[:2]
            for label, (copies, low, high) in RECIPE.items():
                for copy in range(copies):
                    strength = 0.0
                    if label == "rainy" and copy % 2 and streaks:
                        lq = transplant(photo, streaks[rng.integers(len(streaks))], rng)
                    else:
                        strength = _strength(label, copy, low, high, rng)
                        seed_ = int(rng.integers(2**31))
                        lq = degrade_bytes(photo, label, seed=seed_, strength=strength)
                    entries.append(Entry(label, write(lq), gt, height, width, number, strength))
        for number, (label, lq, gt_pixels) in zip(numbers, pairs, strict=True):
            height, width = gt_pixels.shape[:2]
            gt = write(gt_pixels)
            entry = Entry(label, write(lq), gt, height, width, number)
            if label == "hazy":
                others = other_hazes(lq, gt_pixels, pair_copies - 1, rng)
                entries += [entry, *(replace(entry, lq=write(other)) for other in others)]
            else:
                entries += [entry] * pair_copies
    index = json.dumps({"made_of": made_of, "entries": [asdict(entry) for entry in entries]})
    partial = folder / "index.partial"
    partial.write_text(index, encoding="utf-8")
    os.replace(partial, folder / "index.json")  # last and at once: a pool with an index is whole
    return Pool(folder)


def _numbers(pairs: Sequence[tuple[str, Bytes, Bytes]], first: int) -> list[int]:
    """A number for the clean picture of each pair; pairs of one scene share it."""
    known: dict[str, int] = {}
    return [known.setdefault(fingerprint(gt), first + len(known)) for _, _, gt in pairs]


def transplant(photo: Bytes, streaks: npt.NDArray[np.int16], rng: np.random.Generator) -> Bytes:
    """Put the rain of a real pair over another photo: mirrored, rolled and repeated to its size."""
    if rng.random() < 0.5:
        streaks = streaks[:, ::-1]
    if rng.random() < 0.5:
        streaks = streaks[::-1]
    height, width = photo.shape[:2]
    if (height > width) != (streaks.shape[0] > streaks.shape[1]):
        streaks = streaks.transpose(1, 0, 2)
    rows, columns = streaks.shape[:2]
    rolled = np.roll(streaks, (int(rng.integers(rows)), int(rng.integers(columns))), (0, 1))
    repeats = (-(-height // rolled.shape[0]), -(-width // rolled.shape[1]), 1)
    rain = np.tile(rolled, repeats)[:height, :width]
    return np.asarray(np.clip(photo + rain, 0, 255), np.uint8)


def _strength(label: str, copy: int, low: float, high: float, rng: np.random.Generator) -> float:
    """Evenly between the bounds, but most noise is σ = 50, the benchmark's and the paper's."""
    if label == "noisy" and copy < 3:
        return 0.5
    return float(rng.uniform(low, high))


def degrade_bytes(photo: Bytes, label: str, *, seed: int, strength: float) -> Bytes:
    """:func:`vlmir.degradations.degrade` for bytes."""
    degraded = degrade(to_float(photo), label, seed=seed, strength=strength)
    return np.asarray(to_levels(degraded, 8), np.uint8)


def to_tensor(pixels_HWC: Bytes) -> Tensor:
    """H×W×3 uint8 → 1×3×H×W float32, 0…1."""
    pixels = torch.from_numpy(np.array(pixels_HWC)).permute(2, 0, 1)[None]
    return pixels.float() / 255


def _read(path: Path) -> Bytes:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise FileNotFoundError(f"{path} is missing or no picture.")
    return image.astype(np.uint8)
