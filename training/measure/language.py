"""How well the language parts know pictures: retrieval by CLIP, and BLEU of BLIP's captions."""

from __future__ import annotations

from collections import Counter

import torch
import torch.nn.functional as F
from torch import Tensor

from training.data.captioned import CaptionedPhotos
from vlmir.vlm.captioner import BlipCaptioner
from vlmir.vlm.embedder import ClipEmbedder
from vlmir.vlm.preprocess import content_view, normalize

__all__ = ["best_constant_bleu", "caption_bleu", "retrieval_recall"]

BATCH = 100
CANDIDATES = 200
"""How many sentences are tried as the best constant caption: the most frequent ones and word patterns."""


@torch.inference_mode()
def retrieval_recall(embedder: ClipEmbedder, photos: CaptionedPhotos, k: int) -> float:
    """Share of test captions whose photo is among the ``k`` most similar test photos (text → image R@k)."""
    clip = embedder.network.clip
    size = embedder.network.config.clip.vision_cfg.image_size
    images = torch.cat(
        [
            clip.encode_image(normalize(content_view(photos.batch(part), size)))
            for part in torch.split(photos.test, BATCH)
        ]
    )
    captions = [(row, c) for row, i in enumerate(photos.test.tolist()) for c in photos.captions[i]]
    ids = embedder.tokenize([caption for _, caption in captions])
    texts = torch.cat([clip.encode_text(part) for part in torch.split(ids, 500)])
    similarity: Tensor = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    own = similarity[torch.arange(len(captions)), torch.tensor([row for row, _ in captions])]
    rank = (similarity > own[:, None]).sum(1)
    return float((rank < k).float().mean())


def caption_bleu(captioner: BlipCaptioner, photos: CaptionedPhotos) -> float:
    """Corpus BLEU-4 (0…100) of the captions of the test photos against all their human captions."""
    size = captioner.config.image_size
    captions = []
    for part in torch.split(photos.test, BATCH):
        captions += captioner.caption_batch(content_view(photos.batch(part), size))
    return _bleu(captions, photos)


def best_constant_bleu(photos: CaptionedPhotos) -> tuple[float, str]:
    """The BLEU-4 of the best single sentence said of every test photo, and the sentence.

    Tried are the training captions whose words are, on average, the most frequent.
    """
    counts = Counter(word for caption in photos.train_captions for word in _words(caption).split())

    def commonness(caption: str) -> float:
        words = _words(caption).split()
        return sum(counts[word] for word in words) / len(words) if 7 <= len(words) <= 14 else 0.0

    tried = sorted({_words(c) for c in photos.train_captions}, key=commonness)[-CANDIDATES:]
    scored = [(_bleu([caption] * len(photos.test), photos), caption) for caption in tried]
    return max(scored)


def _bleu(captions: list[str], photos: CaptionedPhotos) -> float:
    from sacrebleu import corpus_bleu

    groups = [photos.captions[i] for i in photos.test.tolist()]
    references = [[_words(group[j]) for group in groups] for j in range(len(groups[0]))]
    return float(corpus_bleu([_words(c) for c in captions], references, lowercase=True).score)


def _words(caption: str) -> str:
    """Lower case, without the full stop, which every caption has."""
    return caption.lower().replace(".", " ").strip()
