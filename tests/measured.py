"""Bundles with invented numbers, to register."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from training.table import identity, write_into_bundle
from vlmir.bundle import Bundle, digest_of, load_bundle

__all__ = ["BENCH", "invented", "measured_bundle"]

BENCH = "CBSD68 σ=50, one-step"


def invented(psnr: float, accuracy: float = 0.95) -> dict[str, Any]:
    """What an evaluation of four pictures could have said."""
    bench = {
        "input_psnr": 15.0,
        "psnr": psnr,
        "pictures": 4,
        "seeds": 1,
        "inputs": "0123456789ab",
        "per_picture": {"psnr": [psnr - 2, psnr - 1, psnr + 1, psnr + 2]},
    }
    return {BENCH: bench, "labels": {"accuracy": accuracy, "pictures": 748}}


def measured_bundle(
    source: Path,
    folder: Path,
    *,
    psnr: float = 26.0,
    accuracy: float = 0.95,
    changed: tuple[str, ...] = (),
) -> Bundle:
    """A copy of ``source`` with numbers and evaluation.json; weights of the ``changed`` parts differ by the numbers."""
    shutil.copytree(source, folder)
    (folder / "MODEL_CARD.md").write_text("# Small\n\nA card.\n")
    about = json.loads((folder / "bundle.json").read_text("utf-8"))
    about["release"] = folder.name
    for part in changed:
        file = folder / part / "model.safetensors"
        state = load_file(file)
        name = next(name for name, tensor in state.items() if tensor.is_floating_point())
        state[name] += psnr / 100
        save_file(state, file)
        about["digests"][part] = digest_of(folder, part)
    (folder / "bundle.json").write_text(json.dumps(about))
    results = {"about": {**identity(load_bundle(folder)), "machine": "a machine"}}
    results |= invented(psnr, accuracy)
    (folder / "evaluation.json").write_text(json.dumps(results))
    write_into_bundle(folder, results)
    return load_bundle(folder)
