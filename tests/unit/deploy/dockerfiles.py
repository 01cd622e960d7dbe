"""What our Dockerfiles have to be, as a check that names each fault."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from deploy.contract import COMMANDS, PORTS, environment

ROOT = Path(__file__).resolve().parents[3]
DOCKER = ROOT / "deploy" / "docker"
NAMES = sorted(
    file.name.partition(".")[0]
    for file in DOCKER.glob("*.Dockerfile")
    if file.name != "base.Dockerfile"
)
SERVERS = ("captioner", "embedder", "sampler", "gateway", "restorer")
TOOLS = re.compile(r"\b(pip3? install|gcc|g\+\+|make|build-essential|git|curl|compile)\b")

SECRET = re.compile(r"(?i)(password|secret|token)(?!\w*_file=)\w*=.")


class Instruction(NamedTuple):
    """One instruction, its lines joined."""

    word: str
    rest: str


def instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    return [
        Instruction(word.upper(), rest.strip())
        for word, _, rest in (line.partition(" ") for line in joined.splitlines() if line.strip())
    ]


def stages(found: list[Instruction]) -> list[list[Instruction]]:
    parts: list[list[Instruction]] = [[]]
    for each in found:
        if each.word == "FROM":
            parts.append([])
        parts[-1].append(each)
    return parts[1:]


def last(stage: list[Instruction], word: str) -> str:
    return next((each.rest for each in reversed(stage) if each.word == word), "")


def variables(stage: list[Instruction]) -> dict[str, str]:
    pairs = (pair for each in stage if each.word == "ENV" for pair in each.rest.split())
    return dict(pair.split("=", 1) for pair in pairs)


def faults(name: str, text: str) -> list[str]:
    """What is wrong with the Dockerfile of an image; empty: nothing."""
    found = instructions(text)
    return [*_of_all(text, found), *_of_the_last_stage(name, stages(found)[-1])] + (
        [] if len(stages(found)) > 1 else ["only one stage"]
    )


def _of_all(text: str, found: list[Instruction]) -> Iterator[str]:
    if not re.match(r"# syntax=docker/dockerfile:\d+\.\d+\n", text):
        yield "the syntax is not pinned"
    for each in found:
        if each.word == "FROM":
            base = each.rest.split()[0]
            if not base.startswith("${") and ("@sha256:" not in base and ":" not in base):
                yield f"{base} has no tag"
            if base.endswith(":latest"):
                yield f"{base} moves"
        if each.word == "ADD":
            yield "ADD fetches and unpacks; COPY does what it says"
        if each.word in ("ENV", "ARG") and SECRET.search(each.rest):
            yield f"a secret in {each.word}"
        if each.word == "RUN" and re.search(r"\bpip3? .*\binstall ", each.rest):
            yield "packages without constraints.txt"


def _of_the_last_stage(name: str, stage: list[Instruction]) -> Iterator[str]:
    if stage[0].rest != "${RUNTIME}":
        yield f"the last stage is made from {stage[0].rest}"
    user = last(stage, "USER")
    if not re.fullmatch(r"[1-9]\d*:[1-9]\d*", user):
        yield f"the user is {user!r}"
    for each in stage:
        if each.word == "RUN" and (tool := TOOLS.search(each.rest)):
            yield f"{tool[0]} in the last stage"
        if each.word == "COPY" and not each.rest.startswith("--from=build "):
            yield "the last stage copies from elsewhere than the build"
    ports = {*PORTS.get(name, {}).values(), *(PORTS["ray"].values() if name == "restorer" else ())}
    exposed = {int(port) for port in last(stage, "EXPOSE").split()}
    if exposed != ports:
        yield f"the ports are {sorted(exposed)}, not {sorted(ports)}"
    known = environment(name)
    yield from (f"{key} is read by nobody" for key in variables(stage) if key not in known)
    yield from _addresses(name, variables(stage))
    yield from _health(name, last(stage, "HEALTHCHECK"))
    yield from _command(name, stage)
    if "VLMIR_CACHE" in variables(stage) and last(stage, "VOLUME") != '["/cache"]':
        yield "the cache is no volume"


def _addresses(name: str, found: dict[str, str]) -> Iterator[str]:
    if name in SERVERS and name != "restorer":
        wanted = {
            "VLMIR_HOST": "0.0.0.0",
            "VLMIR_PORT": str(PORTS[name]["grpc"]),
            "VLMIR_METRICS_PORT": str(PORTS[name]["metrics"]),
        }
        yield from (
            f"{key} is {found.get(key)}" for key, value in wanted.items() if found.get(key) != value
        )


def _health(name: str, check: str) -> Iterator[str]:
    if name == "training":
        wanted = check == "NONE"
    elif name == "mlflow":
        wanted = f"127.0.0.1:{PORTS[name]['http']}/health" in check
    else:
        probe = [*COMMANDS["probe"], f"127.0.0.1:{PORTS[name]['grpc']}"]
        asked = json.loads(check.partition("CMD ")[2] or "[]")
        wanted = asked[: len(probe)] == probe
    if not wanted:
        yield f"the health check is {check!r}"


def _command(name: str, stage: list[Instruction]) -> Iterator[str]:
    entry, arguments = (json.loads(last(stage, word) or "[]") for word in ("ENTRYPOINT", "CMD"))
    if name == "training":
        arguments = arguments[:1]
    if name == "mlflow":
        entry = entry[1:]  # what gives it its secrets
    if tuple(entry + arguments) != COMMANDS[name]:
        yield f"the command is {entry + arguments}"
