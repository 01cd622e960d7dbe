"""What each stage of training costs, from the logs of its runs."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

from training.tables.cells import grid

__all__ = ["markdown"]

HEADER = ("loop", "steps", "steps a second", "time spent waiting for batches", "peak memory")


def markdown(folders: Iterable[Path]) -> str:
    """A table of the stages whose ``metrics.jsonl`` lie in ``folders``, a row for each loop.

    Steps a second are the median over the reports, so that compiling at the start and validations do not count. Peak
    memory is the whole process's, with the loops before it.

    Raises:
        FileNotFoundError: A folder holds no log.
    """
    return "\n".join(grid(HEADER, [row for folder in folders for row in _rows(folder)]))


def _rows(folder: Path) -> Iterator[list[str]]:
    file = folder / "metrics.jsonl"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: name the folders of stages that ran.")
    reports = defaultdict[str, list[dict[str, Any]]](list)
    for line in file.read_text("utf-8").splitlines():
        report = json.loads(line)
        reports[report["stage"]].append(report)
    for stage, own in reports.items():
        speeds, waits, peaks = (
            [report[key] for report in own if key in report]
            for key in ("steps_per_s", "waiting", "peak_memory_mib")
        )
        if not speeds:
            continue
        peak = f"{max(peaks) / 1024:.1f} GiB" if peaks else "–"
        steps = max(report["step"] for report in own)
        yield [stage, f"{steps}", f"{median(speeds):.2f}", f"{100 * median(waits):.2g} %", peak]
