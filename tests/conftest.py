"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden_numbers() -> Path:
    """The folder of numbers computed with the reference implementations."""
    return Path(__file__).parent / "golden" / "data"


@pytest.fixture(scope="session")
def small_bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a very small architecture with random weights."""
    from tests.small import small_bundle

    return small_bundle(tmp_path_factory.mktemp("small"))
