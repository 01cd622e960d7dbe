"""How well the embedder names what is wrong with a picture."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import track

from training.measure.benches import held_out_labels
from training.measure.intervals import interval
from vlmir.bundle import load_bundle
from vlmir.compute import Compute
from vlmir.image.color import to_float
from vlmir.parts import build_embedder

__all__ = ["measure_labels"]


def measure_labels(bundle: str, folder: Path, limit: int | None) -> dict[str, Any]:
    """Share of right degradation labels on held-out photos, and which are taken for which.

    Args:
        bundle: Name or folder of the weights.
        folder: The folder of benchmarks.
        limit: Only so many photos; None: all.

    Returns:
        ``accuracy`` (0…1) and ``pictures`` over all; each of the bundle's labels with its own accuracy; ``ci95`` of
        ``accuracy``, over photos, since the copies of one photo are not independent; ``confusion``: true label →
        judged label → pictures.
    """
    embedder = build_embedder(load_bundle(bundle), Compute.choose("cpu").dtype)
    labels = embedder.labels
    confusion = {truth: dict.fromkeys(labels, 0) for truth in labels}
    hits = []
    pictures = list(islice(held_out_labels(folder, labels), limit and limit * len(labels)))
    for truth, picture in track(pictures, "labels"):
        judged = embedder.embed_image(to_float(picture)).degradation
        confusion[truth][judged] += 1
        hits.append(judged == truth)
    by_photo = np.reshape(hits, (-1, len(labels))).mean(axis=1).tolist()
    by_label = {label: row[label] / sum(row.values()) for label, row in confusion.items()}
    return {
        "accuracy": float(np.mean(hits)),
        "pictures": len(hits),
        **by_label,
        "ci95": {"accuracy": list(interval(by_photo))},
        "confusion": confusion,
    }
