"""The releases a service holds: one is served, older ones are lent by name until nobody needs them.

A request that spans several services asks each for the same release, so it never mixes versions, even while another is
being promoted. All that changes what is held happens beside serving, in the thread that follows the registry.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

from services.common.leases import Held
from vlmir.bundle import Bundle
from vlmir.config import Preset
from vlmir.errors import ReleaseError, UnavailableError

__all__ = ["LINGER_S", "Releases", "nothing", "parts_needed"]

log = logging.getLogger("vlmir.releases")

LINGER_S = 30.0
"""Seconds since its last use for which an old release is still lent: a request that began on it may come here late."""

COSTLESS = 8
"""Old releases that stay for longer where they compute with the model of the current one, and so cost nothing.

Where another service refuses a new release, all of them go on together with an old one."""

M = TypeVar("M")


def nothing(_: object) -> None:
    """Nothing has to be given back."""


def parts_needed(preset: Preset, part: str) -> tuple[str, ...]:
    """The parts of a bundle whose files a service of ``part`` reads: an embedder may share the captioner's words."""
    if part == "embedder" and preset.embedder.tokenizer == "bundle":
        return ("captioner", part)
    return (part,)


@dataclass(eq=False)
class _Model(Generic[M]):
    """A model, which several releases may share."""

    model: M
    bundle: Bundle


@dataclass(eq=False)
class _Entry(Generic[M]):
    """A release that may be asked for."""

    held: Held[M]
    shared: _Model[M]
    leases: int = 0
    used: float = 0.0
    """When it was last current or lent, on `time.monotonic`."""


class Releases(Generic[M]):
    """Lends models by release; safe to share between threads.

    Args:
        part: The service's part of a bundle.
        load: Makes the model from a bundle in whose folder are the parts that :func:`parts_needed` names, and ``onnx/``
            of the embedder if it came from the registry. The model may serve several releases whose part is the same.
        warm_up: Called before the first lease, so that the first request is no slower than others.
        free: Gives back what the garbage collector does not, such as threads.
        linger_s: How long an old release is lent after its last use.
    """

    def __init__(
        self,
        part: str,
        load: Callable[[Bundle], M],
        warm_up: Callable[[M], None],
        free: Callable[[M], None] = nothing,
        *,
        linger_s: float = LINGER_S,
    ) -> None:
        self._part, self._load, self._warm_up, self._free = part, load, warm_up, free
        self._linger_s = linger_s
        self._lock = threading.Lock()  # held for moments only: requests wait for it
        self._changing = threading.Lock()  # held while loading and freeing
        self._entries: list[_Entry[M]] = []  # the current one first, then what was current last
        self._littered = False
        self.refused = ""
        """Which newer release is not the one being served, and why; empty if none was refused."""
        self.wanted = ""
        """The release that was asked for last of those that are not held."""
        self.promotions = 0
        """How often another release became the current one in place of one before it."""

    @property
    def names(self) -> tuple[str, ...]:
        """Releases that may be asked for, the current one first; empty while nothing is loaded."""
        with self._lock:
            return tuple(entry.held.release for entry in self._entries)

    @contextmanager
    def lease(self, release: str = "") -> Iterator[Held[M]]:
        """Keep a release alive while the block runs.

        Args:
            release: Its name; empty for the current one.

        Raises:
            ReleaseError: It is not held; the message names those that are.
            UnavailableError: Nothing is loaded yet.
        """
        with self._lock:
            entry = self._find(release)
            entry.leases += 1
        try:
            yield entry.held
        finally:
            with self._lock:
                entry.leases -= 1
                entry.used = time.monotonic()

    def serve(self, release: str, bundle: Bundle) -> None:
        """Make a release the current one, loaded and warmed up before; one that is still held is current at once.

        Raises:
            Exception: What ``load`` or ``warm_up`` raised; what is held has not changed.
        """
        before = self.names[:1]
        self._add(release, bundle, place=0)
        self.promotions += before not in ((), (release,))
        log.info("serving %s", release)

    def hold(self, release: str, bundle: Bundle) -> None:
        """Lend an old release again beside the current one, as if it had been used just now.

        Raises:
            Exception: What ``load`` or ``warm_up`` raised; what is held has not changed.
        """
        self._add(release, bundle, place=1)
        log.info("holding %s again", release)

    def refuse(self, release: str, why: str) -> None:
        """Say that a release is not served; the current one goes on."""
        self.refused = f"{release}: {why}"
        names = self.names
        log.error("refused %s%s", self.refused, f" ({names[0]} serves on)" if names else "")

    def sweep(self) -> None:
        """Free old releases that nobody has used for a while, and give their memory back to the system."""
        with self._changing:
            with self._lock:
                kept = [entry for i, entry in enumerate(self._entries) if self._is_needed(i, entry)]
                dropped = self._keep(kept)
            self._give_back(dropped)

    def close(self) -> None:
        """Free everything; nothing may be lent any more."""
        with self._changing:
            with self._lock:
                dropped = self._keep([])
            self._give_back(dropped)

    def _add(self, release: str, bundle: Bundle, *, place: int) -> None:
        with self._changing:
            shared = self._find_or_load(bundle)
            with self._lock:
                same = (
                    e for e in self._entries if e.held.release == release and e.shared is shared
                )
                entry = next(same, None) or _Entry(_held(release, bundle, shared.model), shared)
                entry.used = time.monotonic()
                if self._entries:
                    self._entries[0].used = entry.used
                others = [e for e in self._entries if e is not entry]
                self._entries = [*others[:place], entry, *others[place:]]

    def _find(self, release: str) -> _Entry[M]:
        found = (e for e in self._entries if release in ("", e.held.release))
        entry = next(found, None)
        if entry is not None:
            return entry
        if not self._entries:
            raise UnavailableError("No weights are loaded here yet; try again in a few seconds.")
        self.wanted = release
        names = ", ".join(repr(e.held.release) for e in self._entries)
        raise ReleaseError(
            f"Release {release!r} is not held here; leave it empty or ask for one of {names}."
        )

    def _find_or_load(self, bundle: Bundle) -> _Model[M]:
        for entry in self._entries:
            if self._is_same(entry.shared.bundle, bundle):
                return entry.shared
        began = time.monotonic()
        self._littered = True  # until it is served; a failure leaves parts of a model behind
        model = self._load(bundle)
        try:
            self._warm_up(model)
        except Exception:
            self._free(model)
            raise
        self._littered = False
        log.info(
            "loaded the %s of %s in %.1f s", self._part, bundle.release, time.monotonic() - began
        )
        return _Model(model, bundle)

    def _is_same(self, one: Bundle, other: Bundle) -> bool:
        """Whether the service's part is the same in two bundles: its files, and how they are run."""
        return all(
            self._identity(one, part) == self._identity(other, part)
            for part in parts_needed(other.preset, self._part)
        )

    @staticmethod
    def _identity(bundle: Bundle, part: str) -> tuple[object, ...]:
        return bundle.digests.get(part), getattr(bundle.preset, part), bundle.preset.labels

    def _is_needed(self, place: int, entry: _Entry[M]) -> bool:
        if place == 0 or entry.leases:
            return True
        costless = place <= COSTLESS and entry.shared is self._entries[0].shared
        return costless or time.monotonic() < entry.used + self._linger_s

    def _keep(self, kept: list[_Entry[M]]) -> list[M]:
        """Forget all entries but these; returns the models that none of them uses."""
        models = {id(entry.shared): entry.shared for entry in self._entries}
        for entry in kept:
            models.pop(id(entry.shared), None)
        self._entries = kept
        return [shared.model for shared in models.values()]

    def _give_back(self, models: list[M]) -> None:
        """Free models; the list is empty afterwards, so that nothing refers to them."""
        if not models and not self._littered:
            return
        while models:
            self._free(models.pop())
        self._littered = False
        gc.collect()
        # glibc keeps what was freed for itself; other C libraries have no such call, nor the need.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def _held(release: str, bundle: Bundle, model: M) -> Held[M]:
    return Held(
        model=model,
        release=release,
        digests=dict(bundle.digests),
        labels=bundle.preset.labels,
    )
