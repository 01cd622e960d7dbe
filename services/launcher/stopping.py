"""Stopping a cluster so that nothing of it is left."""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

import psutil

from services.launcher.processes import is_manager, keepers, members, part_of
from services.launcher.state import clear_state, mark_up, read_state

__all__ = ["halt"]

_GRACE_S = 40.0
"""Seconds for the calls under way, which services grant 30, and then for the processes to end."""


def halt(folder: Path) -> set[str]:
    """Let the gateway answer the calls under way, then end all processes of the cluster in ``folder``.

    Args:
        folder: The cluster's.

    Returns:
        The parts of which a process had to be killed; "" is the manager.
    """
    mark_up(folder, False)
    processes = members(folder)
    gateway = keepers(processes).get("gateway")
    if gateway is not None:
        _terminate([gateway])
        psutil.wait_procs([gateway], timeout=_GRACE_S)
    # The manager tells all others; without it, they are told one by one.
    managers = [process for process in processes if is_manager(process)]
    _terminate(managers or list(keepers(members(folder)).values()))
    killed = _end(folder)
    state = read_state(folder)
    if state is not None and state.temporary:
        shutil.rmtree(state.temporary, ignore_errors=True)
    clear_state(folder)
    return killed


def _end(folder: Path) -> set[str]:
    """Wait for what is ending, then kill what is left, also what one that is killed leaves behind."""
    killed, until = set[str](), time.monotonic() + _GRACE_S
    while left := members(folder):
        if time.monotonic() > until:
            killed |= {part_of(process) for process in left}
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        psutil.wait_procs(left, timeout=0.5)
    return killed


def _terminate(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.terminate()
