"""The gate that a candidate passes to become champion: what was measured of both, compared line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from training.measure.intervals import interval
from training.measure.restoration import SETTINGS

__all__ = ["TOLERANCE_DB", "Check", "Measured", "benches", "judge"]

TOLERANCE_DB = 0.05
"""PSNR that a bench may lose: what another machine's arithmetic and rounding cannot explain."""

LABEL_TOLERANCE = 0.005
"""Share of right degradation labels that may be lost: half a point, four of the 748 held-out pictures."""

SAME_INPUT_DB = 0.001
"""Two benches whose damaged pictures have the same PSNR up to this are of the same pictures."""

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """One line of the gate."""

    ok: bool
    text: str

    def __str__(self) -> str:
        return f"{'ok' if self.ok else 'fails'}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of one version."""

    metrics: Numbers = field(default_factory=dict)
    """The metrics of its bundle.json."""
    evaluation: Numbers = field(default_factory=dict)
    """The same with the numbers of each picture; may be empty."""


def benches(metrics: Numbers) -> list[str]:
    """The benches among the metrics: ``<name>, <setting>``."""
    return [name for name in metrics if name.rpartition(", ")[2] in SETTINGS]


def judge(
    candidate: Measured, champion: Measured | None, tolerance_db: float = TOLERANCE_DB
) -> list[Check]:
    """Compare a candidate with the champion.

    Args:
        candidate: Wants to be served.
        champion: Is served; None: nothing is. Without it, or its numbers, it is enough to have been measured.
        tolerance_db: PSNR that each bench of the champion may lose, at least 0.

    Returns:
        One line for each question, passed or not.
    """
    names = benches(champion.metrics) if champion else []
    if champion is None or not names:
        count = len(benches(candidate.metrics))
        text = f"no champion with numbers; benches that the candidate was measured on: {count}"
        return [Check(count > 0, text)]
    return [
        *(_bench(name, candidate, champion, tolerance_db) for name in names),
        *_labels(candidate.metrics, champion.metrics),
        _protocol(candidate.metrics, champion.metrics),
    ]


def _bench(name: str, candidate: Measured, champion: Measured, tolerance_db: float) -> Check:
    before, now = champion.metrics[name], candidate.metrics.get(name)
    if now is None:
        return Check(False, f"{name}: the candidate was not measured")
    gain = now["psnr"] - before["psnr"]
    text = f"{name}: {before['psnr']:.2f} → {now['psnr']:.2f} dB ({gain:+.2f}"
    gains = _paired(name, candidate.evaluation, champion.evaluation)
    if gains:
        low, high = interval(gains)
        text += f", 95 % interval over pictures {low:+.2f}…{high:+.2f}"
    # Written so that a number that is not one does not pass.
    ok = gain >= -tolerance_db
    return Check(ok, f"{text})" if ok else f"{text}; at most −{tolerance_db:g} is let through)")


def _paired(name: str, candidate: Numbers, champion: Numbers) -> list[float]:
    """The gain in PSNR of each picture, where both were measured on the same and the numbers were kept."""
    now, before = candidate.get(name, {}), champion.get(name, {})
    kept = {"per_picture", "inputs"} <= now.keys() & before.keys()
    if not kept or now["inputs"] != before["inputs"]:
        return []
    pair = (np.asarray(side["per_picture"]["psnr"]) for side in (now, before))
    return list(np.subtract(*pair))


def _labels(candidate: Numbers, champion: Numbers) -> Iterator[Check]:
    if "labels" not in champion:
        return
    if "labels" not in candidate:
        yield Check(False, "degradation labels: the candidate was not measured")
        return
    before, now = champion["labels"]["accuracy"], candidate["labels"]["accuracy"]
    text = f"degradation labels: {before:.1%} → {now:.1%} right"
    yield Check(now >= before - LABEL_TOLERANCE, text)


def _protocol(candidate: Numbers, champion: Numbers) -> Check:
    """Whether the same was measured of both: the same pictures, as many samples."""
    names = [*benches(champion), *(["labels"] if "labels" in champion else [])]
    both = [name for name in names if name in candidate]
    wrong = [
        f"{name} ({reason})"
        for name in both
        if (reason := _difference(candidate[name], champion[name]))
    ]
    if wrong:
        return Check(False, f"measured otherwise than the champion: {', '.join(wrong)}")
    return Check(True, f"measured on the same pictures in {len(both)} of {len(names)} measurements")


def _difference(now: Numbers, before: Numbers) -> str | None:
    """What differs between two measurements; older ones say less of themselves."""
    for key, what in (("pictures", "pictures"), ("seeds", "samples of each picture")):
        if key in now and key in before and now[key] != before[key]:
            return f"{now[key]} instead of {before[key]} {what}"
    if "inputs" in now and "inputs" in before:
        return "other pictures" if now["inputs"] != before["inputs"] else None
    if "input_psnr" in before and abs(now["input_psnr"] - before["input_psnr"]) > SAME_INPUT_DB:
        return "other pictures"
    return None
