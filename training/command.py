"""What the commands of all stages share: arguments, config, tracking, workers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from training.checkpoints import Checkpoints
from training.compute import PRECISIONS, Compute
from training.config import CONFIGS, TrainingConfig, load_config
from training.loop import Run
from training.pretrained import PRETRAIN
from training.tracking import tracked
from training.workers import ALONE, Workers, run_in_workers
from vlmir.config import Preset, load_preset
from vlmir.errors import OptionError, VlmirError

__all__ = ["Stage", "add_common", "run_stage"]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage is told by its command line."""

    config: TrainingConfig
    preset: Preset
    run: Run


def add_common(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add the arguments that every stage has."""
    what = parser.add_argument_group("what is trained")
    what.add_argument(
        "--preset", choices=CONFIGS, default="tiny", help="architecture and its shipped config"
    )
    what.add_argument("--config", type=Path, metavar="FILE", help="another config (TOML)")
    what.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change one value of the config, such as stage2.loop.steps=500; may be repeated",
    )
    what.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="FOLDER",
        help="clean photos, pairs as <label>/{LQ,GT}, or captioned photos: seen from the layout",
    )
    what.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    how = parser.add_argument_group("how it runs")
    how.add_argument("--out", type=Path, default=out, help=f"checkpoints and log (default: {out})")
    how.add_argument(
        "--pool", type=Path, default=Path("runs/pool"), help="degraded pictures; made if not there"
    )
    how.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, to the last bit"
    )
    how.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes under Ray Train (default: 1)"
    )
    how.add_argument("--precision", choices=PRECISIONS, default="auto", help="of matrix products")
    how.add_argument("--threads", type=int, help="CPU threads; the machine's number if not given")
    how.add_argument("--untracked", action="store_true", help="record nothing in MLflow")


def run_stage(arguments: argparse.Namespace, name: str) -> None:
    """Run ``training.<name>.work`` here or in several workers; faults of the user end with status 2.

    It is found by name: workers import it, where the module that was started is called ``__main__``.
    """
    try:
        if arguments.workers > 1:
            _run_shared(arguments, name)
        else:
            _run(arguments, name, ALONE)
    except (VlmirError, FileNotFoundError, ValueError) as error:
        print(f"training.{name}: {error}", file=sys.stderr)
        sys.exit(2)


def _run_shared(arguments: argparse.Namespace, name: str) -> None:
    """Run in several workers; those that replace lost ones resume, so the question is asked here."""
    begun = sorted(arguments.out.glob("*/step-*.pt"))
    if begun and not arguments.resume:
        raise OptionError(
            f"{begun[-1]} is of an earlier run: go on with --resume, or name another --out."
        )
    resuming = argparse.Namespace(**{**vars(arguments), "resume": True})
    run_in_workers(arguments.workers, partial(_run, resuming, name), arguments.out)


def _run(arguments: argparse.Namespace, name: str, workers: Workers) -> None:
    """A stage's work in this process."""
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    config = load_config(arguments.config or arguments.preset, arguments.set)
    stage = Stage(
        config=config,
        preset=load_preset(config.preset),
        run=Run(
            out=arguments.out,
            resume=arguments.resume,
            seed=arguments.seed,
            compute=Compute(arguments.precision),
            workers=workers,
        ),
    )
    work = import_module(f"training.{name}").work
    if arguments.untracked or workers.rank > 0:
        work(arguments, stage)
        return
    built_on = {"captioner": getattr(arguments, "pretrained", None) or PRETRAIN}
    if hasattr(arguments, "stage1"):
        built_on["embedder"] = arguments.stage1
    params = {**dataclasses.asdict(config), "seed": arguments.seed, "workers": workers.count}
    with tracked(
        Path(config.preset).stem, name, arguments.out, params=params, built_on=built_on
    ) as tracker:
        run = dataclasses.replace(stage.run, tracker=tracker)
        work(arguments, dataclasses.replace(stage, run=run))
        for file in sorted(arguments.out.glob("*.jsonl")):
            tracker.files(file, "log")
        for checkpoints in sorted({f.parent for f in arguments.out.glob("*/step-*.pt")}):
            tracker.files(Checkpoints(checkpoints).files[-1], f"checkpoints/{checkpoints.name}")
