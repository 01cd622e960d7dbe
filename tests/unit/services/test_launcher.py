"""The launcher's pieces; `tests/e2e/test_up.py` starts the whole cluster."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from services.launcher.plan import Plan, make_plan
from services.launcher.ports import choose_ports
from services.launcher.processes import MARK, keepers, members, part_of
from services.launcher.settings import ROOT, LauncherSettings
from services.launcher.state import locked, mark_up, read_state
from services.launcher.stopping import halt
from services.launcher.waiting import Watch, tail
from vlmir.errors import UnavailableError

ALL_FREE = {name: 0 for name in LauncherSettings.model_fields if name.endswith("_port")}
PATIENCE_S = 20.0
# Writes its pid and that of a child; the child does not hear SIGTERM.
STUBBORN = "trap '' TERM; sleep 300 & trap - TERM; echo $$ $! >> pids; wait"


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def lives(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Path]:
    """A cluster's folder; nothing of it is left running."""
    (tmp_path / "logs").mkdir()
    yield tmp_path
    for process in members(tmp_path):
        process.kill()


@contextmanager
def keep(cluster: Path, command: str) -> Iterator[subprocess.Popen[bytes]]:
    """A shell command under ``deploy/keep``, which is told to stop at the end."""
    with subprocess.Popen(
        ["deploy/keep", "sh", "-c", f"cd '{cluster}'; {command}"],
        cwd=ROOT,
        env={**os.environ, MARK: str(cluster), "HONCHO_PROCESS_NAME": "part.1"},
        start_new_session=True,
    ) as kept:
        try:
            yield kept
        finally:
            kept.terminate()


def pids(cluster: Path) -> list[list[int]]:
    """What each run of ``STUBBORN`` wrote."""
    file = cluster / "pids"
    lines = file.read_text().splitlines() if file.exists() else []
    return [[int(pid) for pid in line.split()] for line in lines]


class TestKeep:
    def test_a_command_that_ends_early_ends_it_with_the_same_status(self, cluster: Path) -> None:
        with keep(cluster, "echo said; echo wrong >&2; exit 3") as kept:
            assert kept.wait(PATIENCE_S) == 3
        assert (cluster / "logs" / "part.log").read_text() == "said\nwrong\n"

    def test_once_all_is_up_a_dead_command_is_begun_again_and_leaves_nothing(
        self, cluster: Path
    ) -> None:
        mark_up(cluster, True)
        with keep(cluster, STUBBORN) as kept:
            until(lambda: len(pids(cluster)) == 1)
            first = pids(cluster)[0]
            os.kill(first[0], signal.SIGKILL)
            until(lambda: len(pids(cluster)) == 2)
            assert not any(lives(pid) for pid in first)
            assert "status 137 and is begun again" in (cluster / "logs" / "part.log").read_text()
            kept.terminate()
            kept.wait(PATIENCE_S)
        assert len(pids(cluster)) == 2
        assert not any(lives(pid) for pid in pids(cluster)[1])

    def test_it_waits_for_a_command_that_ends_slowly(self, cluster: Path) -> None:
        with keep(
            cluster,
            "trap 'sleep 0.3; echo done; exit 0' TERM; echo begun; while :; do sleep 0.05; done",
        ) as kept:
            log = cluster / "logs" / "part.log"
            until(lambda: log.exists() and "begun" in log.read_text())
            kept.terminate()
            assert kept.wait(PATIENCE_S) == 0
        assert log.read_text() == "begun\ndone\n"


class TestProcesses:
    def test_members_and_their_parts_are_known(self, cluster: Path) -> None:
        with keep(cluster, STUBBORN) as kept:
            until(lambda: len(pids(cluster)) == 1)
            found = members(cluster)
            assert {process.pid for process in found} == {kept.pid, *pids(cluster)[0]}
            assert {part_of(process) for process in found} == {"part"}
            assert [process.pid for process in keepers(found).values()] == [kept.pid]
            assert members(cluster / "another") == []

    def test_this_process_is_never_one_of_them(
        self, cluster: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        command = "from pathlib import Path; import services.launcher.processes as p; "
        command += f"print(p.members(Path({str(cluster)!r})))"
        done = subprocess.run(
            [sys.executable, "-c", command],
            env={**os.environ, MARK: str(cluster)},
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "[]\n"

    def test_halting_ends_all_without_a_manager(self, cluster: Path) -> None:
        mark_up(cluster, True)
        with keep(cluster, STUBBORN):
            until(lambda: len(pids(cluster)) == 1)
            assert halt(cluster) == set()
            assert members(cluster) == []
        assert not any(lives(pid) for pid in pids(cluster)[0])
        assert read_state(cluster) is None


class TestHalting:
    @pytest.fixture
    def manager(self, cluster: Path) -> Iterator[subprocess.Popen[bytes]]:
        """A manager of two commands, of which one is called the gateway and says when it ends."""
        begun = cluster / "begun"
        loop = f"echo >> {begun}; while :; do sleep 0.05; done"
        (cluster / "Procfile").write_text(
            "".join(
                f"{name}: exec deploy/keep sh -c \"trap 'echo {name} >> {cluster}/ended; exit' TERM; {loop}\"\n"
                for name in ("gateway", "other")
            )
        )
        with subprocess.Popen(
            [
                sys.executable,
                "-m",
                "services.launcher.manager",
                "-f",
                cluster / "Procfile",
                "start",
            ],
            cwd=ROOT,
            env={**os.environ, MARK: str(cluster)},
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        ) as started:
            mark_up(cluster, True)
            until(lambda: begun.exists() and len(begun.read_text().splitlines()) == 2)
            yield started
            started.kill()

    def test_the_gateway_ends_before_all_others(
        self, cluster: Path, manager: subprocess.Popen[bytes]
    ) -> None:
        assert halt(cluster) == set()
        assert (cluster / "ended").read_text() == "gateway\nother\n"
        assert members(cluster) == []

    def test_all_end_well_after_their_manager_was_killed(
        self, cluster: Path, manager: subprocess.Popen[bytes]
    ) -> None:
        manager.kill()
        manager.wait()
        assert halt(cluster) == set()
        assert (cluster / "ended").read_text() == "gateway\nother\n"
        assert members(cluster) == []


class TestPorts:
    def test_zero_takes_free_ones_and_no_two_are_the_same(self) -> None:
        ports = choose_ports(LauncherSettings(**ALL_FREE))
        assert {"gateway", "gateway_metrics", "sampler", "mlflow"} <= set(ports)
        assert 0 not in ports.values() and len(set(ports.values())) == len(ports)

    def test_a_port_that_is_taken_is_named_with_its_variable(self) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(UnavailableError, match=rf"port {port} .*VLMIR_UP_SAMPLER_PORT"):
                choose_ports(LauncherSettings(**{**ALL_FREE, "sampler_port": port}))

    def test_two_parts_cannot_have_the_same(self) -> None:
        taken = choose_ports(LauncherSettings(**ALL_FREE))["mlflow"]
        same = {**ALL_FREE, "sampler_port": taken, "mlflow_port": taken}
        with pytest.raises(UnavailableError, match=f"port {taken} "):
            choose_ports(LauncherSettings(**same))


class TestPlan:
    @pytest.fixture
    def path(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """The only folder of programs."""
        monkeypatch.delenv("VLMIR_STORE_URL", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        return tmp_path

    def plan(self, folder: Path) -> Plan:
        settings = LauncherSettings(**ALL_FREE)
        plan = make_plan(folder, settings, choose_ports(settings))
        shutil.rmtree(plan.temporary, ignore_errors=True)
        return plan

    def test_without_anything_the_store_is_a_folder(self, path: Path) -> None:
        plan = self.plan(path)
        assert plan.store == plan.variables["VLMIR_STORE_URL"] == str(path / "store")
        assert "minio" not in plan.parts

    def test_a_minio_on_the_path_gets_a_secret_of_its_own(self, path: Path) -> None:
        (path / "minio").touch(0o755)
        plan = self.plan(path)
        assert "minio" in plan.parts
        assert plan.store == f"http://127.0.0.1:{plan.variables['UP_MINIO_PORT']}"
        secret = Path(plan.variables["VLMIR_STORE_SECRET_KEY_FILE"])
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
        assert len(secret.read_text()) >= 32
        assert secret.read_text() not in str(plan)
        before = secret.read_text()
        self.plan(path)
        assert secret.read_text() == before

    def test_a_store_of_the_environment_wins(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (path / "minio").touch(0o755)
        monkeypatch.setenv("VLMIR_STORE_URL", "http://127.0.0.1:9")
        plan = self.plan(path)
        assert plan.store == "http://127.0.0.1:9"
        assert "minio" not in plan.parts and "VLMIR_STORE_URL" not in plan.variables

    def test_a_triton_on_the_path_is_used_unless_another_is_named(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("VLMIR_TRITON", raising=False)
        assert "triton" not in self.plan(path).parts
        (path / "tritonserver").touch(0o755)
        plan = self.plan(path)
        assert "triton" in plan.parts
        assert plan.variables["VLMIR_TRITON"] == f"127.0.0.1:{plan.variables['UP_TRITON_PORT']}"
        monkeypatch.setenv("VLMIR_TRITON", "127.0.0.1:9")
        plan = self.plan(path)
        assert "triton" not in plan.parts and "VLMIR_TRITON" not in plan.variables

    def test_rays_sockets_fit_wherever_the_folder_is(self, path: Path) -> None:
        deep = path / ("deep" * 20)
        deep.mkdir()
        assert len(self.plan(deep).variables["RAY_TMPDIR"]) < 40
        assert self.plan(deep).temporary


class TestWaiting:
    def test_the_part_that_ended_first_is_named_with_its_log(self, cluster: Path) -> None:
        (cluster / "logs" / "honcho.log").write_text(
            "10:00:00 system | sampler.1 stopped (rc=1)\n10:00:01 system | mlflow.1 stopped (rc=0)\n"
        )
        (cluster / "logs" / "sampler.log").write_text("error: no such bundle\n")
        with subprocess.Popen(["true"]) as manager:
            manager.wait()
            watch = Watch(cluster / "logs", manager, 60)
            with pytest.raises(UnavailableError) as caught:
                watch.wait("mlflow", lambda: False)
        assert "sampler ended with status 1" in str(caught.value)
        assert "  | error: no such bundle" in str(caught.value)

    def test_it_gives_up_when_the_time_is_over(self, cluster: Path) -> None:
        with subprocess.Popen(["sleep", "60"]) as manager:
            with pytest.raises(UnavailableError, match="mlflow did not become healthy in time"):
                Watch(cluster / "logs", manager, 0.1).wait("mlflow", lambda: False)
            manager.kill()

    def test_a_log_s_end_is_shown_whatever_is_in_it(self, cluster: Path) -> None:
        log = cluster / "log"
        log.write_bytes(b"\xff\n" + b"line\n" * 30)
        assert tail(log).splitlines() == ["  | line"] * 20
        assert tail(cluster / "none") == "  | (nothing)"


def test_only_one_command_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(UnavailableError, match="another command"),
        locked(tmp_path),
    ):
        pass


def test_each_line_of_the_procfile_is_kept_in_a_log() -> None:
    lines = (ROOT / "deploy" / "Procfile").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert len(commands) >= 7
    assert all(" exec deploy/keep " in command for command in commands)
