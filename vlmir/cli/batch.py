"""Running a command over many pictures: skip what is done, survive what fails, report each."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from vlmir.cli.files import Job, write_atomically
from vlmir.cli.progress import Display
from vlmir.errors import OptionError, VlmirError

__all__ = ["Tick", "Work", "describe_error", "run_batch"]

Tick = Callable[[float], None]
"""Told the share of a picture that is done, 0…1."""

Work = Callable[[Job, Tick], tuple[bytes, Mapping[str, Any]]]
"""Makes the output file of a job, and what is to be reported of it."""


def run_batch(
    jobs: Sequence[Job],
    prepare: Callable[[], Work],
    *,
    overwrite: bool,
    to_stdout: bool,
    report: Path | None,
) -> int:
    """Do all jobs; one that fails does not stop the others.

    Every picture gives one JSON line with ``input``, ``output`` and ``status``, and for status
    ``done`` with ``seconds`` and ``report``, for ``failed`` with ``error``, for ``skipped`` alone.

    Args:
        jobs: What to do, in this order.
        prepare: Makes the worker; called only where there is something to do.
        overwrite: Do jobs again whose output exists.
        to_stdout: Write the JSON lines to stdout.
        report: Append the JSON lines to this file.

    Returns:
        How many failed.

    Raises:
        OptionError: ``report`` cannot be written.
        VlmirError: ``prepare`` failed.
    """
    with ExitStack() as stack:
        sinks = [sys.stdout] if to_stdout else []
        if report:
            sinks.append(stack.enter_context(_open_report(report)))
        pending = []
        for job in jobs:
            if overwrite or not job.target.exists():
                pending.append(job)
            else:
                _emit(sinks, job, status="skipped")
        display = Display(total=len(pending), skipped=len(jobs) - len(pending))
        if not pending:
            display.summarise()
            return 0
        work = prepare()
        stack.enter_context(display)
        return sum(not _do(job, work, display, sinks) for job in pending)


def _do(job: Job, work: Work, display: Display, sinks: Sequence[TextIO]) -> bool:
    start = time.perf_counter()
    display.begin(str(job.source))
    try:
        data, report = work(job, display.tick)
        write_atomically(job.target, data)
    except Exception as error:  # whatever one picture meets, the others still get their turn
        display.failed(describe_error(error))
        _emit(sinks, job, status="failed", error=describe_error(error))
        return False
    seconds = time.perf_counter() - start
    display.done(str(job.target), seconds)
    _emit(sinks, job, status="done", seconds=round(seconds, 3), report=report)
    return True


def describe_error(error: Exception) -> str:
    """One line for people; an error not raised on purpose is named by its type."""
    text = " ".join(str(error).split())
    if isinstance(error, VlmirError | OSError):
        return text
    return f"{type(error).__name__}: {text}"


def _open_report(path: Path) -> TextIO:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a", encoding="utf-8")
    except OSError as error:
        raise OptionError(f"Cannot write the report {path}: {error}.") from error


def _emit(sinks: Sequence[TextIO], job: Job, **fields: object) -> None:
    line = json.dumps({"input": str(job.source), "output": str(job.target), **fields})
    for sink in sinks:
        print(line, file=sink, flush=True)
