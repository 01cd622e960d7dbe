"""``make up`` and ``make down``: the whole cluster as processes of this machine, with small weights in its registry."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from skimage.data import astronaut

from services.launcher.processes import members, part_of
from services.launcher.settings import PREFIX, LauncherSettings
from services.launcher.state import State, read_state
from tests.measured import measured_bundle
from vlmir import Restorer
from vlmir.client import RestorationClient
from vlmir.errors import VlmirError
from vlmir.image import Image, decode, encode
from vlmir.registry import CHAMPION, SAMPLER

pytestmark = pytest.mark.timeout(900)  # two shared processors start seven servers, one of them Ray

ROOT = Path(__file__).parents[2]
PATIENCE_S = 180.0
FREE_PORTS = {
    f"{PREFIX}{name.upper()}": "0" for name in LauncherSettings.model_fields if "_port" in name
}


def launcher(command: str, folder: Path, **variables: str) -> tuple[int, str]:
    """Exit status and output of a command."""
    done = subprocess.run(
        [sys.executable, "-m", "services.launcher", command, "--folder", str(folder)],
        cwd=ROOT,
        env={**os.environ, **FREE_PORTS, f"{PREFIX}WAIT_S": "600", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return done.returncode, done.stdout


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A folder for a cluster, of which nothing is left running whatever happens."""
    place = tmp_path / "cluster"
    yield place
    for process in members(place):
        process.kill()


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.2)


def released(client: RestorationClient) -> str:
    """The release that is served; empty where there is no answer."""
    try:
        return client.info().release
    except VlmirError:
        return ""


def photo() -> bytes:
    levels = np.ascontiguousarray(astronaut()[40:136, 160:280])
    return encode(Image.from_levels(levels), format="png")


def assert_librarys(data: bytes, bundle: Path) -> None:
    """Whether a restored photo is the one that the library makes with these weights."""
    expected = Restorer.load(bundle).restore(photo()).image.pixels
    assert np.abs(decode(data).pixels - expected).max() <= 1.5 / 255


def test_up_restores_follows_the_registry_survives_a_kill_and_goes_down(
    folder: Path, small_bundle_folder: Path, tmp_path: Path
) -> None:
    first = measured_bundle(small_bundle_folder, tmp_path / "small-1").folder
    second = measured_bundle(first, tmp_path / "small-2", psnr=27.0, changed=("sampler",)).folder
    temporary = {*Path("/tmp").glob("vlmir-*")}
    status, said = launcher("up", folder, **{f"{PREFIX}BUNDLE": str(first)})
    assert status == 0, said
    state = read_state(folder)
    assert state is not None
    assert f"--server {state.server}" in said
    processes = members(folder)
    assert {part_of(process) for process in processes} == {"", *state.parts}

    status, said = launcher("up", folder)
    assert (status, said.splitlines()[0]) == (0, "the cluster is up already")
    assert state.server in said

    with RestorationClient(state.server) as client:
        restored = client.restore(photo())
        assert restored.report.release == "small-1@v1"
        assert_librarys(restored.image_bytes, first)
        readme_s_command_restores(state, tmp_path)

        promote_by_hand(state, second)
        until(lambda: released(client) == "small-2@v2")
        restored = client.restore(photo())
        assert restored.report.release == "small-2@v2"
        assert_librarys(restored.image_bytes, second)

        kill(folder, "sampler")
        until(lambda: launcher("status", folder)[0] == 0)
        assert client.restore(photo()).image_bytes == restored.image_bytes

    processes = [*processes, *members(folder)]
    status, said = launcher("down", folder)
    assert status == 0 and "killed" not in said, said
    assert not [process for process in processes if lives(process)]
    assert {*Path("/tmp").glob("vlmir-*")} == temporary
    assert launcher("status", folder) == (1, "no cluster is running\n")
    assert launcher("down", folder) == (0, "no cluster is running\n")


def readme_s_command_restores(state: State, place: Path) -> None:
    """Run the README's `vlmir restore` against this cluster."""
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    (line,) = [line for line in lines if line.startswith("$ .venv/bin/vlmir restore")]
    assert "--server 127.0.0.1:50050" in line
    arguments = line.replace("127.0.0.1:50050", state.server).split()[2:]
    (place / "photo.jpg").write_bytes(encode(decode(photo()), format="jpeg"))
    subprocess.run([sys.executable, "-m", "vlmir", *arguments], cwd=place, check=True)
    assert decode((place / "restored.jpg").read_bytes()).width == 120


def promote_by_hand(state: State, bundle: Path) -> None:
    """Register a bundle, and move the alias as a hand in MLflow's UI does."""
    address = f"http://127.0.0.1:{state.ports['mlflow']}"
    subprocess.run(
        [sys.executable, "-m", "training.register", str(bundle)],
        cwd=ROOT,
        env={**os.environ, "MLFLOW_TRACKING_URI": address},
        check=True,
    )
    MlflowClient(address, address).set_registered_model_alias(SAMPLER, CHAMPION, "2")


def lives(process: psutil.Process) -> bool:
    """Whether it runs; a container's first process may never collect the dead."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill(folder: Path, part: str) -> None:
    """Kill a service as the system does when it needs memory."""
    (victim,) = [
        process
        for process in members(folder)
        if part_of(process) == part and f"services.{part}" in process.cmdline()[:3]
    ]
    victim.send_signal(signal.SIGKILL)
    psutil.wait_procs([victim])


def test_a_part_that_cannot_start_is_named_with_the_end_of_its_log(folder: Path) -> None:
    status, said = launcher("up", folder, VLMIR_BATCH="-1")
    assert status == 1
    assert "ended with status 2" in said
    assert "| error: batch: Input should be greater than or equal to 1" in said
    assert not members(folder)
    assert read_state(folder) is None
