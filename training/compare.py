"""Objectives side by side: ``python -m training.compare --data photos/ pairs/ --bench FOLDER --stage1 BUNDLE``.

Trains the sampler a short while towards each objective, from the same random weights on the same crops, and measures
each the same way: one evaluation, and twenty stochastic steps, on a few pictures of every bench. The table goes into
``training/RESULTS.md``. What is there already is not repeated.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import torch

from training import stage2
from training.command import Stage
from training.config import load_config
from training.engine.compute import Compute
from training.engine.loop import Run
from training.export import export
from training.measure.benches import BENCHES
from training.measure.restoration import SETTINGS, Judges, measure_bench
from training.table import write_into_markdown
from training.tables.cells import grid
from vlmir.config import load_preset
from vlmir.diffusion import OBJECTIVES
from vlmir.pipeline import Restorer

__all__ = ["VARIANTS", "Variant", "main"]


class Variant(NamedTuple):
    """One way to train."""

    objective: str
    norm: str
    at_T: float
    """Share of the draws at t = T."""


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "x₀, root mean square, half at T": Variant("x0", "rms", 0.5),
        "x₀, mean absolute, half at T": Variant("x0", "l1", 0.5),
        "x₀, mean square, half at T": Variant("x0", "l2", 0.5),
        "x₀, root mean square, t uniform": Variant("x0", "rms", 0.0),
        "v, mean square, t uniform": Variant("v", "l2", 0.0),
        "noise, mean absolute, t uniform": Variant("noise", "l1", 0.0),
        "maximum likelihood (the paper's), t uniform": Variant("ml", "l1", 0.0),
    }
)
"""What is compared."""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.compare", description="Train towards each objective and compare."
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="as for stage 2")
    parser.add_argument("--bench", type=Path, required=True, help="folder of the benchmarks")
    parser.add_argument("--stage1", type=Path, required=True, help="the embedder, or a bundle")
    parser.add_argument("--pool", type=Path, default=Path("runs/pool"))
    parser.add_argument("--out", type=Path, default=Path("runs/compare"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--pictures", type=int, default=4, help="of each bench")
    parser.add_argument("--no-compile", action="store_true", help="run the networks uncompiled")
    parser.add_argument("--into", type=Path, help="Markdown file to put the table into")
    arguments = parser.parse_args()
    results = {
        title: _result(arguments, arguments.out / str(number), variant)
        for number, (title, variant) in enumerate(VARIANTS.items())
    }
    text = "\n".join(_table(results, arguments.steps, arguments.pictures))
    print(text)
    if arguments.into:
        write_into_markdown(arguments.into, text, "objectives")


def _result(arguments: argparse.Namespace, out: Path, variant: Variant) -> dict[str, Any]:
    """Train and measure one, or read what was measured."""
    file = out / "result.json"
    if file.is_file():
        return dict(json.loads(file.read_text("utf-8")))
    _train(arguments, out, variant)
    result = _measure(Restorer.load(str(out / "bundle")), arguments)
    file.write_text(json.dumps(result, indent=2), encoding="utf-8")
    return result


def _train(arguments: argparse.Namespace, out: Path, variant: Variant) -> None:
    """Make ``out/bundle``."""
    preset = load_preset("tiny")
    prediction = cast('Literal["noise", "x0", "v"]', OBJECTIVES[variant.objective])
    sampler = dataclasses.replace(preset.sampler, prediction=prediction)
    preset = dataclasses.replace(preset, sampler=sampler)
    changes = {
        "objective": variant.objective,
        "norm": variant.norm,
        "at_T": variant.at_T,
        "size": 96,
        "phases": [],
        "loop.batch": 8,
        "loop.steps": arguments.steps,
        "loop.validate_every": 0,
    }
    config = load_config("tiny", [f"stage2.{key}={value}" for key, value in changes.items()])
    run = Run(out=out, resume=True, compute=Compute())
    torch.manual_seed(0)  # the same random weights for all
    nothing = dict.fromkeys(("pretrained", "init", "adapter", "entries"))
    stage = argparse.Namespace(**vars(arguments), **nothing, blind=False)
    stage2.work(stage, Stage(config=config, preset=preset, run=run))
    parts = {"pretrained": None, "stage1": arguments.stage1, "stage2": out}
    export(out / "bundle", preset=preset, release=out.name, **parts)


def _measure(restorer: Restorer, arguments: argparse.Namespace) -> dict[str, float]:
    """PSNR in dB by bench and setting."""
    return {
        f"{bench}, {setting}": measure_bench(
            restorer,
            list(islice(pairs(arguments.bench), arguments.pictures)),
            SETTINGS[setting],
            Judges(),
            title=f"{bench}, {setting}",
        )["psnr"]
        for bench, pairs in BENCHES.items()
        for setting in ("one-step", "stochastic")
    }


def _table(results: Mapping[str, Mapping[str, float]], steps: int, pictures: int) -> list[str]:
    header = ["objective, norm of the error, times", *BENCHES]
    rows = [
        [
            title,
            *(
                f"{result[f'{b}, one-step']:.2f} / {result[f'{b}, stochastic']:.2f}"
                for b in BENCHES
            ),
        ]
        for title, result in results.items()
    ]
    said = (
        f"{steps} steps of 8 crops of 96² from the same random weights; PSNR in dB of one evaluation / of 20 "
        f"stochastic steps, mean over the first {pictures} pictures of each bench."
    )
    return [said, "", *grid(header, rows)]


if __name__ == "__main__":
    main()
