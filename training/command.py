"""What the commands of all stages share: arguments, config, tracking, workers."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

import torch

from training.config import CONFIGS, TrainingConfig, load_config
from training.engine.checkpoints import latest_of_each
from training.engine.compute import Compute
from training.engine.loop import Run
from training.engine.tracking import tracked, tracking_uri
from training.engine.workers import ALONE, FAULTS, Workers, run_in_workers
from vlmir.config import Preset, load_preset
from vlmir.errors import OptionError
from vlmir.options import PRECISIONS

__all__ = [
    "Stage",
    "add_common",
    "add_inputs",
    "check_batches",
    "load_model",
    "run_stage",
    "users_faults",
]


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What a stage is told by its command line."""

    config: TrainingConfig
    preset: Preset
    run: Run


def add_inputs(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that say which model is meant and what it reads."""
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
    what.add_argument(
        "--pool", type=Path, default=Path("runs/pool"), help="degraded pictures; made if not there"
    )
    what.add_argument("--threads", type=int, help="CPU threads; the machine's number if not given")


def add_common(parser: argparse.ArgumentParser, out: Path) -> None:
    """Add the arguments that every stage has."""
    add_inputs(parser)
    how = parser.add_argument_group("how it runs")
    how.add_argument("--seed", type=int, default=0, help="of everything random (default: 0)")
    how.add_argument("--out", type=Path, default=out, help=f"checkpoints and log (default: {out})")
    how.add_argument(
        "--resume", action="store_true", help="go on from the last checkpoint, to the last bit"
    )
    how.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes under Ray Train (default: 1)"
    )
    how.add_argument("--precision", choices=PRECISIONS, default="auto", help="of matrix products")
    how.add_argument("--untracked", action="store_true", help="record nothing in MLflow")


def load_model(arguments: argparse.Namespace) -> tuple[TrainingConfig, Preset]:
    """The config and the architecture that the arguments of :func:`add_inputs` name; sets the threads, too.

    Raises:
        OptionError: There is no such config, or a change of it is none.
        BundleError: A key of either is unknown, missing or of the wrong type.
    """
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    config = load_config(arguments.config or arguments.preset, arguments.set)
    return config, load_preset(config.preset)


@contextmanager
def users_faults(name: str) -> Iterator[None]:
    """Faults of the user in the block are told in one line by ``training.<name>`` and end with status 2."""
    try:
        yield
    except FAULTS as error:
        print(f"training.{name}: {error}", file=sys.stderr)
        sys.exit(2)


def run_stage(arguments: argparse.Namespace, name: str) -> None:
    """Run ``training.<name>.work`` here or in several workers; faults of the user end with status 2.

    It is found by name: workers import it, where the module that was started is called ``__main__``.
    """
    with users_faults(name):
        begun = list(latest_of_each(arguments.out).values())
        if begun and not arguments.resume:
            raise OptionError(
                f"{begun[-1]} is of an earlier run: go on with --resume, or name another --out."
            )
        if arguments.workers < 1:
            raise OptionError(f"--workers must be at least 1, not {arguments.workers}.")
        if arguments.workers == 1:
            _run(arguments, name, tracking_uri(), ALONE)
            return
        config, _ = load_model(arguments)
        check_batches(config, name, arguments.workers)
        # Those that replace lost workers resume.
        resuming = argparse.Namespace(**{**vars(arguments), "resume": True})
        work = partial(_run, resuming, name, tracking_uri())
        run_in_workers(arguments.workers, work, arguments.out)


def check_batches(config: TrainingConfig, name: str, workers: int) -> None:
    """Refuse a stage's batches that workers cannot share evenly.

    Args:
        config: All stages'.
        name: The stage's: ``pretrain``, ``stage1`` or ``stage2``.
        workers: How many there are.

    Raises:
        OptionError: A batch is no multiple of their number; the message names it.
    """
    one, two = config.stage1, config.stage2
    loops = {"stage1.stem": one.stem, "stage1.joint": one.joint, "stage2.loop": two.loop}
    if config.pretrain is not None:
        loops |= {"pretrain.clip": config.pretrain.clip, "pretrain.blip": config.pretrain.blip}
    batches = {f"{key}.batch": loop.batch for key, loop in loops.items() if loop.steps}
    batches |= {f"stage2.phases[{i}].batch": phase.batch for i, phase in enumerate(two.phases)}
    if one.joint.steps:  # each worker takes as many captioned photos as pictures of the pool
        batches["half of stage1.joint.batch"] = one.joint.batch // 2
    for key, batch in batches.items():
        if f"{name}." in key and batch % workers:
            raise OptionError(f"{key}, {batch}, cannot be shared evenly by {workers} workers.")


def _run(arguments: argparse.Namespace, name: str, server: str, workers: Workers) -> None:
    """A stage's work in this process, recorded on a tracking server."""
    config, preset = load_model(arguments)
    torch.manual_seed(arguments.seed)
    stage = Stage(
        config=config,
        preset=preset,
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
    params = {**dataclasses.asdict(config), "seed": arguments.seed, "workers": workers.count}
    with tracked(
        Path(config.preset).stem,
        name,
        arguments.out,
        params=params,
        resumes=bool(latest_of_each(arguments.out)),
        server=server,
    ) as tracker:
        run = dataclasses.replace(stage.run, tracker=tracker)
        work(arguments, dataclasses.replace(stage, run=run))
        for file in sorted(arguments.out.glob("*.jsonl")):
            tracker.files(file, "log")
        for loop, checkpoint in latest_of_each(arguments.out).items():
            tracker.files(checkpoint, f"checkpoints/{loop}")
