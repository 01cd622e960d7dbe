"""What a command loads before its first picture: seconds of it were other people's networks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vlmir.image import Image, encode

HEAVY = (
    "accelerate",
    "grpc",
    "huggingface_hub",
    "open_clip",
    "peft",
    "scipy",
    "sympy",
    "timm",
    "torch._dynamo",
    "torch.distributed.tensor",
    "torchvision",
    "transformers",
)
"""None of them is needed to restore a picture; each takes from a tenth of a second to some seconds to import."""

RESTORE = """
import sys
from vlmir.cli import main
assert main(["restore", *sys.argv[1:]]) == 0
print(*[name for name in {heavy!r} if name in sys.modules])
"""


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    file = tmp_path / "photo.png"
    file.write_bytes(encode(Image.from_levels(pixels), format="png"))
    return file


@pytest.mark.parametrize("bundle", ["tiny", "imported"])
def test_a_restoration_loads_nothing_heavy_but_torch(
    bundle: str, imported_bundle_folder: Path, photo: Path
) -> None:
    """``imported`` has the words of public CLIP, as ``base`` has."""
    weights = str(imported_bundle_folder) if bundle == "imported" else bundle
    code = RESTORE.format(heavy=HEAVY)
    much = ["--steps", "1", "-o", str(photo.with_name("restored.png")), "--bundle", weights]
    done = subprocess.run(
        [sys.executable, "-c", code, str(photo), *much], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == ""
