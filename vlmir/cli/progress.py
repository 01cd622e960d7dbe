"""Progress on stderr: a bar with the time left on a terminal, a line for each picture elsewhere."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

__all__ = ["Display"]

# The time left is judged by the last ten minutes: pictures differ in size.
_ESTIMATE_S = 600.0


class Display:
    """A context manager that shows how far a batch has come.

    Args:
        total: Pictures to do.
        skipped: Pictures left out because they are done.
        console: Where to write; None: stderr.
    """

    def __init__(self, *, total: int, skipped: int, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._total, self._skipped = total, skipped
        self._finished = self._failed = 0
        self._name = ""
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.fields[pictures]}"),
            TimeElapsedColumn(),
            TextColumn("elapsed,"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
            speed_estimate_period=_ESTIMATE_S,
        )
        self._task = self._bar.add_task("", total=total, pictures="")

    def __enter__(self) -> Display:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Stop the bar and sum up."""
        self._bar.stop()
        self.summarise()

    def summarise(self) -> None:
        """Say how many pictures were done, failed and skipped."""
        done = self._finished - self._failed
        self._console.print(
            f"{done} done, {self._failed} failed, {self._skipped} skipped"
            + (" (already there; --overwrite does them again)" if self._skipped else "")
        )

    def begin(self, name: str) -> None:
        """A picture's turn has come."""
        self._name = name
        self._show(0.0)

    def tick(self, share: float) -> None:
        """This share, 0…1, of the picture is done."""
        self._show(share)

    def done(self, target: str, seconds: float) -> None:
        """The picture has been written."""
        self._finish(f"{self._name} → {target} ({seconds:.1f} s)", style="")

    def failed(self, reason: str) -> None:
        """The picture could not be done."""
        self._failed += 1
        self._finish(f"{self._name}: {reason}", style="red")

    def _finish(self, text: str, *, style: str) -> None:
        self._finished += 1
        self._show(0.0)
        self._console.print(f"[{self._finished}/{self._total}] {text}", style=style, markup=False)

    def _show(self, share: float) -> None:
        self._bar.update(
            self._task,
            description=self._name,
            completed=self._finished + share,
            pictures=f"{self._finished}/{self._total}",
        )
