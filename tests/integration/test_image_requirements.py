"""Each service runs with what its image holds: all other packages are hidden from it."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from deploy.images import closure, requirements
from services.common.probe import is_serving

pytestmark = pytest.mark.timeout(300)

HIDE = """
import runpy, sys, sysconfig
from importlib.machinery import PathFinder

SITES = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}

class Without(PathFinder):
    "Finds modules, but what is hidden not where packages are installed."

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if path is None and name in HIDDEN:
            path = [place for place in sys.path if place not in SITES]
        return super().find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Without
for name in [name for name in sys.modules if name.partition(".")[0] in HIDDEN]:
    del sys.modules[name]  # what a .pth file had imported
"""
SERVE = "sys.argv = ARGUMENTS\nrunpy.run_module(sys.argv[0], run_name='__main__', alter_sys=True)\n"
ORCHESTRATE = """
import numpy as np
import services.launcher.serve
from services.restorer.app import build
from services.restorer.cluster import Cluster
from services.restorer.settings import ClusterSettings
from vlmir.image import Image, decode, encode
from vlmir.vlm.embedder import ViewMaker

build({})
Cluster(ClusterSettings()).close()
picture = Image(pixels=np.full((64, 48, 3), 0.5, np.float32), bit_depth=8)
assert decode(encode(picture, format="png")).pixels.shape == (64, 48, 3)
assert ViewMaker(image_size=32, resize="squash", detail=False, window=None)(picture.pixels).shape[0] == 1
print("serving on nothing")
"""


def hidden(name: str) -> set[str]:
    """Modules of installed packages that are not in an image."""
    here = {key for key, one in closure(requirements(name)).items() if one is not None}
    owners = metadata.packages_distributions()
    ours = {"vlmir", "services", "training", "deploy", "tests"}
    return {
        module
        for module, packages in owners.items()
        if module not in ours and not {canonicalize_name(each) for each in packages} & here
    }


def script(name: str, text: str, *arguments: str) -> list[str]:
    told = f"HIDDEN = {sorted(hidden(name))!r}\nARGUMENTS = {list(arguments)!r}\n"
    return [sys.executable, "-c", told + HIDE + text]


@pytest.mark.parametrize("name", ["captioner", "embedder", "sampler", "gateway"])
def test_a_service_runs_with_its_packages_alone(name: str, tmp_path: Path) -> None:
    flags = ["--port", "0"] + (["--upstream", "127.0.0.1:9"] if name == "gateway" else [])
    flags += ["--backend", "torch"] if name == "embedder" else []
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONUNBUFFERED": "1"}
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(
            script(name, SERVE, f"services.{name}", *flags),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line.startswith("serving "), (tmp_path / "log").read_text()
            # The gateway is well when the restorer is, and there is none.
            assert is_serving(line.split()[-1]) == (name != "gateway")
        finally:
            process.terminate()


def test_the_orchestrator_runs_with_its_packages_alone() -> None:
    done = subprocess.run(script("restorer", ORCHESTRATE), capture_output=True, text=True)
    assert "serving" in done.stdout, done.stderr


def test_a_package_that_is_not_in_the_image_is_noticed() -> None:
    """The gateway's image cannot run the sampler."""
    command = script("gateway", SERVE, "services.sampler", "--port", "0")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "No module named" in done.stderr
