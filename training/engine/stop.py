"""Stopping a long loop politely: SIGTERM and Ctrl-C ask, the loop answers after its step."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType

__all__ = ["Stop"]


class Stop:
    """While entered, notes SIGTERM and SIGINT instead of dying of them; a second SIGINT interrupts at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        """The signal that came, or None."""

    def __enter__(self) -> Stop:
        self._main = threading.current_thread() is threading.main_thread()
        if self._main:  # elsewhere Python lets nobody handle signals
            self._before = {
                s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)
            }
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._main:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    @property
    def status(self) -> int:
        """The exit status of a process that was stopped: 0 after SIGTERM, 130 after Ctrl-C."""
        return 0 if self.signal == signal.SIGTERM else 128 + signal.SIGINT

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
