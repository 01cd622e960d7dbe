"""Clients that go on asking for pictures while something happens to the cluster, and what they may be told."""

from __future__ import annotations

import itertools
import struct
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.integration.calls import wait_until
from tests.unit.training.pictures import scene
from vlmir.client import ClientRestoration, RestorationClient
from vlmir.errors import VlmirError
from vlmir.image import Image, decode, encode
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restoration, Restorer

__all__ = ["HEALTHY_S", "PATIENCE_S", "Answer", "Load", "Photo", "ask", "photo"]

HEALTHY_S = 30.0
"""Within so long all must be as it was after a fault."""
PATIENCE_S = 60.0
PNG_HEAD = 8 + 25
"""Bytes of a PNG's signature and first chunk."""

numbers = itertools.count(1)


@dataclass(frozen=True)
class Photo:
    """A picture, how it is to be restored, and what the library makes of it."""

    data: bytes
    options: RestoreOptions
    expected: Mapping[str, Restoration]
    """By release."""

    def named(self, number: int) -> bytes:
        """The same picture in another file, so that it has to be computed anew."""
        text = b"tEXtnumber\0%d" % number
        chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
        return self.data[:PNG_HEAD] + chunk + self.data[PNG_HEAD:]


def photo(
    number: int, size: tuple[int, int], options: RestoreOptions, libraries: Mapping[str, Restorer]
) -> Photo:
    """A scene.

    Args:
        number: Which.
        size: Height and width.
        options: How it is restored.
        libraries: What restores it, by release.
    """
    levels = np.ascontiguousarray(scene(number, *size)[..., ::-1])
    data = encode(Image.from_levels(levels), format="png")
    expected = {release: one.restore(data, options) for release, one in libraries.items()}
    return Photo(data, options, expected)


@dataclass(frozen=True)
class Answer:
    """A picture that came back."""

    photo: Photo
    request_id: str
    restored: ClientRestoration

    def check(self) -> None:
        """See that it is the library's, to a level of 8 bit."""
        report = self.restored.report
        expected = self.photo.expected[report.release]
        difference = decode(self.restored.image_bytes).pixels - decode(expected.encode()).pixels
        assert np.abs(difference).max() <= 1.001 / 255
        assert report.caption == expected.report.caption
        assert report.warnings == expected.report.warnings == ()


def ask(client: RestorationClient, photo: Photo) -> Answer:
    """Restore it as if it had never been asked for."""
    number = next(numbers)
    request_id = f"s-{number}"
    restored = client.restore(photo.named(number), photo.options, request_id=request_id)
    return Answer(photo, request_id, restored)


@dataclass
class Load:
    """Clients that ask for one picture after the other, and accept no end but the promised ones."""

    address: str
    accepted: tuple[type[VlmirError], ...] = ()
    """What it may be told in place of a picture."""
    timeout_s: float = PATIENCE_S
    """What each picture may take."""
    ends: Counter[str] = field(default_factory=Counter)
    """How requests ended."""
    answers: list[Answer] = field(default_factory=list)
    """Those that ended as if nothing had happened."""
    seconds: list[float] = field(default_factory=list)
    """What each picture or refusal took."""
    _stop: threading.Event = field(default_factory=threading.Event)
    _begun: list[float] = field(default_factory=list)
    """When the answers were asked for."""

    @contextmanager
    def on(self, photos: Sequence[Photo]) -> Iterator[None]:
        """A client for each photo, while the block runs."""
        with ThreadPoolExecutor(len(photos)) as pool:
            running = [pool.submit(self._go_on, photo) for photo in photos]
            try:
                yield
            finally:
                self._stop.set()
                for one in running:  # what ended one of them tells more than what it led to
                    one.result(PATIENCE_S)

    def wait_for_whole(self, number: int, *, after: float = 0.0) -> None:
        """Return when so many pictures came that were asked for after a moment."""
        wait_until(
            lambda: sum(began > after for began in list(self._begun)) >= number,
            within_s=2 * HEALTHY_S,
            told=lambda: self.ends,
        )

    def _go_on(self, photo: Photo) -> None:
        """Ask until told to stop."""
        with RestorationClient(self.address, timeout_s=self.timeout_s) as client:
            while not self._stop.is_set():
                began = time.monotonic()
                try:
                    self._note(began, ask(client, photo))
                except self.accepted as error:
                    self.ends[type(error).__name__] += 1
                    time.sleep(0.2)
                self.seconds.append(time.monotonic() - began)

    def _note(self, began: float, answer: Answer) -> None:
        warnings = answer.restored.report.warnings
        self.ends[" ".join(warnings) or "restored"] += 1
        if not warnings:
            self.answers.append(answer)
            self._begun.append(began)
        # What can be missed, and the store.
        assert all("captioner" in one or "asked for again" in one for one in warnings)
