"""A kubectl that only writes down what it is asked."""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deploy.manifests.secrets import SECRETS

__all__ = ["Cluster", "steps"]

DEFINITIONS = (
    *("rayservices.ray.io", "certificates.cert-manager.io", "issuers.cert-manager.io"),
    *(f"{kind}.gateway.networking.k8s.io" for kind in ("gateways", "grpcroutes", "httproutes")),
    *("backendtlspolicies.gateway.networking.k8s.io", "podmonitors.monitoring.coreos.com"),
)
FAKE = """#!{python}
import json, pathlib, sys
here = pathlib.Path(__file__).parent
words = sys.argv[1:]
given = sys.stdin.read() if "--filename=-" in words else ""
with (here / "calls").open("a") as calls:
    print(json.dumps([words, given]), file=calls)
for part, status, out, said in json.loads((here / "answers").read_text()):
    if part in " ".join(words):
        print(out)
        print(said, file=sys.stderr)
        sys.exit(status)
"""


class Cluster:
    """What the fake kubectl answers, and what it was asked."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
        self._answers = list[tuple[str, int, str, str]]()
        (folder / "kubectl").write_text(FAKE.format(python=sys.executable))
        (folder / "kubectl").chmod(0o755)
        self.has("get customresourcedefinitions", "\n".join(f"crd/{one}" for one in DEFINITIONS))
        self.has("get secrets", "\n".join(f"secret/{name}" for name in SECRETS))
        self.has("--selector", json.dumps({"items": []}))
        authority = base64.b64encode(b"the authority").decode()
        self.has("get secret vlmir-ca", json.dumps({"data": {"ca.crt": authority}}))

    def has(self, part: str, out: str = "", *, fails: str = "") -> None:
        """Answer commands with this part from now on."""
        self._answers.insert(0, (part, int(bool(fails)), out, fails))
        (self._folder / "answers").write_text(json.dumps(self._answers))

    @property
    def calls(self) -> list[tuple[str, Any]]:
        """Commands without the namespace, and the objects that they were given."""
        calls = self._folder / "calls"
        lines = calls.read_text().splitlines() if calls.exists() else []
        found = []
        for words, given in map(json.loads, lines):
            text = " ".join(words).removeprefix("--namespace vlmir ")
            objects = json.loads(given) if given else {}
            found.append((text, objects.get("items", [objects] if objects else [])))
        return found


def steps(cluster: Cluster) -> Iterator[str]:
    """What was applied, run and awaited, in order."""
    for command, objects in cluster.calls:
        if command.startswith("apply"):
            yield from (f"{one['kind']} {one['metadata']['name']}" for one in objects)
        elif command.startswith(("rollout", "wait", "delete")):
            yield " ".join(word for word in command.split() if not word.startswith("--"))
