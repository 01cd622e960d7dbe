"""Captions to token ids and back: a small word-piece tokenizer of our own for ``tiny``, and CLIP's for public weights.

Ours wraps Hugging Face's ``tokenizers``; its file is plain JSON and ships in the bundle. CLIP's ships in open_clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor

from vlmir.errors import BundleError

__all__ = [
    "BOS_ID",
    "EOS_ID",
    "PAD_ID",
    "SPECIAL_TOKENS",
    "CaptionTokenizer",
    "ClipTokenizer",
    "Tokenizer",
]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[BOS]", "[EOS]")
"""Special tokens; their ids are their places here."""
PAD_ID, BOS_ID, EOS_ID = 0, 2, 3


class Tokenizer(Protocol):
    """Captions to ids: what a text tower needs."""

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """B captions → B×length int64 ids, padded or cut, with begin and end tokens."""


class ClipTokenizer:
    """CLIP's byte-pair encoding of 49,408 entries (Radford et al. 2021), as open_clip packages it; needs no network."""

    def __init__(self) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self._backend = SimpleTokenizer()

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """B captions → B×length int64 ids: start, pieces, end, zeros; a long caption is cut before the end."""
        return cast(Tensor, self._backend(list(captions), length))


class CaptionTokenizer:
    """Lower-cased word pieces over a trained vocabulary."""

    def __init__(self, path: Path) -> None:
        """Load ``tokenizer.json``.

        Raises:
            BundleError: The file is missing or no tokenizer.
        """
        from tokenizers import Tokenizer as Backend

        try:
            self._backend = Backend.from_file(str(path))
        except Exception as error:  # the Rust binding raises bare Exception
            raise BundleError(f"{path} is no tokenizer file: {error}") from error

    @property
    def vocab_size(self) -> int:
        """Number of entries, special tokens included."""
        return int(self._backend.get_vocab_size())

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """B captions → B×length int64 ids: [BOS] pieces [EOS] [PAD]…; a long caption is cut before [EOS]."""
        ids = torch.full((len(captions), length), PAD_ID, dtype=torch.int64)
        for row, encoding in zip(ids, self._backend.encode_batch(list(captions)), strict=True):
            pieces = [BOS_ID, *encoding.ids[: length - 2], EOS_ID]
            row[: len(pieces)] = torch.tensor(pieces)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text; everything from the first [EOS] on, and special tokens, are dropped."""
        kept = list(ids)
        if EOS_ID in kept:
            kept = kept[: kept.index(EOS_ID)]
        return str(self._backend.decode(kept, skip_special_tokens=True))

    @staticmethod
    def train(captions: Iterable[str], vocab_size: int, path: Path) -> CaptionTokenizer:
        """Learn a vocabulary from captions, write it to ``path``, and load it."""
        from tokenizers import Tokenizer as Backend
        from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

        backend = Backend(models.WordPiece(unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.decoder = decoders.WordPiece()
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
        )
        backend.train_from_iterator(captions, trainer)
        path.parent.mkdir(parents=True, exist_ok=True)
        backend.save(str(path))
        return CaptionTokenizer(path)
