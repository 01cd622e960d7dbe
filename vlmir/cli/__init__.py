"""The command line: ``vlmir restore``, ``inspect``, ``degrade``, ``info``, ``bench``, ``models``.

Exit status: 0 when every picture was done, 1 when some failed, 2 for a usage or option error
(nothing was done), 130 after Ctrl-C. Reports go to stdout, progress and errors to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from vlmir.cli.arguments import build_parser
from vlmir.cli.benchmark import bench
from vlmir.cli.commands import degrade, info, inspect, restore
from vlmir.cli.models import import_daclip
from vlmir.errors import OptionError, VlmirError

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_OK", "EXIT_USAGE", "main"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

_COMMANDS = {
    "restore": restore,
    "inspect": inspect,
    "degrade": degrade,
    "info": info,
    "bench": bench,
    "models import-daclip": import_daclip,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; None takes those of the process.

    Returns:
        The exit status, see the module's docstring.

    Raises:
        SystemExit: The parser refused the arguments (code 2) or has shown help or version (0).
    """
    arguments = build_parser().parse_args(argv)
    try:
        failed = _COMMANDS[arguments.command](arguments)
    except KeyboardInterrupt:
        print("vlmir: interrupted; run the same command again to go on", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader of stdout has gone (`| head`); Python's flush at exit must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except VlmirError as error:
        print(f"vlmir {arguments.command}: error: {error}", file=sys.stderr)
        return EXIT_USAGE if isinstance(error, OptionError) else EXIT_FAILED
    return EXIT_FAILED if failed else EXIT_OK
