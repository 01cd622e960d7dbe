"""Make the candidate the champion, which is served: ``python -m training.promote``, and back: ``--rollback``.

The gate is that of :mod:`training.release.gate`. Moving the alias ``champion`` of ``vlmir-sampler`` by hand in MLflow's
UI does the same without asking. The champion before has the alias ``previous``.
"""

from __future__ import annotations

import argparse
import getpass
import json
import math
import os
import sys
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from training.fetch import fetch_bundle
from training.release.gate import TOLERANCE_DB, Check, Measured, judge
from training.release.registry import (
    CANDIDATE,
    CHAMPION,
    EVALUATION,
    PREVIOUS,
    SAMPLER,
    aliases,
    connect,
    find_version,
    move_alias,
)
from vlmir.errors import BundleError, VlmirError

if TYPE_CHECKING:  # it takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["main", "promote", "rollback"]


def promote(
    which: int | str = CANDIDATE,
    *,
    tolerance_db: float = TOLERANCE_DB,
    force: str | None = None,
    dry_run: bool = False,
) -> bool:
    """Move the alias ``champion`` to a version of the sampler if the gate lets it pass; prints each line of the gate.

    Args:
        which: The version's number or alias.
        tolerance_db: PSNR that each bench may lose, at least 0.
        force: Why it passes although the numbers are worse; kept in the version's tags. Files whose digests do not
            match are not let through even so: no service would load them.
        dry_run: Only say what would happen.

    Returns:
        Whether it is the champion now, or would be.

    Raises:
        OptionError: There is no such version.
        mlflow.exceptions.MlflowException: The registry cannot be reached.
    """
    client = connect()
    candidate, champion = find_version(client, which), _champion(client)
    if champion and champion.version == candidate.version:
        print(f"{_named(candidate)} is the {CHAMPION} already")
        if not dry_run:  # whoever moved the sampler's alias by hand left the others
            move_alias(client, CHAMPION, candidate)
        return True
    whole, measured = _fetched(candidate)
    print(whole)
    if not whole.ok:
        return False
    checks = judge(measured, _measured(champion) if champion else None, tolerance_db)
    print(*checks, sep="\n")
    failed = [check.text for check in checks if not check.ok]
    if failed and force is None:
        print(
            f"{_named(candidate)} does not become {CHAMPION}; --force REASON moves it all the same"
        )
        return False
    if dry_run:
        print(f"{_named(candidate)} would become {CHAMPION}")
        return True
    gate = f"forced: {force}; failed: {'; '.join(failed)}" if failed else "passed"
    _tag(client, candidate, {**_signed("promoted"), "gate": gate})
    _swap(client, candidate, champion)
    return True


def rollback(*, dry_run: bool = False) -> bool:
    """Exchange the aliases ``champion`` and ``previous``; a second time goes forth again.

    Args:
        dry_run: Only say what would happen.

    Returns:
        Whether there was anything to go back to.

    Raises:
        OptionError: The version with the alias ``previous`` was deleted meanwhile.
        mlflow.exceptions.MlflowException: The registry cannot be reached.
    """
    client = connect()
    champion = _champion(client)
    number = aliases(client).get(PREVIOUS)
    if number is None or (champion and str(champion.version) == number):
        what = "no version has the alias" if number is None else f"the {CHAMPION} has the alias"
        print(
            f"nothing to go back to: {what} {PREVIOUS!r}; name a version: "
            "training.promote --version N"
        )
        return False
    previous = find_version(client, PREVIOUS)
    if dry_run:
        print(f"{_named(previous)} would become {CHAMPION}")
        return True
    if champion:
        _tag(client, champion, _signed("rolled_back"))
    _swap(client, previous, champion)
    return True


def _champion(client: MlflowClient) -> ModelVersion | None:
    return find_version(client, CHAMPION) if CHAMPION in aliases(client) else None


def _fetched(candidate: ModelVersion) -> tuple[Check, Measured]:
    """Whether all files of a candidate are there and those they should be, and what was measured of it."""
    from mlflow.exceptions import MlflowException

    with tempfile.TemporaryDirectory() as place:
        try:
            bundle = fetch_bundle(int(candidate.version), Path(place) / "bundle")
        except (BundleError, MlflowException, OSError) as error:
            return Check(False, f"{_named(candidate)} cannot be served: {error}"), Measured()
        text = f"{_named(candidate)}: all files are there, digests right"
        return Check(True, text), _read(bundle.folder)


def _measured(version: ModelVersion) -> Measured:
    """What was measured of a version; nothing, if somebody registered it without."""
    from mlflow.artifacts import download_artifacts, list_artifacts

    source = f"models:/{SAMPLER}/{version.version}"
    names = {file.path for file in list_artifacts(source)} & {"bundle.json", EVALUATION}
    with tempfile.TemporaryDirectory() as place:
        for name in names:
            download_artifacts(f"{source}/{name}", dst_path=place)
        return _read(Path(place))


def _read(folder: Path) -> Measured:
    bundle, evaluation = folder / "bundle.json", folder / EVALUATION
    return Measured(
        metrics=json.loads(bundle.read_text("utf-8")).get("metrics", {})
        if bundle.is_file()
        else {},
        evaluation=json.loads(evaluation.read_text("utf-8")) if evaluation.is_file() else {},
    )


def _swap(client: MlflowClient, new: ModelVersion, old: ModelVersion | None) -> None:
    """Put ``new`` in the place of ``old``; what is served moves last."""
    if old:
        move_alias(client, PREVIOUS, old)
    move_alias(client, CHAMPION, new)
    print(f"{_named(new)} is {CHAMPION} now" + (f"; before: {_named(old)}" if old else ""))


def _tag(client: MlflowClient, version: ModelVersion, tags: Mapping[str, str]) -> None:
    for name, value in tags.items():
        client.set_model_version_tag(SAMPLER, str(version.version), name, value)


def _signed(what: str) -> dict[str, str]:
    """Tags: when (UTC, ISO 8601) and by whom."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user may have no name
        user = str(os.getuid())
    return {f"{what}_at": datetime.now(UTC).isoformat(timespec="seconds"), f"{what}_by": user}


def _named(version: ModelVersion) -> str:
    release = version.tags.get("release", "release unknown")
    return f"{SAMPLER} version {version.version} ({release})"


def main() -> None:
    """Command line."""
    from mlflow.exceptions import MlflowException

    parser = _parser()
    arguments = parser.parse_args()
    if arguments.rollback and arguments.force is not None:
        parser.error("--rollback needs no --force: it has no gate.")
    try:
        if arguments.rollback:
            done = rollback(dry_run=arguments.dry_run)
        else:
            done = promote(
                arguments.version or CANDIDATE,
                tolerance_db=arguments.tolerance,
                force=arguments.force,
                dry_run=arguments.dry_run,
            )
    except (VlmirError, MlflowException, OSError, ValueError) as error:
        print(f"training.promote: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if done else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m training.promote",
        description="Make a registered version the champion, if it is no worse. "
        "Status 1: it is worse, or there is nothing to go back to; nothing has moved.",
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--version", type=int, metavar="N", help=f"of {SAMPLER} (default: the {CANDIDATE})"
    )
    which.add_argument(
        "--rollback",
        action="store_true",
        help=f"exchange {CHAMPION} and {PREVIOUS}, without a gate",
    )
    parser.add_argument(
        "--tolerance",
        type=_decibels,
        default=TOLERANCE_DB,
        metavar="DB",
        help=f"PSNR that each bench may lose (default: {TOLERANCE_DB} dB)",
    )
    parser.add_argument(
        "--force", type=_reason, metavar="REASON", help="move it although numbers are worse"
    )
    parser.add_argument("--dry-run", action="store_true", help="only say what would happen")
    return parser


def _decibels(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a number of dB from 0 on.")
    return value


def _reason(text: str) -> str:
    if not text.strip():
        raise argparse.ArgumentTypeError("say why.")
    return text.strip()


if __name__ == "__main__":
    main()
