"""The measures of captions and of CLIP, on a handful of captioned photos."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.unit.training.pictures import write_captioned
from training.data.captioned import CaptionedPhotos
from training.measure.language import caption_bleu, retrieval_recall
from vlmir.bundle import load_bundle
from vlmir.parts import build_captioner, build_embedder, build_frozen_clip
from vlmir.vlm.preprocess import content_view, normalize


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> CaptionedPhotos:
    folder = tmp_path_factory.mktemp("captioned") / "captioned"
    write_captioned(folder, 9)
    return CaptionedPhotos(folder)


def test_recall_is_that_of_open_clip(small_bundle_folder: Path, photos: CaptionedPhotos) -> None:
    bundle = load_bundle(small_bundle_folder)
    embedder, clip = build_embedder(bundle), build_frozen_clip(bundle).eval()
    views = content_view(
        photos.batch(photos.test), bundle.preset.embedder.clip.vision_cfg.image_size
    )
    said = [
        (row, text) for row, i in enumerate(photos.test.tolist()) for text in photos.captions[i]
    ]
    with torch.inference_mode():
        seen = clip.encode_image(normalize(views), normalize=True)
        read = clip.encode_text(embedder.tokenize([text for _, text in said]), normalize=True)
    first = (read @ seen.T).argmax(1).tolist()
    expected = sum(found == row for found, (row, _) in zip(first, said, strict=True)) / len(said)
    assert retrieval_recall(embedder, photos, 1) == pytest.approx(expected)
    assert retrieval_recall(embedder, photos, len(photos.test)) == 1


def test_bleu_is_a_share_of_words(small_bundle_folder: Path, photos: CaptionedPhotos) -> None:
    assert 0 <= caption_bleu(build_captioner(load_bundle(small_bundle_folder)), photos) < 100
