"""The Makefile's targets for a cluster are commands that there are, and say what is wrong."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from deploy.manifests.__main__ import _parser
from deploy.manifests.render import ENVIRONMENTS, parse
from tests.unit.deploy.manifests import needs_kubectl, rendered

ROOT = Path(__file__).parents[3]
CALLERS = ("ENV", "ARGS", "MAKEFLAGS", "MAKELEVEL", "MFLAGS")
"""Variables of whoever runs the tests; `make test` tells its own."""

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="make is not here")


def make(*words: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in CALLERS}
    if path is not None:
        environment["PATH"] = path
    return subprocess.run(
        [shutil.which("make") or "make", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@needs_kubectl
@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_make_render_prints_the_manifests_in_seconds(environment: str) -> None:
    began = time.perf_counter()
    done = make("render", f"ENV={environment}")
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - began < 10
    assert parse(done.stdout) == rendered(environment)


@needs_kubectl
@pytest.mark.parametrize("words", [(), ("ENV=prod",)])
def test_make_render_wants_an_environment(words: tuple[str, ...]) -> None:
    done = make("render", *words)
    assert done.returncode != 0 and done.stdout == ""
    assert "say ENV=cpu, gpu, dev or training" in done.stderr


def test_make_render_wants_kubectl(tmp_path: Path) -> None:
    for tool in ("sh", "test"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    done = make("render", "ENV=cpu", path=str(tmp_path))
    assert done.returncode != 0 and "kubectl is not on the PATH" in done.stderr


@pytest.mark.parametrize(
    ("target", "more"),
    [
        ("secrets", ""),
        ("deploy", "--wait 5m"),
        ("smoke", ""),
        ("undeploy", ""),
        ("undeploy", "--delete-data"),
    ],
)
def test_a_target_is_a_command_that_there_is(target: str, more: str) -> None:
    done = make("--dry-run", target, "ENV=gpu", f"ARGS={more}")
    last = next(line for line in reversed(done.stdout.splitlines()) if "deploy.manifests" in line)
    program, *words = shlex.split(last)
    assert program.endswith("python") and words[:3] == ["-m", "deploy.manifests", target]
    asked = _parser().parse_args(words[2:])
    assert (asked.what, asked.environment) == (target, "gpu")
    if more:
        assert asked.wait == "5m" if target == "deploy" else asked.delete_data


def test_make_images_takes_the_bake_file() -> None:
    done = make("--dry-run", "images", "ARGS=gpu --push")
    words = shlex.split(done.stdout.splitlines()[-1])
    assert words[:3] == ["docker", "buildx", "bake"] and words[-2:] == ["gpu", "--push"]
    assert (ROOT / words[words.index("--file") + 1]).is_file()
