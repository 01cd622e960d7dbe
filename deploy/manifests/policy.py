"""All rules that manifests are held to beside the schemas of their kinds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

from deploy.manifests.findings import Finding
from deploy.manifests.render import Manifest
from deploy.manifests.rules import cluster, edge, pods, wiring

__all__ = ["RULES", "check"]

Rule: TypeAlias = Callable[[Sequence[Manifest]], Iterator[Finding]]

RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        pods.hardened,
        pods.images,
        pods.probes,
        pods.resources,
        pods.volumes,
        pods.grace,
        wiring.ports,
        wiring.services,
        wiring.commands,
        wiring.variables,
        wiring.files,
        wiring.serve,
        cluster.namespace,
        cluster.network,
        cluster.budgets,
        cluster.scaling,
        cluster.monitors,
        cluster.references,
        edge.routes,
    )
}
"""Name → rule."""


def check(objects: Sequence[Manifest], *rules: str) -> list[Finding]:
    """What breaks the rules.

    Args:
        objects: The manifests.
        rules: Names of rules; none: all.
    """
    return [finding for name in rules or RULES for finding in RULES[name](objects)]
