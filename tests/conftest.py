"""Fixtures for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes says nothing of it: other work on the machine counts, too.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")


@pytest.fixture(scope="session")
def golden_numbers() -> Path:
    """The folder of numbers computed with the reference implementations."""
    return Path(__file__).parent / "golden" / "data"


@pytest.fixture(scope="session")
def small_bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a very small architecture with random weights."""
    from tests.small import small_bundle

    return small_bundle(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="session")
def imported_bundle_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle imported from very small files with DA-CLIP's names."""
    from tests.foreign import daclip_files, small_daclip
    from vlmir.importer import import_daclip

    folder = tmp_path_factory.mktemp("imported")
    unet, clip = daclip_files(folder, small_daclip())
    return import_daclip(folder / "bundle", unet=unet, clip=clip, preset=small_daclip()).folder
