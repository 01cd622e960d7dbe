"""The processes of a cluster, found by a variable that all of them inherit."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["MARK", "is_manager", "keepers", "members", "part_of"]

MARK = "VLMIR_CLUSTER"
"""The environment variable that holds the cluster's folder."""


def members(folder: Path) -> list[psutil.Process]:
    """The living processes of the cluster in ``folder``, in no order; never this one, nor those it was started by.

    A process may have overwritten its environment with its title, as Ray's workers do; it is known by its parent.
    """
    own = [one for one in psutil.process_iter() if _variables(one).get(MARK) == str(folder)]
    found = {process.pid: process for process in own}
    for process in own:
        found |= {child.pid: child for child in _children(process)}
    this = psutil.Process()
    spared = {one.pid for one in [this, *this.parents()]}
    return [one for pid, one in found.items() if pid not in spared and _lives(one)]


def part_of(process: psutil.Process) -> str:
    """Name of the part to which a member belongs, as in the Procfile; empty for the manager of all."""
    for one in [process, *_parents(process)]:
        if name := _variables(one).get("HONCHO_PROCESS_NAME"):
            return name.rpartition(".")[0]
    return ""


def keepers(processes: list[psutil.Process]) -> dict[str, psutil.Process]:
    """Part → the process that is to be told to stop."""
    return {part_of(process): process for process in processes if _is_keeper(process)}


def is_manager(process: psutil.Process) -> bool:
    """Whether this is the process that runs all others, not one of its helpers, which do not hear SIGTERM."""
    return "services.launcher.manager" in _command(process) and _leads(process)


def _leads(process: psutil.Process) -> bool:
    try:
        return bool(os.getpgid(process.pid) == process.pid)
    except ProcessLookupError:
        return False


def _is_keeper(process: psutil.Process) -> bool:
    return "deploy/keep" in _command(process)[:2]


def _command(process: psutil.Process) -> list[str]:
    try:
        found: list[str] = process.cmdline()
    except psutil.Error:
        return []
    return found


def _variables(process: psutil.Process) -> dict[str, str]:
    try:
        found: dict[str, str] = process.environ()
    except (psutil.Error, OSError):  # it is gone, or another user's
        return {}
    return found


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.children(recursive=True)
    except psutil.Error:
        return []
    return found


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        found: list[psutil.Process] = process.parents()
    except psutil.Error:
        return []
    return found


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
