"""kubectl, its failures told in one sentence."""

from __future__ import annotations

import shutil
import subprocess

from vlmir.errors import UnavailableError, VlmirError

__all__ = ["KubectlError", "executable", "kubectl"]

_SILENT = ("connection refused", "no such host", "i/o timeout", "unable to connect", "was refused")


class KubectlError(VlmirError):
    """kubectl did not do what it was asked; the message is its own."""


def executable() -> str:
    """Path of kubectl.

    Raises:
        UnavailableError: It is not installed.
    """
    found = shutil.which("kubectl")
    if found is None:
        raise UnavailableError(
            "kubectl is not on the PATH; install it (https://kubernetes.io/docs/tasks/tools/)."
        )
    return found


def kubectl(*arguments: str, given: str | None = None) -> str:
    """Run kubectl and return what it prints.

    Args:
        arguments: Of kubectl.
        given: Its standard input.

    Raises:
        UnavailableError: It is not installed, or no cluster answers.
        KubectlError: It fails.
    """
    done = subprocess.run(
        [executable(), *arguments], input=given, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return done.stdout
    said = done.stderr.strip()
    if any(sign in said.lower() for sign in _SILENT):
        raise UnavailableError(
            "No cluster answers; choose one with `kubectl config use-context`, and look at `kubectl cluster-info`. "
            f"({said.splitlines()[-1]})"
        )
    raise KubectlError(f"kubectl {' '.join(arguments[:2])} failed: {said}")
