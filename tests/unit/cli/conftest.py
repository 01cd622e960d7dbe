"""A restorer without networks, and pictures to feed it."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vlmir.cli import commands
from vlmir.errors import ImageError, OptionError
from vlmir.image import Image, Limits, decode, encode

BROKEN = b"no picture at all"


@dataclass
class FakeRestoration:
    image: Image
    options: Any

    @property
    def report(self) -> FakeRestoration:
        return self

    def encode(self) -> bytes:
        chosen = self.options
        return encode(
            self.image, format=chosen.format, quality=chosen.quality, lossless=chosen.lossless
        )

    def to_dict(self) -> dict[str, Any]:
        return {"caption": "a cat", "seed": self.options.seed}


@dataclass
class Step:
    share: float


@dataclass
class FakeInspection:
    caption: str | None
    degradations: dict[str, float]
    degradation: str
    width: int
    height: int
    milliseconds: dict[str, float]


@dataclass
class FakeRestorer:
    """Inverts the picture; remembers what it was asked for."""

    bundles: list[str] = field(default_factory=list)
    compute: list[dict[str, str]] = field(default_factory=list)
    calls: list[tuple[Path, Any]] = field(default_factory=list)
    limits: list[Limits] = field(default_factory=list)
    closed: int = 0
    caption: str | None = "a cat"
    before: Callable[[Path], None] = lambda path: None

    def stream(self, path: Path, options: Any) -> Generator[Step, None, FakeRestoration]:
        self.calls.append((path, options))
        try:
            image = decode(path.read_bytes())
            for step in range(1, 4):
                self.before(path)
                yield Step(step / 3)
            return FakeRestoration(image.with_pixels(1 - image.pixels), options)
        finally:
            self.closed += 1

    def check(self, options: Any) -> None:
        if options.steps == 101:
            raise OptionError("steps must be at most 100, not 101.")

    def inspect(self, path: Path) -> FakeInspection:
        if path.read_bytes() == BROKEN:
            raise ImageError("This is no image.")
        judged = {"noisy": 0.9, "hazy": 0.099}
        return FakeInspection(self.caption, judged, "noisy", 4, 3, {"caption": 5})


@pytest.fixture
def restorer(monkeypatch: pytest.MonkeyPatch) -> FakeRestorer:
    fake = FakeRestorer()

    def load(bundle: str, limits: Limits, **compute: str) -> FakeRestorer:
        fake.compute.append(compute)
        fake.bundles.append(bundle)
        fake.limits.append(limits)
        return fake

    monkeypatch.setattr(commands, "load_restorer", load)
    return fake


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder: a.png, broken.jpg, notes.txt, .hidden.png, sub/b.jpg, sub/deep/c.TIF."""
    folder = tmp_path / "photos"
    (folder / "sub" / "deep").mkdir(parents=True)
    write_picture(folder / "a.png", "png")
    write_picture(folder / ".hidden.png", "png")
    write_picture(folder / "sub" / "b.jpg", "jpeg")
    write_picture(folder / "sub" / "deep" / "c.TIF", "tiff")
    (folder / "broken.jpg").write_bytes(BROKEN)
    (folder / "notes.txt").write_text("not a picture")
    return folder


def write_picture(path: Path, format: str, level: float = 0.25) -> Path:
    pixels = np.full((3, 4, 3), level, np.float32)
    path.write_bytes(encode(Image(pixels=pixels, format=format)))
    return path
