"""Starting a cluster and waiting until it is healthy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import yaml  # type: ignore[import-untyped]

from services.launcher.plan import MODELS, MODELS_READY, Plan, make_plan
from services.launcher.ports import choose_ports
from services.launcher.repository import open_repository
from services.launcher.seed import Seed
from services.launcher.settings import ROOT, LauncherSettings
from services.launcher.state import State, mark_up, write_state
from services.launcher.status import checks
from services.launcher.stopping import halt
from services.launcher.waiting import Watch

__all__ = ["launch"]


def launch(folder: Path, settings: LauncherSettings) -> tuple[State, subprocess.Popen[bytes]]:
    """Start all processes and wait until they are healthy; on any failure stop them all.

    Args:
        folder: Of all that the cluster keeps; absolute.
        settings: Of the launcher.

    Returns:
        What was started, and the process that runs it all.

    Raises:
        UnavailableError: A port is taken, or a part does not become healthy.
        BundleError: The bundle is missing.
    """
    halt(folder)  # what a killed start may have left
    (folder / MODELS_READY).unlink(missing_ok=True)
    if (folder / MODELS).is_symlink():  # as earlier versions left it
        (folder / MODELS).unlink()
    ports = choose_ports(settings)
    plan = make_plan(folder, settings, ports)
    state = State(
        host=settings.host,
        ports=ports,
        parts=list(plan.parts),
        store=plan.store,
        temporary=plan.temporary,
    )
    write_state(folder, state)
    try:
        _write_serve_config(folder, ports)
        manager = _manager(folder, plan)
        _wait(folder, settings, state, plan, manager)
        mark_up(folder, True)
    except BaseException:
        print("stopping what was started", flush=True)
        halt(folder)
        raise
    return state, manager


def _write_serve_config(folder: Path, ports: Mapping[str, int]) -> None:
    """The config of the repository, with these ports."""
    config = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text("utf-8"))
    config["http_options"]["port"] = ports["restorer_http"]
    config["grpc_options"]["port"] = ports["restorer"]
    (folder / "serve.yaml").write_text(yaml.safe_dump(config), "utf-8")


def _manager(folder: Path, plan: Plan) -> subprocess.Popen[bytes]:
    """honcho, which runs the parts; away from this terminal, and from its Ctrl-C."""
    logs = folder / "logs"
    shutil.rmtree(logs, ignore_errors=True)
    logs.mkdir()
    command = [
        sys.executable,
        "-m",
        "services.launcher.manager",
        "--no-colour",
        "-f",
        "deploy/Procfile",
    ]
    with (logs / "honcho.log").open("wb") as log:
        return subprocess.Popen(
            [*command, "start", *plan.parts],
            cwd=ROOT,
            env=_environment(plan),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _environment(plan: Plan) -> dict[str, str]:
    return {**os.environ, **plan.variables, "PYTHONUNBUFFERED": "1"}


def _wait(
    folder: Path,
    settings: LauncherSettings,
    state: State,
    plan: Plan,
    manager: subprocess.Popen[bytes],
) -> None:
    watch = Watch(folder / "logs", manager, settings.wait_s)
    print(f"starting in {folder}", flush=True)
    for part, is_healthy in checks(state).items():
        watch.wait(part, is_healthy)
        if part == "mlflow":
            _seed(folder, settings, plan)


def _seed(folder: Path, settings: LauncherSettings, plan: Plan) -> None:
    seed = Seed(folder=folder, environment=_environment(plan))
    champion = seed.champion(settings.bundle)
    print(f"  {'champion':<10} {champion.name}, version {champion.number}", flush=True)
    if "triton" in plan.parts:
        backend = settings.triton_backend
        repository = open_repository(str(folder / MODELS), backend)
        repository.publish(seed.embedder(champion), partial(seed.export, champion, backend))
        (folder / MODELS_READY).touch()
