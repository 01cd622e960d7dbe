"""Where the network runs, and in which precision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from vlmir import RestoreOptions, Restorer
from vlmir.bundle import load_bundle
from vlmir.compute import REFERENCE, Compute, multiplies_bf16
from vlmir.errors import OptionError
from vlmir.metrics import psnr
from vlmir.parts import build_unet

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("units", "yes"),
    [
        ({}, False),
        ({"avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"avx2": True}, False),
    ],
)
def test_bfloat16_is_taken_where_the_processor_multiplies_in_it(
    units: dict[str, bool], yes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: units)
    assert multiplies_bf16(CPU) is yes
    assert Compute.choose("cpu").dtype is (torch.bfloat16 if yes else torch.float32)
    assert Compute.choose("cpu", "fp32") == REFERENCE
    assert str(Compute.choose("cpu", "bf16")) == "cpu, bfloat16"


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_refused(name: str) -> None:
    with pytest.raises(OptionError, match="take auto or cpu"):
        Compute.choose(name)


def test_an_unknown_precision_is_refused(small_bundle_folder: Path) -> None:
    with pytest.raises(OptionError, match="auto, bf16, fp32"):
        Restorer.load(small_bundle_folder, precision="fp16")  # type: ignore[arg-type]


def test_the_network_is_loaded_in_the_type_that_is_asked_for(small_bundle_folder: Path) -> None:
    bundle = load_bundle(small_bundle_folder)
    assert build_unet(bundle).stem.weight.dtype is torch.float32
    half = build_unet(bundle, Compute(CPU, torch.bfloat16))
    assert {p.dtype for p in half.parameters()} == {torch.bfloat16}
    assert half.stem.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("options", [RestoreOptions(), RestoreOptions(realism=1.0, steps=4)])
def test_bfloat16_restores_what_float32_does(options: RestoreOptions) -> None:
    from skimage.data import astronaut

    photo = np.ascontiguousarray(astronaut()[:128, :128])  # type: ignore[no-untyped-call]
    noisy = np.clip(photo + np.random.default_rng(0).normal(0, 50, photo.shape), 0, 255)
    restored = [
        Restorer.load("tiny", device="cpu", precision=precision)
        .restore(noisy.astype(np.uint8), options)
        .image.pixels
        for precision in ("fp32", "bf16")
    ]
    assert restored[1].dtype == np.float32
    assert 45 < psnr(*restored) < 100  # and they are not by chance the same computation


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_restores_what_the_processor_does(small_bundle_folder: Path) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (72, 56, 3), np.uint8)
    options = RestoreOptions(realism=1.0, steps=3, degradation="noisy")
    on_gpu, on_cpu = (
        Restorer.load(small_bundle_folder, device=device, precision="fp32").restore(photo, options)
        for device in ("cuda", "cpu")
    )
    assert psnr(on_gpu.image.pixels, on_cpu.image.pixels) > 60
