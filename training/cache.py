"""Files that keep what was computed, named after its inputs: other inputs, another name, so nothing stale is read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from training.engine.checkpoints import load_checkpoint, save_checkpoint

__all__ = ["fingerprint", "kept"]


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What ``make`` gives: read from ``file`` where an earlier run left it there, else made and left there."""
    state = load_checkpoint(file)
    if state is None:
        state = make()
        save_checkpoint(file, state)
    return state


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
            yield from _pieces(tensor.detach().cpu().numpy())
    elif isinstance(part, bytes):
        yield part
    elif isinstance(part, list | tuple):
        for inner in part:
            yield from _pieces(inner)
    else:
        yield json.dumps(part, sort_keys=True).encode()
