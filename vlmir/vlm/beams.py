"""Beam search: the best sentences that a decoder of one word after the other can say."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Beams"]

_NEVER = -1e9
"""Score of what must not be chosen."""


class Beams:
    """A search for each of some pictures, which ends when none of its open sentences can beat those that are done.

    A sentence's score is the mean log-probability of its words.

    Args:
        pictures: How many there are, B.
        beams: Sentences that are followed for each.
        most: Most ids of a sentence, the first included.
        bos_id: Id that each begins with.
        eos_id: Id that ends it.
        device: Where to search.
    """

    def __init__(
        self, pictures: int, beams: int, most: int, bos_id: int, eos_id: int, device: torch.device
    ) -> None:
        self._most, self._eos, self._beams = most, eos_id, beams
        self.length = 1
        """Ids of each open sentence."""
        self._sentences = torch.full((pictures, beams, most), eos_id, device=device)
        self._sentences[:, :, 0] = bos_id
        self._done = self._sentences.clone()
        # At first all beams hold the same: the others must not be followed.
        self._scores = torch.full((pictures, beams), _NEVER, device=device)
        self._done_scores = self._scores.clone()
        self._scores[:, 0] = 0
        self._is_done = torch.zeros_like(self._scores, dtype=torch.bool)
        self._hopeful = torch.ones(pictures, 1, dtype=torch.bool, device=device)
        self._first = torch.arange(pictures, device=device)[:, None] * beams

    @property
    def open(self) -> bool:
        """Whether to go on."""
        return self.length < self._most and bool(self._hopeful.any())

    @property
    def last(self) -> Tensor:
        """The last id of each open sentence, (B · beams)×1."""
        return self._sentences[:, :, self.length - 1].reshape(-1, 1)

    @property
    def best(self) -> Tensor:
        """The best sentence of each picture, B×L."""
        return self._done[:, 0]

    def grow(self, log_probabilities: Tensor) -> Tensor:
        """Add a word to each sentence.

        Args:
            log_probabilities: Of the next word after each open sentence, (B · beams)×V.

        Returns:
            Number of the row that each open sentence goes on from, B · beams.
        """
        words = log_probabilities.shape[-1]
        scores = log_probabilities.view(*self._scores.shape, words) + self._scores[..., None]
        # Twice as many as there are beams, so that enough are left if those end.
        scores, chosen = scores.flatten(1).topk(2 * self._beams)
        parents, ids = chosen // words, chosen % words
        sentences = _rows(self._sentences, parents)
        sentences[:, :, self.length] = ids
        self.length += 1
        ends = (ids == self._eos) | (self.length >= self._most)
        self._finish(sentences, scores, ends)
        self._scores, kept = (scores + ends * _NEVER).topk(self._beams)
        self._sentences = _rows(sentences, kept)
        best_open = self._scores[:, :1] / (self.length - 1)
        worst_done = self._done_scores.amin(1, keepdim=True).where(self._is_done, _NEVER)
        self._hopeful &= (best_open > worst_done).any(1, keepdim=True)
        return (parents.gather(1, kept) + self._first).flatten()

    def _finish(self, sentences: Tensor, scores: Tensor, ends: Tensor) -> None:
        """Keep the best sentences of those that were done and those of the leading ones that end here."""
        ends = ends.clone()
        ends[:, self._beams :] = False
        final = scores / (self.length - 1) + (~self._hopeful | ~ends) * _NEVER
        self._done_scores, kept = torch.cat([self._done_scores, final], 1).topk(self._beams)
        self._done = _rows(torch.cat([self._done, sentences], 1), kept)
        self._is_done = torch.cat([self._is_done, ends], 1).gather(1, kept)


def _rows(sentences: Tensor, numbers: Tensor) -> Tensor:
    """Those of each picture's sentences, B×n×L, that ``numbers``, B×k, name."""
    return sentences.gather(1, numbers[..., None].expand(-1, -1, sentences.shape[-1]))
