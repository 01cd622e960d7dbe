"""Public weights: from a local copy, and a clear word where there are none."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlmir.config import load_preset
from vlmir.errors import OptionError, UnavailableError
from vlmir.vlm.captioner import build_blip
from vlmir.vlm.hub import public_captioner, public_clip

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


@pytest.mark.filterwarnings("default")
def test_a_local_copy_of_blip_is_loaded(tmp_path: Path) -> None:
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(95))]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "BertTokenizer"})
    )
    config = dataclasses.replace(TINY.captioner, max_tokens=6, hub="someone/blip")
    build_blip(config, len(words)).save_pretrained(tmp_path)
    captioner = public_captioner(config, tmp_path)
    assert isinstance(captioner.caption(np.zeros((20, 20, 3), np.float32)), str)


@pytest.mark.filterwarnings("default")
def test_a_local_copy_of_clip_is_loaded(tmp_path: Path) -> None:
    import open_clip

    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-32")
    save_file(clip.state_dict(), tmp_path / "clip.safetensors")
    loaded = public_clip(BASE.embedder, tmp_path / "clip.safetensors")
    assert torch.equal(loaded.visual.proj, clip.visual.proj)
