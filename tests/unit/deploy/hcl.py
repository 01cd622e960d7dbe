"""The part of HCL that our bake file is written in; anything else is an error."""

from __future__ import annotations

import re
from typing import Any

_TOKEN = re.compile(r'\s*(?:#[^\n]*|("(?:[^"\\]|\\.)*")|([\w-]+)|([{}\[\]=,?:]))')


def parse(text: str) -> dict[str, dict[str, dict[str, Any]]]:
    """Kind of block → its name → its attributes; a condition is taken to hold."""
    tokens = list[str]()
    place = 0
    while text[place:].strip():
        found = _TOKEN.match(text, place)
        if found is None:
            raise ValueError(f"not understood: {text[place : place + 40]!r}")
        tokens += [token for token in found.groups() if token]
        place = found.end()
    blocks: dict[str, dict[str, dict[str, Any]]] = {}
    while tokens:
        kind, name = tokens.pop(0), _string(tokens.pop(0))
        of_kind = blocks.setdefault(kind, {})
        if name in of_kind:
            raise ValueError(f"{kind} {name} is there twice")
        of_kind[name] = _map(tokens)
    return blocks


def _map(tokens: list[str]) -> dict[str, Any]:
    _take(tokens, "{")
    found: dict[str, Any] = {}
    while tokens[0] != "}":
        key = tokens.pop(0).strip('"')
        _take(tokens, "=")
        if key in found:
            raise ValueError(f"{key} is there twice")
        found[key] = _value(tokens)
    tokens.pop(0)
    return found


def _value(tokens: list[str]) -> Any:
    if tokens[0] == "{":
        return _map(tokens)
    if tokens[0] == "[":
        return _list(tokens)
    token = tokens.pop(0)
    if token in ("true", "false"):
        return token == "true"
    if tokens[0] == "?":
        tokens.pop(0)
        value = _value(tokens)
        _take(tokens, ":")
        _value(tokens)
        return value
    return _string(token)


def _list(tokens: list[str]) -> list[Any]:
    _take(tokens, "[")
    found = list[Any]()
    while tokens[0] != "]":
        found.append(_value(tokens))
        if tokens[0] == ",":
            tokens.pop(0)
    tokens.pop(0)
    return found


def _string(token: str) -> str:
    if not token.startswith('"'):
        raise ValueError(f"{token} is no string")
    return token[1:-1]


def _take(tokens: list[str], wanted: str) -> None:
    if (token := tokens.pop(0)) != wanted:
        raise ValueError(f"{token} stands for {wanted}")
