"""Which metrics and labels an expression of Prometheus names; enough of its grammar for ours."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["Named", "named"]

_TOKEN = re.compile(
    r"""(?P<text>"(?:[^"\\]|\\.)*"|'[^']*') | \[[^\]]*\] | (?P<name>[A-Za-z_:][\w:]*) | [\d.]+\w* | (?P<sign>\S)""",
    re.VERBOSE,
)
_LISTS = {"by", "without", "on", "ignoring", "group_left", "group_right"}
_WORDS = {"and", "or", "unless", "bool", "offset"}
_AGGREGATIONS = {"sum", "avg", "min", "max", "count"}


class Named(NamedTuple):
    """What an expression names."""

    metrics: list[tuple[str, set[str]]]
    """Each metric with the labels that it is chosen by."""
    grouped: set[str]
    """Labels by which values are put together."""


def named(expression: str) -> Named:
    """Read an expression."""
    tokens = [
        (match.lastgroup or "", match[0])
        for match in _TOKEN.finditer(expression)
        if not match[0].startswith("[")
    ]
    found, grouped, place = list[tuple[str, set[str]]](), set[str](), 0
    while place < len(tokens):
        kind, text = tokens[place]
        following = tokens[place + 1][1] if place + 1 < len(tokens) else ""
        place += 1
        if kind != "name" or text in _WORDS or text in _AGGREGATIONS:
            continue
        if text in _LISTS:
            place, labels = _until(tokens, place, ")")
            grouped |= labels
        elif following == "{":
            place, labels = _until(tokens, place, "}")
            found.append((text, labels))
        elif following != "(":
            found.append((text, set()))
    return Named(found, grouped)


def _until(tokens: list[tuple[str, str]], place: int, end: str) -> tuple[int, set[str]]:
    """Where a list ends, and the names in it."""
    labels = set[str]()
    while tokens[place][1] != end:
        kind, text = tokens[place]
        if kind == "name":
            labels.add(text)
        place += 1
    return place + 1, labels
