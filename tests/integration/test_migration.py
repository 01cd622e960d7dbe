"""The Job that makes or mends MLflow's database, on a real one."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.deploy.manifests import container, needs_kubectl, rendered

pytestmark = [needs_kubectl, pytest.mark.timeout(300)]


def migrate(words: list[str], database: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as the Job's container would, but for the address and the kind of its database."""
    address = f"sqlite:///{database}"
    program = [sys.executable, "-m", *words]
    command = [word.replace("$(MLFLOW_BACKEND_STORE_URI)", address) for word in program]
    quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "HOME": str(database.parent)}
    return subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=240)


def test_it_makes_the_database_and_leaves_one_that_is_there(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    words = container(rendered("dev"), "vlmir-mlflow-migrate", "Job")["command"]
    for _ in range(2):
        done = migrate(words, database)
        assert done.returncode == 0, done.stderr
    with sqlite3.connect(database) as found:
        names = {name for (name,) in found.execute("select name from sqlite_master")}
    assert {"model_versions", "registered_model_aliases", "runs"} <= names


def test_a_misspelt_command_fails(tmp_path: Path) -> None:
    assert migrate(["mlflow", "db", "upgarde", "sqlite://"], tmp_path / "x.db").returncode != 0
