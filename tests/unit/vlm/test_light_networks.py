"""Our own CLIP and BLIP, which are there to be read, against open_clip's and transformers'."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.small import small_preset
from vlmir.bundle import load_bundle
from vlmir.config import ClipConfig
from vlmir.errors import BundleError
from vlmir.parts import build_captioner
from vlmir.vlm.blip import Blip
from vlmir.vlm.captioner import build_blip
from vlmir.vlm.clip import build_clip, encode_tower
from vlmir.vlm.clip_towers import Clip

SMALL = small_preset()
WORDS, LENGTH = 60, 12
END = 2.5
"""Added to the logit of the end, which so comes early, late and never."""


def clip_config(**text: Any) -> ClipConfig:
    config = SMALL.embedder.clip
    return replace(config, text_cfg=replace(config.text_cfg, **text))


@pytest.mark.parametrize("text", [{"pool_type": "eos", "eos_id": 3}, {"pool_type": "argmax"}])
def test_clip_is_open_clips(text: dict[str, Any]) -> None:
    config = clip_config(**text)
    torch.manual_seed(0)
    theirs = build_clip(config).eval()
    ours = Clip(config).eval()
    assert not any(ours.load_state_dict(theirs.state_dict()))
    pixels = torch.randn(2, 3, 64, 64)
    ids = torch.randint(4, config.text_cfg.vocab_size, (3, config.text_cfg.context_length))
    ids[:, 7] = 3
    with torch.inference_mode():
        for one, other in (
            (ours.encode_image(pixels), theirs.encode_image(pixels)),
            (ours.encode_text(ids), theirs.encode_text(ids)),
            (encode_tower(ours.visual, pixels), encode_tower(theirs.visual, pixels)),
        ):
            assert torch.allclose(one, other, atol=1e-6)


@pytest.fixture(scope="module")
def both() -> tuple[Any, Blip]:
    """With weights so large that sentences differ, and an end that is likely enough to come at any length."""
    torch.manual_seed(0)
    config = replace(SMALL.captioner, text_layers=2, vision_layers=2, heads=4)
    theirs = build_blip(config, WORDS, positions=LENGTH).eval()
    for name, weight in theirs.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.25)
        elif name.endswith("bias"):
            torch.nn.init.normal_(weight, std=0.1)
    with torch.no_grad():
        theirs.text_decoder.cls.predictions.bias[3] += END
    ours = Blip(config, WORDS, positions=LENGTH, bos_id=2, eos_id=3)
    missing, unknown = ours.load_state_dict(theirs.state_dict(), strict=False)
    ours.tie_weights()
    assert not missing and not unknown
    return theirs, ours.eval()


@pytest.mark.parametrize("beams", [1, 2, 3])
def test_blip_says_what_transformers_says(both: tuple[Any, Blip], beams: int) -> None:
    views = 3 * torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    sentences = []
    for network in both:
        with torch.inference_mode():
            ids = network.generate(pixel_values=views, num_beams=beams, max_length=LENGTH)
        rows = [row[1:] for row in ids.tolist()]
        sentences.append([row[: row.index(3)] if 3 in row else row for row in rows])
    assert sentences[0] == sentences[1]
    lengths = {len(sentence) for sentence in sentences[0]}
    assert len(lengths) > 2 and LENGTH - 1 in lengths


def test_a_caption_does_not_depend_on_its_neighbours(both: tuple[Any, Blip]) -> None:
    views = 3 * torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    how = {"num_beams": 3, "max_length": LENGTH}
    together = both[1].generate(views, **how)
    alone = torch.cat([both[1].generate(view[None], **how) for view in views])
    assert torch.equal(together, alone)


def test_a_bundles_captioner_is_either(small_bundle_folder: Path) -> None:
    bundle = load_bundle(small_bundle_folder)
    ours, theirs = (build_captioner(bundle, trainable=one) for one in (False, True))
    assert isinstance(ours.model, Blip) and not isinstance(theirs.model, Blip)
    views = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert ours.caption_batch(views) == theirs.caption_batch(views)
    saved = theirs.model.state_dict()
    assert ours.model.state_dict().keys() == {n for n in saved if "position_ids" not in n}


def test_weights_of_other_sizes_are_refused(small_bundle_folder: Path) -> None:
    bundle = load_bundle(small_bundle_folder)
    captioner = replace(bundle.preset.captioner, text_layers=2)
    with pytest.raises(BundleError, match="do not fit"):
        build_captioner(
            replace(bundle, preset=replace(bundle.preset, captioner=captioner)), trainable=False
        )
