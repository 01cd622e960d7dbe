"""Waiting until the parts of a cluster are healthy."""

from __future__ import annotations

import re
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from vlmir.client import RestorationClient
from vlmir.errors import UnavailableError, VlmirError

__all__ = ["Watch", "answers_http", "tail", "tells_its_release"]

_PATIENCE_S = 5.0
_EVERY_S = 0.2
_TAIL_LINES = 20


def answers_http(address: str) -> bool:
    """Whether a page can be had."""
    try:
        with urllib.request.urlopen(address, timeout=_PATIENCE_S):
            return True
    except (urllib.error.URLError, OSError):
        return False


def tells_its_release(address: str) -> bool:
    """Whether the restorer at this address says which release it serves."""
    with RestorationClient(address) as client:
        try:
            return bool(client.info(timeout_s=_PATIENCE_S).release)
        except VlmirError:
            return False


def tail(file: Path) -> str:
    """The last lines of a log, indented."""
    lines = file.read_text("utf-8", "replace").splitlines() if file.is_file() else []
    return "\n".join(f"  | {line}" for line in lines[-_TAIL_LINES:]) or "  | (nothing)"


class Watch:
    """Waits for one part after the other; says what it waits for, and gives up when one cannot become healthy.

    Args:
        logs: Folder of a log for each part, and of honcho's.
        manager: The process that runs all; it ends when one of them ends early.
        within_s: Seconds for all together.
    """

    def __init__(self, logs: Path, manager: subprocess.Popen[bytes], within_s: float) -> None:
        self._logs, self._manager = logs, manager
        self._began = time.monotonic()
        self._end = self._began + within_s

    def wait(self, part: str, is_healthy: Callable[[], bool]) -> None:
        """Return when ``is_healthy``.

        Raises:
            UnavailableError: A part ended, or the time is over; the last lines of its log are in the message.
        """
        print(f"  {part:<10} …", end="", flush=True)
        try:
            while not is_healthy():
                self._check(part)
                time.sleep(_EVERY_S)
        except BaseException:
            print(" failed", flush=True)
            raise
        print(f" ready after {time.monotonic() - self._began:.0f} s", flush=True)

    def _check(self, part: str) -> None:
        if self._manager.poll() is not None:
            said = (self._logs / "honcho.log").read_text("utf-8", "replace")
            ended = re.search(r"(\w+)\.1 stopped \(rc=(-?\d+)\)", said)
            culprit = ended[1] if ended else "honcho"
            status = f" with status {ended[2]}" if ended else ""
            raise self._fault(culprit, f"{culprit} ended{status}")
        if time.monotonic() > self._end:
            raise self._fault(part, f"{part} did not become healthy in time")

    def _fault(self, part: str, what: str) -> UnavailableError:
        log = self._logs / f"{part}.log"
        return UnavailableError(f"{what}; the end of {log}:\n{tail(log)}")
