"""The operator's book names only what there is: targets, modules, variables, files, sections, messages."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from deploy.contract import COMMANDS, PORTS, SERVICES, environment
from deploy.images import missing, table
from tests.unit.deploy.test_monitoring import anchors

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "deploy"
BOOK = FOLDER / "OPERATIONS.md"
LARGEST = 200_000
"""Bytes of a picture in the book."""
TARGETS = {"deploy", "undeploy", "render", "images", "up", "down"}

VARIABLE = re.compile(r"\b(?:VLMIR|MLFLOW|OTEL|RAY|AWS|OMP)_[A-Za-z_]*[A-Za-z]\b")
MODULE = re.compile(r"python -m ([\w.]+)")
TARGET = re.compile(r"\bmake ([a-z]+)\b")
LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def variables() -> frozenset[str]:
    named = {*SERVICES, *COMMANDS} - {"probe"}
    return frozenset().union(*(environment(service) for service in named))


@cache
def sources() -> str:
    files = (path for part in ("services", "vlmir") for path in sorted((ROOT / part).rglob("*.py")))
    return "\n".join(path.read_text("utf-8") for path in files)


def said(message: str) -> bool:
    """Whether some program says this; ``…`` stands for what differs."""
    fragments = [part.strip() for part in message.split("…")]
    return all(fragment in sources() for fragment in fragments if fragment)


def faults(book: str) -> Iterator[str]:
    """What the book names and there is not."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    yield from (f"target {name}" for name in TARGET.findall(book) if name not in targets)
    for module in MODULE.findall(book):
        if importlib.util.find_spec(module) is None:
            yield f"module {module}"
    yield from (f"variable {name}" for name in VARIABLE.findall(book) if name not in variables())
    for link in LINK.findall(book):
        page, _, anchor = link.partition("#")
        if page and not (FOLDER / page).exists():
            yield f"file {page}"
        if anchor and not page and anchor not in anchors(book):
            yield f"section {anchor}"
    table = book.partition("| symptom |")[2].partition("\n## ")[0]
    for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE):
        for message in re.findall(r"`([^`]+ [^`]+)`", row):
            if not said(message):
                yield f"message {message}"


def test_the_book_names_only_what_there_is() -> None:
    assert list(faults(BOOK.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    ("added", "fault"),
    [
        ("`make deplyo`", "target deplyo"),
        ("`python -m services.launcher.prepair`", "module services.launcher.prepair"),
        ("`VLMIR_POLLS_S`", "variable VLMIR_POLLS_S"),
        ("[rules](monitoring/rules/none.yml)", "file monitoring/rules/none.yml"),
        ("[there](#nowhere)", "section nowhere"),
    ],
)
def test_what_there_is_not_is_noticed(added: str, fault: str) -> None:
    assert list(faults(f"# Book\n{added}\n")) == [fault]


def test_a_message_that_nobody_says_is_noticed() -> None:
    row = "| symptom | cause | act |\n|---|---|---|\n| `{}` | x | y |\n"
    assert list(faults(row.format("the queue is full (…"))) == []
    wrong = "the queue is fuller than ever"
    assert list(faults(row.format(wrong))) == [f"message {wrong}"]


def test_the_book_has_what_was_asked_for() -> None:
    book = BOOK.read_text("utf-8")
    for section in (
        *("images", "sizing", "scaling", "promotion-and-rollback", "backup-and-restore"),
        *("when-something-is-wrong", "upgrades", "tls-and-secrets", "traces"),
    ):
        assert section in anchors(book)
    assert set(TARGET.findall(book)) >= TARGETS
    assert "What was not run." in book
    assert str(PORTS["ray"]["metrics"]) in book and str(PORTS["gateway"]["metrics"]) in book


def sizes(text: str) -> dict[str, list[float]]:
    """Image → its packages, MiB and MiB with CUDA, of a table; 0: there is no such variant."""
    rows = re.findall(r"^\| (\w+) \| (\d+) \| ([\d,]+) \| ([\d,]+|–) \|$", text, re.MULTILINE)
    return {
        name: [float(one.replace(",", "").replace("–", "0")) for one in numbers]
        for name, *numbers in rows
    }


def test_the_sizes_of_the_images_are_those_that_are_measured() -> None:
    """About: versions of the packages change, and not every machine has PyTorch with CUDA."""
    book = BOOK.read_text("utf-8")
    told = sizes(book.partition("<!-- images -->")[2].partition("<!-- /images -->")[0])
    measured = sizes(table())
    assert told.keys() == measured.keys() and len(told) == 7
    for name, (packages, cpu, cuda) in measured.items():
        assert told[name][0] == pytest.approx(packages, abs=10), name
        assert told[name][1] == pytest.approx(cpu, rel=0.25), name
        assert (told[name][2] == 0) == (cuda == 0), name
    assert "none has been built" in book
    assert all(f"`{package}`" in book for package in missing())


def test_the_picture_is_one_and_is_small() -> None:
    (link,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", BOOK.read_text("utf-8"))
    data = (FOLDER / link).read_bytes()
    assert data.startswith(b"\x89PNG\r\n") and len(data) < LARGEST
