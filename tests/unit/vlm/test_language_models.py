"""Views, tokenizer, CLIP with controller and LoRA, BLIP: small real models."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmir.config import load_preset
from vlmir.errors import BundleError, OptionError
from vlmir.vlm.captioner import BlipCaptioner, build_blip
from vlmir.vlm.clip import DegradationCLIP, lora_tensors, merge_lora
from vlmir.vlm.embedder import CERTAIN, ClipEmbedder
from vlmir.vlm.preprocess import clip_input, content_view, detail_view
from vlmir.vlm.tokenizer import BOS_ID, EOS_ID, PAD_ID, CaptionTokenizer, ClipTokenizer

PRESET = load_preset("tiny")
CAPTIONS = ["a dog runs on the grass .", "two people in the snow .", "a child in a red shirt ."]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CaptionTokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return CaptionTokenizer.train(CAPTIONS, 200, path)


@pytest.fixture(scope="module")
def network() -> DegradationCLIP:
    torch.manual_seed(0)
    return DegradationCLIP(PRESET.embedder, len(PRESET.labels)).eval()


@given(st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=25, deadline=None)
def test_views_of_any_size(height: int, width: int) -> None:
    pixels = torch.rand(1, 3, height, width)
    for resize in ("crop", "squash"):
        view = content_view(pixels, 64, resize)
        assert view.shape == (1, 3, 64, 64)
        assert view.min() >= 0 and view.max() <= 1
    assert detail_view(pixels, 64).shape == (1, 3, 64, 64)
    assert clip_input(pixels, 64, resize="squash", detail=True).shape == (1, 6, 64, 64)


def test_detail_shows_true_pixels_in_block_phase() -> None:
    pixels = torch.arange(480 * 640).float().view(1, 1, 480, 640).expand(1, 3, -1, -1)
    mosaic = detail_view(pixels, 160)
    top_left = mosaic[0, 0, 0::32, 0::32].round()
    assert (top_left // 640 % 8 == 0).all()
    assert (top_left % 640 % 8 == 0).all()
    assert torch.allclose(mosaic[0, 0, :32, :32], pixels[0, 0, :32, :32])


def test_detail_shows_edges_as_brightness() -> None:
    stripes = (torch.arange(64) // 4 % 2).float().view(1, 1, 1, 64).expand(1, 3, 64, 64)
    _, right, below = detail_view(stripes, 64)[0]
    assert right.mean() > 0.2
    assert below.abs().max() == 0


def test_tokenizer_round_trip_and_frame(tokenizer: CaptionTokenizer) -> None:
    ids = tokenizer(["A dog in the snow .", "a " * 50], 12)
    assert ids.shape == (2, 12)
    assert (ids[:, 0] == BOS_ID).all()
    assert ids[1, -1] == EOS_ID
    assert ids[0, -1] == PAD_ID
    assert tokenizer.decode(ids[0, 1:].tolist()) == "a dog in the snow."


def test_clips_own_words_and_frame() -> None:
    ids = ClipTokenizer()(["motion-blurry", "a " * 50], 8)
    assert ids[0].tolist() == [49406, 7860, 268, 21977, 49407, 0, 0, 0]
    assert ids[1].tolist() == [49406, *[320] * 6, 49407]


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tokenizer.json"
    file.write_text("{}")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        CaptionTokenizer(file)


def test_training_starts_from_plain_clip(network: DegradationCLIP) -> None:
    views = torch.randn(2, 6, 160, 160)
    ids = torch.tensor([[BOS_ID, 7, 9, EOS_ID] + [PAD_ID] * 28])
    with torch.inference_mode():
        f_I, f_D = network.encode_image(views)
        assert torch.allclose(f_I, network.clip.encode_image(views[:, :3]), atol=1e-5)
        assert torch.allclose(network.encode_caption(ids), network.encode_text(ids), atol=1e-5)
    assert f_D.shape == (2, PRESET.embedder.clip.embed_dim)


def test_only_controller_lora_and_scales_are_trained(network: DegradationCLIP) -> None:
    trained = {n.split(".")[0] for n, p in network.named_parameters() if p.requires_grad}
    assert trained == {"controller", "caption_encoder", "logit_scale", "degradation_scale"}
    text = [n for n, p in network.named_parameters() if n.startswith("caption") and p.requires_grad]
    assert text and all("lora_" in name for name in text)


def test_merged_lora_equals_the_trained_layers(network: DegradationCLIP) -> None:
    for name, p in network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    merged = DegradationCLIP(PRESET.embedder, len(PRESET.labels), network.clip, lora=False).eval()
    merge_lora(merged, lora_tensors(network))
    ids = torch.tensor([[BOS_ID, 5, 8, EOS_ID] + [PAD_ID] * 28])
    with torch.inference_mode():
        ours, theirs = merged.encode_caption(ids), network.encode_caption(ids)
        assert torch.allclose(ours, theirs, atol=1e-5)
        assert not torch.allclose(ours, network.encode_text(ids), atol=1e-3)


def test_a_foreign_lora_update_is_refused(network: DegradationCLIP) -> None:
    merged = DegradationCLIP(PRESET.embedder, len(PRESET.labels), network.clip, lora=False)
    with pytest.raises(BundleError, match="nowhere"):
        merge_lora(merged, {"nowhere.A": torch.ones(1, 1), "nowhere.B": torch.ones(1, 1)})


def test_embedder_gives_probabilities(
    network: DegradationCLIP, tokenizer: CaptionTokenizer
) -> None:
    embedder = ClipEmbedder(network, tokenizer, PRESET.labels)
    network.set_labels(embedder.tokenize(PRESET.labels))
    seen = embedder.embed_image(np.random.default_rng(0).random((50, 70, 3), np.float32))
    assert sum(seen.degradations.values()) == pytest.approx(1, abs=1e-5)
    assert tuple(seen.degradations) == PRESET.labels
    assert torch.equal(embedder.embed_label("hazy"), network.prototypes[1])
    with pytest.raises(OptionError, match="foggy"):
        embedder.embed_label("foggy")


@pytest.mark.parametrize("size", [(50, 70), (1, 1), (2, 300)])
def test_the_corners_are_judged_beside_the_whole(
    network: DegradationCLIP,
    tokenizer: CaptionTokenizer,
    size: tuple[int, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = dataclasses.replace(network.config, typical_damage=False)
    monkeypatch.setattr(network, "config", own)
    embedder = ClipEmbedder(network, tokenizer, PRESET.labels)
    network.set_labels(embedder.tokenize(PRESET.labels))
    picture = np.random.default_rng(0).random((*size, 3), np.float32)
    rows, columns = (math.ceil(0.65 * n) for n in size)
    top, left = ((n - m) // 8 * 8 for n, m in zip(size, (rows, columns), strict=True))
    corners = [
        picture[a:b, c:d]
        for a, b in ((0, rows), (top, None))
        for c, d in ((0, columns), (left, None))
    ]
    views = torch.cat([embedder.view(part) for part in (picture, *corners)])
    views = torch.cat([views, views.flip(-1)])
    with torch.inference_mode():
        logits = network.degradation_logits(network.encode_image(views)[1])
    seen = embedder.embed_image(picture)
    expected = dict(zip(PRESET.labels, logits.mean(0).softmax(0).tolist(), strict=True))
    assert seen.degradations == pytest.approx(expected, abs=1e-4)
    f_I, f_D, alone = embedder.see(embedder.view(picture))
    assert torch.allclose(seen.f_I, f_I[0], atol=1e-4)
    overruled = logits[0].argmax() != logits.mean(0).argmax()
    damage = network.prototypes[logits.mean(0).argmax()] if overruled else f_D[0]
    assert torch.allclose(seen.f_D, damage, atol=1e-4)
    monkeypatch.setattr(network, "config", dataclasses.replace(network.config, window=None))
    whole = embedder.embed_image(picture).degradations
    assert list(whole.values()) == pytest.approx(alone[0].softmax(-1).tolist(), abs=1e-4)


def test_captioner_says_something_for_any_size(tokenizer: CaptionTokenizer) -> None:
    torch.manual_seed(0)
    captioner = BlipCaptioner(
        PRESET.captioner, build_blip(PRESET.captioner, tokenizer.vocab_size), tokenizer
    )
    for shape in ((1, 1, 3), (37, 91, 3)):
        assert isinstance(captioner.caption(np.zeros(shape, np.float32)), str)


def test_only_votes_on_the_label_are_cast_in_another_type(
    network: DegradationCLIP, tokenizer: CaptionTokenizer
) -> None:
    with torch.no_grad():
        for p in network.controller.parameters():  # or f_D would be the convolutional path's alone
            p += 0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    exact, quick = (
        ClipEmbedder(network, tokenizer, PRESET.labels, voting=dtype)
        for dtype in (torch.float32, torch.bfloat16)
    )
    network.set_labels(exact.tokenize(PRESET.labels))
    views = torch.randn(4, 6, 160, 160)
    assert all(map(torch.equal, exact.see(views), quick.see(views)))
    votes, others = exact.vote(views), quick.vote(views)
    with torch.inference_mode():
        alone = network.controller(views)[0]
        assert torch.allclose(votes, network.degradation_logits(alone), atol=1e-3)
        f_D, seen = exact._voter.damage(views), quick._voter.damage(views.bfloat16()).float()
    assert not torch.equal(votes, others)
    assert torch.allclose(f_D, alone, atol=1e-4) and not torch.equal(f_D, seen)
    assert F.cosine_similarity(f_D, seen, dim=-1).min() > 0.999


def test_a_sure_whole_is_believed_without_votes(
    network: DegradationCLIP, tokenizer: CaptionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ClipEmbedder, "vote", lambda self, views: pytest.fail("asked without need"))
    embedder = ClipEmbedder(network, tokenizer, PRESET.labels)
    network.set_labels(embedder.tokenize(PRESET.labels))
    picture = np.random.default_rng(0).random((50, 70, 3), np.float32)
    with torch.no_grad():
        monkeypatch.setattr(network, "degradation_scale", torch.nn.Parameter(torch.tensor(12.0)))
    seen = embedder.embed_image(picture)
    _, _, logits = embedder.see(embedder.view(picture))
    assert list(seen.degradations.values()) == logits[0].softmax(-1).tolist()
    assert max(seen.degradations.values()) >= CERTAIN
