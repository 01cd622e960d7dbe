"""Generate ``vlmir/v1`` from the protos beside this script, or check that it is up to date.

Run ``python protos/generate.py`` after editing a proto; ``--check`` writes nothing and exits 1 on
any difference. Needs grpcio-tools and mypy-protobuf (extra ``dev``), at the versions pinned in
constraints.txt.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

from grpc_tools import protoc

__all__ = ["differences", "generate", "main"]

PROTOS = Path(__file__).resolve().parent
PACKAGE = Path("vlmir/v1")
STUBS = PROTOS.parent / PACKAGE
INIT = '"""Messages and stubs generated from protos/vlmir/v1; do not edit."""\n'


def generate(root: Path) -> None:
    """Write the stubs of all protos, with type stubs, into ``root/vlmir/v1``.

    Raises:
        RuntimeError: the compiler refused a proto; its own words are on stderr.
    """
    (root / PACKAGE).mkdir(parents=True, exist_ok=True)
    # protoc finds the mypy plug-ins on the PATH; a virtual environment need not be activated.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    arguments = [
        "protoc",
        f"--proto_path={PROTOS}",
        f"--proto_path={files('grpc_tools').joinpath('_proto')}",
        *(f"--{kind}_out={root}" for kind in ("python", "grpc_python", "mypy", "mypy_grpc")),
        *sorted(str(path.relative_to(PROTOS)) for path in PROTOS.glob(f"{PACKAGE}/*.proto")),
    ]
    if protoc.main(arguments) != 0:
        raise RuntimeError("protoc failed; see its message above")
    (root / PACKAGE / "__init__.py").write_text(INIT)


def differences() -> list[str]:
    """Names of the generated files that are missing, superfluous or out of date."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, stored = _texts(Path(folder) / PACKAGE), _texts(STUBS)
    return sorted(name for name in fresh | stored if fresh.get(name) != stored.get(name))


def _texts(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.glob("*.py*") if path.is_file()}


def main() -> int:
    """Run the command line; the exit status is 1 if ``--check`` found a difference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    if parser.parse_args().check:
        stale = differences()
        if stale:
            print(
                f"out of date, run python protos/generate.py: {', '.join(stale)}", file=sys.stderr
            )
        return int(bool(stale))
    shutil.rmtree(STUBS, ignore_errors=True)
    generate(PROTOS.parent)
    return 0


if __name__ == "__main__":
    sys.exit(main())
