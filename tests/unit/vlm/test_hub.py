"""Public weights: from a local copy, and a clear word where there are none."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from tests.foreign import SMALL_CLIP
from tests.small import small_preset
from vlmir.bundle import load_bundle
from vlmir.config import CaptionerConfig, ClipTextConfig, load_preset
from vlmir.errors import BundleError, OptionError, UnavailableError
from vlmir.nn import UNet
from vlmir.parts import build_captioner, build_embedder
from vlmir.vlm.captioner import build_blip
from vlmir.vlm.clip import build_clip
from vlmir.vlm.hub import public_captioner, public_clip
from vlmir.vlm.tokenizer import CaptionTokenizer, ClipTokenizer

BASE, TINY = load_preset("base"), load_preset("tiny")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))


@pytest.mark.filterwarnings("default")
def test_offline_is_said_in_one_sentence() -> None:
    with pytest.raises(UnavailableError, match=r"Salesforce/blip.*local copy"):
        public_captioner(BASE.captioner)
    with pytest.raises(UnavailableError, match=r"laion2b.*local copy"):
        public_clip(BASE.embedder)


def test_a_missing_local_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"clip\.safetensors"):
        public_clip(BASE.embedder, tmp_path / "clip.safetensors")


def test_tiny_names_no_public_weights() -> None:
    with pytest.raises(OptionError, match="base"):
        public_captioner(TINY.captioner)


WORDS = [
    *("[PAD]", "[unused0]", "[unused1]", "[unused2]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *("a", "dog", "snow", "##man", "##s", "run", "##ning", ".", ",", "in"),
    *(f"word{i}" for i in range(60)),
]
"""BERT's: the first ids are never used, and pieces within words begin with ##."""


def blip_folder(folder: Path) -> CaptionerConfig:
    """A small BLIP as the hub has it: more rows than words and than a caption is long, and begin and end of its own."""
    torch.manual_seed(0)
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    config = dataclasses.replace(TINY.captioner, max_tokens=12, hub="someone/blip")
    blip = build_blip(
        config, len(WORDS) + 2, positions=40, bos_id=len(WORDS), eos_id=WORDS.index("[SEP]")
    )
    for parameter in blip.parameters():  # so that no two words are all but equally likely
        parameter.data.mul_(4)
    blip.save_pretrained(folder)
    return config


@pytest.mark.filterwarnings("default")
def test_a_local_copy_of_blip_is_loaded(tmp_path: Path) -> None:
    captioner, words = public_captioner(blip_folder(tmp_path / "hub"), tmp_path / "hub")
    assert isinstance(captioner.caption(np.zeros((20, 20, 3), np.float32)), str)
    assert (words.bos_id, words.eos_id) == (len(WORDS), WORDS.index("[SEP]"))
    (row,) = words(["a snowman runs"], 8).tolist()
    pieces = [WORDS.index(piece) for piece in ("a", "snow", "##man", "run", "##s")]
    assert row == [words.bos_id, *pieces, words.eos_id, 0]


@pytest.mark.filterwarnings("default")
def test_berts_words_are_decoded_as_hugging_face_does(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    _, words = public_captioner(blip_folder(tmp_path / "hub"), tmp_path / "hub")
    theirs = AutoTokenizer.from_pretrained(tmp_path / "hub")
    (tmp_path / "tokenizer.json").write_text(words.text)
    read = CaptionTokenizer(tmp_path / "tokenizer.json")
    ids = [
        WORDS.index(w)
        for w in [
            "a",
            "snow",
            "##man",
            "run",
            "##s",
            "in",
            "word3",
            ",",
            "a",
            "dog",
            "run",
            "##ning",
            ".",
        ]
    ]
    ids += [words.eos_id, 0, 0]
    assert read.decode(ids) == words.decode(ids) == theirs.decode(ids, skip_special_tokens=True)
    assert read.decode(ids) == "a snowman runs in word3, a dog running."
    assert (read.bos_id, read.eos_id) == (words.bos_id, words.eos_id)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        ids = torch.randint(1, len(WORDS), (9,), generator=generator).tolist()
        ids = [i for i in ids if i != words.eos_id]
        assert read.decode(ids) == theirs.decode(ids, skip_special_tokens=True).strip()


def test_words_that_are_not_the_networks_are_refused(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models

    backend = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}))
    with pytest.raises(BundleError, match=r"but its network with 5 and 8"):
        CaptionTokenizer.of(backend, bos_id=5, eos_id=8)
    with pytest.raises(BundleError, match=r"none of the tokens \[EOS\], \[SEP\]"):
        CaptionTokenizer.of(Tokenizer(models.WordPiece({"[CLS]": 0})), bos_id=0, eos_id=1)


@pytest.mark.filterwarnings("default")
def test_public_weights_become_a_bundle_that_captions_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `base` is exported: BLIP and CLIP from the hub, stages 1 and 2 from checkpoints."""
    from training import pretrained
    from training.engine.checkpoints import Checkpoints
    from training.export import export

    small = small_preset()
    clip = dataclasses.replace(
        small.embedder.clip, text_cfg=ClipTextConfig(**SMALL_CLIP["text_cfg"])
    )
    preset = dataclasses.replace(
        small,
        captioner=blip_folder(tmp_path / "hub"),
        embedder=dataclasses.replace(small.embedder, clip=clip, tokenizer="open_clip"),
    )
    public, _ = public_captioner(preset.captioner, tmp_path / "hub")
    monkeypatch.setattr(
        pretrained, "public_captioner", partial(public_captioner, folder=tmp_path / "hub")
    )
    torch.manual_seed(0)
    own = build_clip(clip)
    monkeypatch.setattr(pretrained, "public_clip", lambda config: own)
    parts = pretrained.load_pretrained(preset, None)
    embedder = pretrained.new_embedder(preset, parts, None)
    Checkpoints(tmp_path / "1" / "embedder").save(1, {"model": embedder.state_dict()})
    unet = UNet(preset.sampler.unet).state_dict()
    state = {"ema": unet, "prototypes": torch.ones(len(preset.labels), 32)}
    Checkpoints(tmp_path / "2" / "sampler").save(1, state)
    out = tmp_path / "bundle"
    export(
        out,
        preset=preset,
        pretrained=None,
        stage1=tmp_path / "1",
        stage2=tmp_path / "2",
        release="base-1",
    )
    bundle = load_bundle(out)
    captioner = build_captioner(bundle)
    size = preset.captioner.image_size
    views = torch.rand((2, 3, size, size), generator=torch.Generator().manual_seed(0))
    captions = captioner.caption_batch(views)
    assert captions == public.caption_batch(views) and all(captions)
    trainable = build_captioner(bundle, trainable=True)
    words = torch.tensor([[len(WORDS), 9, 10]]).expand(2, -1)
    with torch.inference_mode():
        logits, theirs = (c.model(views, input_ids=words).logits for c in (trainable, public))
    assert torch.allclose(logits, theirs, rtol=1e-2, atol=5e-2)  # stored in half precision
    ids = ClipTokenizer()(["a dog"], clip.text_cfg.context_length)
    assert torch.equal(build_embedder(bundle).tokenize(["a dog"]), ids)
    again, _ = pretrained.load_embedder(preset, None, out)
    assert again.captioner is not None and again.captioner.caption_batch(views) == captions


@pytest.mark.filterwarnings("default")
def test_a_local_copy_of_clip_is_loaded(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-32")
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    loaded = public_clip(BASE.embedder, tmp_path / "clip.safetensors")
    assert torch.equal(loaded.visual.proj, clip.visual.proj)
