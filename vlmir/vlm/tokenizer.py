"""Captions to token ids and back, in word pieces or in CLIP's words.

Word pieces are our own for ``tiny`` and BERT's for public BLIP weights. Hugging Face's ``tokenizers`` reads them; their
file is plain JSON and ships in the bundle. CLIP's words ship in open_clip.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol, cast

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
        self._backend = _module_of_open_clip("tokenizer").SimpleTokenizer()

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """B captions → B×length int64 ids: start, pieces, end, zeros; a long caption is cut before the end."""
        return cast(Tensor, self._backend(list(captions), length))


def _module_of_open_clip(name: str) -> Any:
    """One module that needs no other: importing the package takes seconds."""
    package = find_spec("open_clip")
    assert package is not None and package.origin is not None
    file = Path(package.origin).with_name(f"{name}.py")
    spec = spec_from_file_location(f"{__name__}.open_clip_{name}", file)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class CaptionTokenizer:
    """Lower-cased word pieces over a trained vocabulary: ours, or BERT's as public BLIP weights read them.

    Attributes:
        text: What ``tokenizer.json`` holds.
        bos_id: Id that a caption begins with: of [BOS]; of [DEC] or else [CLS] with BERT's words.
        eos_id: Id that it ends with: of [EOS], or [SEP] with BERT's words.
    """

    def __init__(self, path: Path) -> None:
        """Load ``tokenizer.json``.

        Raises:
            BundleError: The file is missing or no tokenizer.
        """
        try:
            self._load(path.read_text("utf-8"))
        except Exception as error:  # the Rust binding raises bare Exception
            raise BundleError(f"{path} is no tokenizer file: {error}") from error

    @classmethod
    def of(cls, backend: Any, *, bos_id: int, eos_id: int) -> CaptionTokenizer:
        """A ``tokenizers.Tokenizer`` with the ids between which its captions stand.

        Raises:
            BundleError: Nothing in it tells these two ids.
        """
        if backend.token_to_id("[BOS]") is None and backend.id_to_token(bos_id) is None:
            backend.add_special_tokens(["[DEC]"])  # BLIP's begin token; BERT's words lack it
        tokenizer = cls.__new__(cls)
        tokenizer._load(backend.to_str(pretty=True))
        if (tokenizer.bos_id, tokenizer.eos_id) != (bos_id, eos_id):
            raise BundleError(
                f"The tokenizer begins and ends captions with {tokenizer.bos_id} and {tokenizer.eos_id}, "
                f"but its network with {bos_id} and {eos_id}."
            )
        return tokenizer

    def _load(self, text: str) -> None:
        from tokenizers import Tokenizer as Backend

        self.text = text
        self._backend = Backend.from_str(text)
        self.bos_id = self._first_of("[BOS]", "[DEC]", "[CLS]")
        self.eos_id = self._first_of("[EOS]", "[SEP]")

    def _first_of(self, *names: str) -> int:
        """The id of the first of these tokens that there is."""
        ids = (self._backend.token_to_id(name) for name in names)
        found = next((number for number in ids if number is not None), None)
        if found is None:
            raise BundleError(f"The tokenizer has none of the tokens {', '.join(names)}.")
        return int(found)

    @property
    def vocab_size(self) -> int:
        """Number of entries, special tokens included."""
        return int(self._backend.get_vocab_size())

    def __call__(self, captions: Sequence[str], length: int) -> Tensor:
        """B captions → B×length int64 ids: begin, pieces, end, [PAD]…; a long caption is cut before the end."""
        ids = torch.full((len(captions), length), PAD_ID, dtype=torch.int64)
        encodings = self._backend.encode_batch(list(captions), add_special_tokens=False)
        for row, encoding in zip(ids, encodings, strict=True):
            pieces = [self.bos_id, *encoding.ids[: length - 2], self.eos_id]
            row[: len(pieces)] = torch.tensor(pieces)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text; everything from the first end token on, and special tokens, are dropped."""
        kept = list(ids)
        if self.eos_id in kept:
            kept = kept[: kept.index(self.eos_id)]
        return str(self._backend.decode(kept, skip_special_tokens=True)).strip()

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
