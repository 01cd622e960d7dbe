"""A registered bundle as a folder: ``python -m training.fetch champion FOLDER``, or a version in place of the alias.

The version of the sampler brings bundle.json and names the versions of the other parts; every digest is checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from pathlib import Path

from training.release.registry import MODELS, SAMPLER, connect, find_version, parts_of
from vlmir.bundle import Bundle, check_free, load_bundle
from vlmir.errors import BundleError, VlmirError

__all__ = ["fetch_bundle", "main"]


def fetch_bundle(which: int | str, folder: Path) -> Bundle:
    """Put a registered bundle together in ``folder``, which appears only when it is whole.

    Args:
        which: Version of the sampler, or an alias of it.
        folder: New or empty.

    Returns:
        The bundle, opened.

    Raises:
        OptionError: There is no such version, or ``folder`` is not free.
        BundleError: A part is missing, or is not the one that bundle.json or the version's tag names.
        mlflow.exceptions.MlflowException: The registry cannot be reached, or has lost the files.
    """
    check_free(folder)
    sampler = find_version(connect(), which)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as place:
        whole = Path(place) / "bundle"
        whole.mkdir()
        for part, version in parts_of(sampler).items():
            _fetch_part(part, version, whole)
        bundle = load_bundle(whole)
        if sampler.tags.get("digest") != bundle.digests["sampler"]:
            raise BundleError(
                f"{SAMPLER} version {sampler.version} is not the one its tag names (digest mismatch)."
            )
        whole.replace(folder)
    return dataclasses.replace(bundle, folder=folder)


def _fetch_part(part: str, version: str, whole: Path) -> None:
    """Fetch what a bundle needs of a part's version: of the sampler all files, of the others the folder of the part."""
    from mlflow.artifacts import download_artifacts

    source = f"models:/{MODELS[part]}/{version}"
    if part != "sampler":
        download_artifacts(f"{source}/{part}", dst_path=str(whole))
        return
    download_artifacts(source, dst_path=str(whole))
    for name in ("MLmodel", "registered_model_meta"):  # the registry's own papers
        (whole / name).unlink(missing_ok=True)


def main() -> None:
    """Command line."""
    from mlflow.exceptions import MlflowException

    parser = argparse.ArgumentParser(
        prog="python -m training.fetch", description="Fetch a registered bundle."
    )
    parser.add_argument("which", help=f"version of {SAMPLER} or an alias, such as champion")
    parser.add_argument("folder", type=Path, help="where to; new or empty")
    arguments = parser.parse_args()
    which = arguments.which
    try:
        bundle = fetch_bundle(int(which) if which.isdecimal() else which, arguments.folder)
    except (VlmirError, MlflowException, OSError) as error:
        print(f"training.fetch: {error}", file=sys.stderr)
        sys.exit(2)
    print(f"{bundle.folder}: {bundle.release}")


if __name__ == "__main__":
    main()
