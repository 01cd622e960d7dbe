"""Manifests from the command line: ``python -m deploy.manifests render|check|secrets|deploy|smoke|undeploy ENV``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from deploy.manifests import policy
from deploy.manifests.findings import Finding
from deploy.manifests.render import (
    ENVIRONMENTS,
    Manifest,
    overlay,
    render,
    render_text,
)
from deploy.manifests.rollout import deploy, undeploy
from deploy.manifests.secrets import make_secrets
from deploy.manifests.validate import validate
from vlmir.errors import OptionError, VlmirError

__all__ = ["checked", "main"]

BESIDE = "training"
"""No system of its own: it is judged beside one."""


def checked(environment: str, ray_crd: Path | None = None) -> list[Manifest]:
    """The manifests of an environment, free of faults.

    Args:
        environment: The overlay.
        ray_crd: File of KubeRay's definition of RayService, for a closer look.

    Raises:
        OptionError: They have faults; the message lists them.
    """
    objects = render(environment)
    whole = [*render("gpu"), *objects] if environment == BESIDE else objects
    found: list[Finding] = [*validate(objects, ray_crd=ray_crd), *policy.check(whole)]
    if found:
        lines = "\n".join(f"  {finding}" for finding in sorted(found))
        raise OptionError(f"The manifests of {environment} have {len(found)} faults:\n{lines}")
    return objects


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line.

    Returns:
        The exit status: 0, or 1 when it cannot be done.
    """
    asked = _parser().parse_args(arguments)
    try:
        _do(asked)
    except VlmirError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _do(asked: argparse.Namespace) -> None:
    environment: str = asked.environment
    match asked.what:
        case "render":
            print(render_text(overlay(environment)), end="")
        case "check":
            count = len(checked(environment, asked.ray_crd))
            print(f"{environment}: {count} objects, no faults")
        case "secrets":
            print("\n".join(make_secrets(render(environment))))
        case "deploy":
            if environment == BESIDE:
                raise OptionError(
                    "A training is no part of a deploy: make render ENV=training | kubectl apply -f - "
                    "(deploy/k8s/README.md)"
                )
            objects = checked(environment, asked.ray_crd)
            deploy(objects, wait=asked.wait)
            _smoke(objects)
        case "smoke":
            _smoke(render(environment))
        case "undeploy":
            undeploy(render(environment), with_data=asked.delete_data)


def _smoke(objects: list[Manifest]) -> None:
    from deploy.manifests.smoke import smoke  # the client brings heavy packages

    print(smoke(objects))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy.manifests", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, says in (
        ("render", "print the manifests"),
        ("check", "validate them, and hold them to the rules"),
        ("secrets", "make the Secrets that the cluster lacks, with random values"),
        ("deploy", "check, apply, wait, and restore a picture"),
        ("smoke", "restore a picture through a deployed system"),
        ("undeploy", "take it all out of the cluster, but for volumes and Secrets"),
    ):
        command = commands.add_parser(name, help=says, description=says)
        command.add_argument("environment", metavar="ENV", help=", ".join(ENVIRONMENTS))
        if name in ("check", "deploy"):
            command.add_argument(
                "--ray-crd",
                type=Path,
                metavar="FILE",
                help="KubeRay's CustomResourceDefinition of RayService, for a closer look",
            )
        if name == "deploy":
            command.add_argument(
                "--wait", default="15m", metavar="TIME", help="for each part (default: 15m)"
            )
        if name == "undeploy":
            command.add_argument(
                "--delete-data", action="store_true", help="delete the volumes, too, for ever"
            )
    return parser


if __name__ == "__main__":
    sys.exit(main())
