"""Networks of a bundle are built without random initialisation, and nobody else notices."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from vlmir import parts
from vlmir.bundle import load_bundle


def test_a_network_built_meanwhile_is_initialised(
    small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What transformers' own way breaks: it takes ``torch.nn.init`` away from all threads, at times for good."""
    build_blip, before, elsewhere = parts.build_blip, nn.init.kaiming_uniform_, []

    def and_another_elsewhere(*args: Any, **kwargs: Any) -> Any:
        with ThreadPoolExecutor(1) as thread:
            elsewhere.append(thread.submit(_a_layer).result())
        return build_blip(*args, **kwargs)

    monkeypatch.setattr(parts, "build_blip", and_another_elsewhere)
    parts.build_captioner(load_bundle(small_bundle_folder), trainable=True)
    assert torch.equal(elsewhere[0], _a_layer())
    assert nn.init.kaiming_uniform_ is before


@pytest.mark.parametrize("trainable", [False, True])
def test_a_captioner_has_no_weight_but_its_own(small_bundle_folder: Path, trainable: bool) -> None:
    bundle = load_bundle(small_bundle_folder)
    torch.manual_seed(0)
    first = parts.build_captioner(bundle, trainable=trainable).model.state_dict()
    torch.manual_seed(1)
    second = parts.build_captioner(bundle, trainable=trainable).model.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_memory_that_holds_anything_is_no_trouble(
    small_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Truncated normal draws are repeated until they are in range, and what a new tensor holds may never be."""
    monkeypatch.setattr(torch, "empty_like", lambda tensor: torch.full_like(tensor, 9.0))
    built = parts.build_captioner(load_bundle(small_bundle_folder), trainable=True)
    assert built.model is not None


def _a_layer() -> torch.Tensor:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        return nn.Linear(8, 8).weight.detach()
