"""Every module says what is public, and has it."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
import time
from importlib import import_module

import pytest

import vlmir


def modules() -> list[str]:
    walked = pkgutil.walk_packages(vlmir.__path__, "vlmir.")
    return ["vlmir", *(found.name for found in walked if not found.name.startswith("vlmir.v1"))]


@pytest.mark.parametrize("name", modules())
def test_all_is_explicit_and_exists(name: str) -> None:
    module = import_module(name)
    public = vars(module).get("__all__")
    assert isinstance(public, list), f"{name} has no __all__"
    assert len(set(public)) == len(public), f"{name}.__all__ names something twice"
    missing = [entry for entry in public if not hasattr(module, entry)]
    assert not missing, f"{name}.__all__ names what is not there: {missing}"


@pytest.mark.parametrize("name", vlmir.__all__)
def test_public_name_is_listed_and_stays_the_same(name: str) -> None:
    assert name in dir(vlmir)
    assert getattr(vlmir, name) is getattr(vlmir, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'restorer'"):
        getattr(vlmir, "restorer")  # noqa: B009 - mypy knows that it is not there


def run(code: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


LOADED = "import sys; print(*({'torch', 'numpy', 'grpc'} & sys.modules.keys()))"


def test_importing_the_package_is_quick_and_loads_no_torch() -> None:
    start = time.perf_counter()
    loaded = run(f"import vlmir; {LOADED}")
    assert time.perf_counter() - start < 2.0
    assert loaded.split() == []


def test_importing_the_command_line_loads_no_torch() -> None:
    assert run(f"import vlmir.cli; {LOADED}").split() == []
