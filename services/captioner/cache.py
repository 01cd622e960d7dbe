"""Captions that are known already."""

from __future__ import annotations

from collections import OrderedDict

__all__ = ["CaptionCache"]


class CaptionCache:
    """Remembers the captions asked for last. For one thread.

    Args:
        size: Captions kept; 0 keeps none.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._captions: OrderedDict[tuple[str, bytes], str] = OrderedDict()
        self.hits = 0
        """Captions that were known."""
        self.misses = 0
        """Captions that were not."""

    def get(self, release: str, digest: bytes) -> str | None:
        """The caption that a release gave to a picture; None if it is not known."""
        caption = self._captions.get((release, digest))
        if caption is None:
            self.misses += 1
            return None
        self.hits += 1
        self._captions.move_to_end((release, digest))
        return caption

    def put(self, release: str, digest: bytes, caption: str) -> None:
        """Remember a caption, and forget the one that was asked for longest ago if there is no room."""
        self._captions[release, digest] = caption
        self._captions.move_to_end((release, digest))
        while len(self._captions) > self._size:
            self._captions.popitem(last=False)
