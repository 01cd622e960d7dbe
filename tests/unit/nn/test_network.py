"""The U-Net: shapes, conditions, nulls, locality."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmir.config import UNetConfig
from vlmir.daclip import load_strictly
from vlmir.errors import BundleError
from vlmir.nn import UNet
from vlmir.nn.attention import CrossAttention, LinearAttention

SMALL = UNetConfig(
    width=32,
    multipliers=(1, 2),
    attention=("linear", "transformer"),
    context_dim=16,
    semantic=True,
    stem_stride=2,
    stem_kernel=3,
)


def network(config: UNetConfig = SMALL) -> UNet:
    torch.manual_seed(0)
    unet = UNet(config).eval()
    for p in unet.parameters():  # wake the zero-initialised layers
        torch.nn.init.normal_(p, std=0.05)
    return unet


UNET = network()


def run(unet: UNet, height: int, width: int, **given: torch.Tensor | None) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    x, mu = torch.rand(2, 1, 3, height, width, generator=generator)
    conditions = [given.get(name) for name in ("f_T", "f_I", "f_D")]
    with torch.inference_mode():
        return unet(x, mu, torch.tensor([50]), unet.prepare(*conditions, 1))


@given(st.integers(1, 40), st.integers(1, 40))
@settings(max_examples=20)
def test_any_size_comes_back(height: int, width: int) -> None:
    output = run(UNET, height, width)
    assert output.shape == (1, 3, height, width)
    assert output.isfinite().all()


@pytest.mark.parametrize("name", ["f_T", "f_I", "f_D"])
def test_every_condition_matters(name: str) -> None:
    plain = run(UNET, 16, 16)
    given_ = run(UNET, 16, 16, **{name: torch.ones(1, 16)})
    assert not torch.equal(plain, given_)


def test_without_semantic_attention_the_caption_is_ignored() -> None:
    unet = network(dataclasses.replace(SMALL, semantic=False))
    given_ = run(unet, 16, 16, f_T=torch.ones(1, 16))
    assert torch.equal(run(unet, 16, 16), given_)


def test_missing_condition_is_the_null() -> None:
    null = UNET.null["image"].detach()[None]
    assert torch.equal(run(UNET, 16, 16), run(UNET, 16, 16, f_I=null))


def test_local_network_does_not_see_far() -> None:
    """Without self-attention a change in one corner leaves the far corner as it was."""
    local = dataclasses.replace(SMALL, attention=("none", "none"), self_attention=False)
    unet = network(local)
    x = torch.zeros(1, 3, 256, 256)
    changed = x.clone()
    changed[..., :8, :8] = 1
    with torch.inference_mode():
        conditioning = unet.prepare(None, None, None, 1)
        t = torch.tensor([100])
        first, second = (unet(image, x, t, conditioning) for image in (x, changed))
    assert (first - second)[..., :8, :8].abs().max() > 0
    assert torch.equal(first[..., -64:, -64:], second[..., -64:, -64:])


def test_one_token_shortcut_equals_full_attention() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(64, 32, 16)
    x, token = torch.randn(2, 5, 64), torch.randn(2, 1, 16)
    short = attention(x, attention.prepare(token)).expand(2, 5, 64)
    full = attention(x, attention.prepare(token.expand(2, 3, 16)))
    assert torch.allclose(short, full, atol=1e-6)


def test_linear_attention_is_linear_in_memory_and_keeps_shape() -> None:
    x = torch.randn(1, 32, 12, 20)
    assert LinearAttention(32)(x).shape == x.shape


def test_batch_does_not_matter() -> None:
    x, mu = torch.rand(2, 4, 3, 32, 32)
    f = torch.randn(4, 16)
    t = torch.tensor([10, 40, 70, 100])
    with torch.inference_mode():
        together = UNET(x, mu, t, UNET.prepare(f, f, f, 4))
        for i in range(4):
            own = UNET.prepare(f[i : i + 1], f[i : i + 1], f[i : i + 1], 1)
            alone = UNET(x[i : i + 1], mu[i : i + 1], t[i : i + 1], own)
            assert torch.allclose(alone[0], together[i], atol=1e-5)


def test_a_network_with_more_blocks_starts_as_the_one_without() -> None:
    """So a trained network can be deepened and trained on."""
    deeper = UNet(dataclasses.replace(SMALL, more_blocks=(2, 1))).eval()
    with pytest.raises(BundleError, match="missing"):
        load_strictly(deeper, UNET.state_dict())
    load_strictly(deeper, UNET.state_dict(), may_miss=r"\.more\.")
    assert torch.allclose(run(deeper, 24, 40), run(UNET, 24, 40), atol=1e-6)
    block = deeper.ups[-1].more[1]  # of the first level, the last on the way up
    torch.nn.init.normal_(block.conv2.weight, std=0.05)
    assert not torch.allclose(run(deeper, 24, 40), run(UNET, 24, 40), atol=1e-3)


def test_more_blocks_are_named_for_every_level() -> None:
    with pytest.raises(BundleError, match="more_blocks"):
        dataclasses.replace(SMALL, more_blocks=(2,))
