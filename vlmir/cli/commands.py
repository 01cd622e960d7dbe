"""The commands. Each plans its files first and imports the networks only when there is work."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlmir.cli.batch import Tick, Work, describe_error, run_batch
from vlmir.cli.engines import Engine, LocalEngine, ServerEngine, connect
from vlmir.cli.files import Job, find_images, plan_jobs
from vlmir.errors import OptionError

if TYPE_CHECKING:
    from vlmir.client import ServerInfo
    from vlmir.image import Limits
    from vlmir.options import Precision
    from vlmir.pipeline import Inspection, Restorer

__all__ = ["degrade", "info", "inspect", "load_restorer", "restore"]

_PASSED_ON = (
    "steps",
    "solver",
    "seed",
    "realism",
    "ensemble",
    "caption",
    "degradation",
    "strength",
    "tile",
    "quality",
    "lossless",
)
"""Arguments that are options of the library under the same name."""

_SHOWN = 0.01
"""Degradations less probable than this are not printed (but stand in the JSON)."""


def load_restorer(
    bundle: str, limits: Limits, *, device: str = "auto", precision: Precision = "auto"
) -> Restorer:
    """The restorer with its weights; see :meth:`vlmir.pipeline.Restorer.load`.

    Raises:
        BundleError: There is no such bundle, or it is damaged.
        OptionError: The device cannot be used.
    """
    from vlmir.pipeline import Restorer

    return Restorer.load(bundle, limits=limits, device=device, precision=precision)


def _limits(arguments: Namespace) -> Limits:
    from vlmir.image import Limits

    given = {"max_bytes": arguments.max_bytes, "max_pixels": arguments.max_pixels}
    return Limits(**{name: value for name, value in given.items() if value is not None})


def restore(arguments: Namespace) -> int:
    """``vlmir restore``; returns how many pictures failed.

    Raises:
        OptionError: The arguments contradict each other or the files.
        BundleError: The weights cannot be loaded.
        UnavailableError: The server does not answer.
    """
    if arguments.server is None:
        return _run(
            arguments,
            lambda: _restoring(
                arguments,
                lambda: LocalEngine(
                    load_restorer(
                        arguments.bundle,
                        _limits(arguments),
                        device=arguments.device or "auto",
                        precision=arguments.precision or "auto",
                    )
                ),
            ),
        )
    if arguments.max_bytes or arguments.max_pixels:
        raise OptionError("With --server, its own limits hold; leave --max-bytes and --max-pixels.")
    if arguments.device or arguments.precision:
        raise OptionError(
            "With --server, it computes as it was set up; leave --device and --precision."
        )
    with closing(connect(arguments)) as client:
        return _run(arguments, lambda: _restoring(arguments, lambda: ServerEngine(client)))


def _restoring(arguments: Namespace, start: Callable[[], Engine]) -> Work:
    from vlmir.pipeline import RestoreOptions

    chosen = {name: getattr(arguments, name) for name in _PASSED_ON}
    chosen["use_caption"] = not arguments.no_caption
    RestoreOptions(**chosen)  # a contradiction shows before the weights are read
    engine = start()
    engine.check(RestoreOptions(**chosen))  # what only the weights can tell

    def work(job: Job, tick: Tick) -> tuple[bytes, Mapping[str, Any]]:
        return engine.restore(job, RestoreOptions(**chosen, format=job.format), tick)

    return work


def degrade(arguments: Namespace) -> int:
    """``vlmir degrade``; returns how many pictures failed.

    Raises:
        OptionError: The arguments contradict each other or the files.
    """
    if len(set(arguments.labels)) != len(arguments.labels):
        raise OptionError("A --label was given twice; name each degradation once.")
    return _run(arguments, lambda: _degrading(arguments))


def _degrading(arguments: Namespace) -> Work:
    from vlmir.degradations import mixture
    from vlmir.image import decode, encode

    limits = _limits(arguments)
    recipe = {"labels": arguments.labels, "strength": arguments.strength, "seed": arguments.seed}

    def work(job: Job, tick: Tick) -> tuple[bytes, Mapping[str, Any]]:
        with job.source.open("rb") as file:
            image = decode(file.read(limits.max_bytes + 1), limits)
        degraded = image.with_pixels(mixture(image.pixels, **recipe))
        data = encode(
            degraded, format=job.format, quality=arguments.quality, lossless=arguments.lossless
        )
        return data, recipe

    return work


def _run(arguments: Namespace, prepare: Callable[[], Work]) -> int:
    jobs = plan_jobs(
        arguments.inputs,
        arguments.output,
        format=arguments.format,
        lossless=arguments.lossless,
    )
    return run_batch(
        jobs,
        prepare,
        overwrite=arguments.overwrite,
        to_stdout=arguments.json,
        report=arguments.report,
    )


def info(arguments: Namespace) -> int:
    """``vlmir info``; returns 0, since a failure raises.

    Raises:
        OptionError: The arguments contradict each other.
        UnavailableError: The server does not answer.
    """
    with closing(connect(arguments)) as client:
        told = client.info(timeout_s=arguments.timeout)
    print(json.dumps(asdict(told)) if arguments.json else _info_text(told))
    return 0


def _info_text(told: ServerInfo) -> str:
    values = {field.name: getattr(told, field.name) for field in fields(told)}
    values["queue"] = f"{values.pop('queue_depth')} of {values.pop('queue_capacity')}"
    digests = values.pop("digests")
    values |= {f"sha256 of {part}": digest for part, digest in sorted(digests.items())}
    lines = []
    for name, value in values.items():
        if isinstance(value, bool):
            value = "yes" if value else "no"
        shown = ", ".join(value) if isinstance(value, tuple) else value
        if shown != "":
            lines.append(f"{name.replace('_', ' ') + ':':<20} {shown}")
    return "\n".join(lines)


def inspect(arguments: Namespace) -> int:
    """``vlmir inspect``; returns how many pictures could not be read.

    Raises:
        OptionError: An input is missing.
        BundleError: The weights cannot be loaded.
    """
    paths = [path for path, _ in find_images(arguments.inputs)]
    restorer = load_restorer(arguments.bundle, _limits(arguments))
    failed = 0
    for path in paths:
        try:
            inspection = restorer.inspect(path)
        except Exception as error:  # whatever one picture meets, the others still get their turn
            failed += 1
            print(f"{path}: {describe_error(error)}", file=sys.stderr)
            if arguments.json:
                print(json.dumps({"input": str(path), "error": describe_error(error)}), flush=True)
        else:
            show = _as_json if arguments.json else _as_text
            print(show(path, inspection), flush=True)
    return failed


def _as_json(path: Path, inspection: Inspection) -> str:
    return json.dumps({"input": str(path), **asdict(inspection)})


def _as_text(path: Path, inspection: Inspection) -> str:
    ranked = sorted(inspection.degradations.items(), key=lambda item: -item[1])
    likely = [f"{label} {share:.0%}" for label, share in ranked if share >= _SHOWN]
    caption = "(these weights give none)" if inspection.caption is None else inspection.caption
    return (
        f"{path} ({inspection.width}×{inspection.height})\n"
        f"  caption:     {caption}\n"
        f"  degradation: {', '.join(likely)}"
    )
