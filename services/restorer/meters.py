"""What is counted of restorations, besides their calls."""

from __future__ import annotations

from collections.abc import Generator

from services.common.telemetry.meters import SECONDS, Instruments
from vlmir.pipeline import Progress, Restoration

__all__ = ["RestorationMeters"]


class RestorationMeters:
    """Counts pictures that are restored, and what their stages take; a result that is there already is none.

    Args:
        instruments: What it counts with.
    """

    def __init__(self, instruments: Instruments) -> None:
        self._restorations = instruments.counter(
            "restorations_total",
            "Pictures restored; degraded ones went without a stage that could not be reached.",
            ("degraded",),
        )
        self._stages = instruments.histogram(
            "stage_seconds", "Seconds that a picture's stages took.", ("stage",), SECONDS
        )

    def counted(
        self, stream: Generator[Progress, None, Restoration]
    ) -> Generator[Progress, None, Restoration]:
        """The same restoration, counted when it is done."""
        restoration = yield from stream
        self._restorations(1, str(restoration.degraded).lower())
        for stage, spent_ms in restoration.report.milliseconds.items():
            self._stages(spent_ms / 1e3, stage)
        return restoration
