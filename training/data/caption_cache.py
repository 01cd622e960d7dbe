"""Captions kept under the content of their picture and of the captioner, as soon as they are made."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.progress import track

from training.cache import fingerprint
from training.data.pool import Bytes, to_tensor
from vlmir.vlm.captioner import BlipCaptioner
from vlmir.vlm.preprocess import content_view

__all__ = ["CaptionCache"]

BATCH = 64


class CaptionCache:
    """The captions that one captioner gave: ``<folder>/captions-<captioner>.jsonl``, a line each."""

    def __init__(self, folder: Path, captioner: BlipCaptioner) -> None:
        self._captioner = captioner
        made_by = fingerprint(captioner.model, dataclasses.asdict(captioner.config))
        self._file = folder / f"captions-{made_by}.jsonl"
        self._known: dict[str, str] = {}
        if self._file.is_file():
            self._read()

    def __call__(self, pictures: Sequence[Callable[[], Bytes]], what: str) -> list[str]:
        """Captions of pictures, each given by a function that reads it (H×W×3 uint8); ``what`` names them."""
        keys = [_key(read()) for read in pictures]
        missing = list(
            {
                k: read for k, read in zip(keys, pictures, strict=True) if k not in self._known
            }.items()
        )
        starts = range(0, len(missing), BATCH)
        for start in track(starts, f"captioning {what}", disable=not missing):
            part = missing[start : start + BATCH]
            captions = self._caption([read() for _, read in part])
            self._keep(dict(zip((key for key, _ in part), captions, strict=True)))
        return [self._known[key] for key in keys]

    def _caption(self, pictures: Sequence[Bytes]) -> list[str]:
        size = self._captioner.config.image_size
        return self._captioner.caption_batch(
            torch.cat([content_view(to_tensor(picture), size) for picture in pictures])
        )

    def _keep(self, captions: dict[str, str]) -> None:
        self._known |= captions
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._file.open("a", encoding="utf-8") as file:
            for key, caption in captions.items():
                file.write(json.dumps([key, caption]) + "\n")

    def _read(self) -> None:
        """Read the lines; where a crash cut the last one, it is dropped."""
        data = self._file.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            self._file.write_bytes(whole)
        self._known = dict(json.loads(line) for line in whole.splitlines())


def _key(picture: Bytes) -> str:
    digest = hashlib.blake2b(repr(picture.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()
