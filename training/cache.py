"""Names for files that keep what was computed: other inputs, another name, so nothing stale is ever read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator

import numpy as np
from torch import nn

__all__ = ["fingerprint"]


def fingerprint(*parts: object) -> str:
    """Twelve hexadecimal digits that change with any part.

    Args:
        *parts: Arrays, networks (their weights count), bytes, lists of these, or JSON-ready data.
    """
    digest = hashlib.sha256()
    for part in parts:
        for piece in _pieces(part):
            digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()[:12]


def _pieces(part: object) -> Iterator[bytes]:
    if isinstance(part, np.ndarray):
        yield repr((part.shape, part.dtype.str)).encode()
        yield np.ascontiguousarray(part).tobytes()
    elif isinstance(part, nn.Module):
        for name, tensor in part.state_dict().items():
            yield name.encode()
            yield from _pieces(tensor.detach().numpy())
    elif isinstance(part, bytes):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _pieces(inner)
    else:
        yield json.dumps(part, sort_keys=True).encode()
