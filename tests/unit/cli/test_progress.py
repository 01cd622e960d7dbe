"""Progress on a terminal and in a log."""

from __future__ import annotations

import io

from rich.console import Console

from vlmir.cli.progress import Display


def shown(*, terminal: bool) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120, highlight=False)
    with Display(total=2, skipped=1, console=console) as display:
        display.begin("a[b].png")
        display.tick(0.5)
        display.done("out/a[b].png", 1.25)
        display.begin("c.png")
        display.failed("This is no image.")
    return file.getvalue()


def test_a_log_has_a_line_for_each_picture_and_a_sum() -> None:
    assert shown(terminal=False).splitlines() == [
        "[1/2] a[b].png → out/a[b].png (1.2 s)",
        "[2/2] c.png: This is no image.",
        "1 done, 1 failed, 1 skipped (already there; --overwrite does them again)",
    ]


def test_a_terminal_shows_the_time_left() -> None:
    screen = shown(terminal=True)
    assert "left" in screen
    assert "2/2" in screen
