"""Run ``python -m services.launcher up``, ``down`` or ``status``.

Every flag can also be an environment variable, such as ``VLMIR_UP_HOST``.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Mapping

from pydantic import ValidationError
from pydantic_settings import CliApp

from services.launcher.processes import members
from services.launcher.settings import LauncherSettings
from services.launcher.starting import launch
from services.launcher.state import is_up, locked, read_state
from services.launcher.status import show, tell
from services.launcher.stopping import halt
from vlmir.errors import VlmirError

__all__: list[str] = []


def up(settings: LauncherSettings) -> int:
    """Start the cluster, unless it is up already."""
    folder = settings.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        state = read_state(folder)
        if state is not None and is_up(folder) and members(folder):
            print("the cluster is up already")
            tell(folder, state)
            return 0
        state, manager = launch(folder, settings)
        tell(folder, state)
    if settings.foreground:
        print("Ctrl-C stops it", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            manager.wait()
        return down(settings)
    return 0


def down(settings: LauncherSettings) -> int:
    """Stop the cluster, if it runs."""
    folder = settings.folder.resolve()
    if read_state(folder) is None:
        print("no cluster is running")
        return 0
    with locked(folder):
        killed = halt(folder)
    for part in sorted(killed):
        print(f"{part or 'honcho'} did not end in time and was killed")
    print(f"the cluster is stopped; {folder} keeps its registry and its store")
    return 0


def status(settings: LauncherSettings) -> int:
    """Show the cluster; 1 where something is wrong with it."""
    folder = settings.folder.resolve()
    state = read_state(folder)
    if state is None:
        print("no cluster is running")
        return 1
    healthy = show(folder, state)
    tell(folder, state)
    return 0 if healthy else 1


COMMANDS: Mapping[str, Callable[[LauncherSettings], int]] = {
    "up": up,
    "down": down,
    "status": status,
}


def main(arguments: list[str]) -> int:
    """Command line; 0 when done, 1 when it failed, 2 for wrong options, 130 after Ctrl-C."""
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is None:
        print(f"usage: python -m services.launcher {'|'.join(COMMANDS)} [--help]", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return command(CliApp.run(LauncherSettings, cli_args=arguments[1:]))
    except ValidationError as error:
        for fault in error.errors():
            print(f"error: {fault['loc'][0]}: {fault['msg']}", file=sys.stderr)
        return 2
    except VlmirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
