"""The script that makes buckets and accounts, with an `mc` that only writes down what it is asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from deploy.contract import environment
from deploy.manifests.render import KUSTOMIZATIONS

BASE = KUSTOMIZATIONS / "base"
ACCOUNTS = {"services": "vlmir", "mlflow": "mlflow", "writer": "models", "reader": "models"}
FAKE = """#!/bin/sh
echo "$*" >> "$CALLS"
case "$*" in $FAILS) exit 1 ;; esac
"""


def run(folder: Path, fails: str = "nothing") -> tuple[int, list[str]]:
    """The script's exit status, and what it asked of mc."""
    shutil.copytree(BASE / "policies", folder, dirs_exist_ok=True)
    shutil.copy(BASE / "buckets.sh", folder)
    (folder / "mc").write_text(FAKE)
    (folder / "mc").chmod(0o755)
    told = {name: name.lower() for name in environment("buckets")}
    path = f"{folder}{os.pathsep}{os.environ['PATH']}"
    variables = {"PATH": path, "CALLS": str(folder / "calls"), "FAILS": fails, **told}
    done = subprocess.run(
        ["sh", folder / "buckets.sh"], env=variables, capture_output=True, timeout=30
    )
    return done.returncode, (folder / "calls").read_text().splitlines()


def test_it_makes_buckets_and_an_account_for_each_user(tmp_path: Path) -> None:
    status, calls = run(tmp_path)
    assert status == 0
    made = [call.split("/")[-1] for call in calls if call.startswith("mb")]
    assert set(made) == set(ACCOUNTS.values())
    for account, bucket in ACCOUNTS.items():
        assert f"admin policy create store vlmir-{account} {tmp_path}/{account}.json" in calls
        assert f"ls {account}/{bucket}" in calls
    assert "admin user add store writer_key writer_secret" in calls


def test_what_is_so_already_is_no_error(tmp_path: Path) -> None:
    assert run(tmp_path, fails="*attach*")[0] == 0


def test_an_account_that_cannot_look_into_its_bucket_is_one(tmp_path: Path) -> None:
    status, calls = run(tmp_path, fails="ls*mlflow*")
    assert status != 0
    assert "ls writer/models" not in calls


@pytest.mark.parametrize("account", ACCOUNTS)
def test_an_account_may_do_nothing_outside_its_bucket(account: str) -> None:
    policy = json.loads((BASE / "policies" / f"{account}.json").read_text())
    bucket = f"arn:aws:s3:::{ACCOUNTS[account]}"
    assert [one["Resource"] for one in policy["Statement"]] == [[bucket], [f"{bucket}/*"]]
    actions = {action for one in policy["Statement"] for action in one["Action"]}
    assert not any("*" in action for action in actions)
    assert ("s3:PutObject" in actions) == (account != "reader")
    assert ("s3:DeleteObject" in actions) == (account != "reader")
