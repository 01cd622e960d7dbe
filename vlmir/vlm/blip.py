"""BLIP (Li et al. 2022, arXiv 2201.12086) as it captions: a picture's tokens, and the sentence that beam search finds.

It says what transformers' ``BlipForConditionalGeneration`` says with the same weights, whose names its modules have.
That one is there to be trained; importing it takes longer than restoring a picture.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmir.config import CaptionerConfig
from vlmir.vlm.beams import Beams

__all__ = ["Blip"]

Pair = tuple[Tensor, Tensor]
"""Keys and values, each B×heads×N×width."""


class Blip(nn.Module):
    """A picture's tower and a decoder of captions.

    Args:
        config: The captioner of a preset.
        vocab_size: Rows of the word embeddings.
        positions: Rows of the position embeddings.
        bos_id: Id that a caption begins with.
        eos_id: Id that it ends with.
    """

    def __init__(
        self, config: CaptionerConfig, vocab_size: int, *, positions: int, bos_id: int, eos_id: int
    ) -> None:
        super().__init__()
        self.bos_id, self.eos_id = bos_id, eos_id
        self.vision_model = _Vision(config)
        self.text_decoder = _Decoder(config, vocab_size, positions)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.vision_model.post_layernorm.weight.device

    def tie_weights(self) -> None:
        """Make the output layer of the word embeddings: they are the same."""
        self.text_decoder.tie()

    @torch.inference_mode()
    def generate(self, pixel_values: Tensor, *, num_beams: int, max_length: int) -> Tensor:
        """B×3×S×S normalised views → B×L ids of the best captions, ``bos_id`` first, ``eos_id`` after the end.

        Args:
            pixel_values: The views.
            num_beams: Sentences that are followed at once.
            max_length: Most ids of a caption, the first included.
        """
        seen = self.vision_model(pixel_values)
        beams = Beams(len(seen), num_beams, max_length, self.bos_id, self.eos_id, seen.device)
        memory = self.text_decoder.look(seen.repeat_interleave(num_beams, 0))
        cache: list[Pair | None] = [None] * len(memory)
        while beams.open:
            words, position = beams.last, beams.length - 1
            logits, grown = self.text_decoder(words, position, memory, cache)
            parents = beams.grow(F.log_softmax(logits.float(), dim=-1))
            cache = [(keys[parents], values[parents]) for keys, values in grown]
        return beams.best


class _Vision(nn.Module):
    """The picture's tower: a ViT with its norms before the layers, B×3×S×S → B×N×width."""

    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        width, patches = config.vision_width, (config.image_size // config.patch_size) ** 2
        self.embeddings = nn.ParameterDict(
            {
                "class_embedding": torch.zeros(1, 1, width),
                "position_embedding": torch.zeros(1, patches + 1, width),
            }
        )
        size = config.patch_size
        self.embeddings.add_module("patch_embedding", nn.Conv2d(3, width, size, stride=size))
        layers = [_VisionLayer(width, config.heads) for _ in range(config.vision_layers)]
        self.encoder = nn.ModuleDict({"layers": nn.ModuleList(layers)})
        self.post_layernorm = nn.LayerNorm(width)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = cast(nn.Conv2d, self.embeddings.patch_embedding)(pixels).flatten(2).mT
        first = self.embeddings["class_embedding"].expand(len(pixels), -1, -1)
        x = torch.cat([first, patches], 1) + self.embeddings["position_embedding"]
        for layer in cast(nn.ModuleList, self.encoder["layers"]):
            x = layer(x)
        return cast(Tensor, self.post_layernorm(x))


class _VisionLayer(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.layer_norm1, self.layer_norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.self_attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "projection": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = self.self_attn["qkv"](self.layer_norm1(x)).chunk(3, dim=-1)
        q, k, v = (_split(part, self._heads) for part in parts)
        seen = F.scaled_dot_product_attention(q, k, v)
        x = x + self.self_attn["projection"](_joined(seen))
        return cast(Tensor, x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.layer_norm2(x)))))


class _Decoder(nn.Module):
    """The decoder of captions: a BERT that looks at the picture, one word at a time."""

    def __init__(self, config: CaptionerConfig, vocab_size: int, positions: int) -> None:
        super().__init__()
        width = config.text_width
        layers = [_TextLayer(config) for _ in range(config.text_layers)]
        self.bert = nn.ModuleDict(
            {
                "embeddings": nn.ModuleDict(
                    {
                        "word_embeddings": nn.Embedding(vocab_size, width),
                        "position_embeddings": nn.Embedding(positions, width),
                        "LayerNorm": _norm(width),
                    }
                ),
                "encoder": nn.ModuleDict({"layer": nn.ModuleList(layers)}),
            }
        )
        self.cls = nn.ModuleDict({"predictions": _Predictions(width, vocab_size)})

    def tie(self) -> None:
        """See :meth:`Blip.tie_weights`."""
        words = cast(nn.ModuleDict, self.bert["embeddings"])["word_embeddings"]
        cast(_Predictions, self.cls["predictions"]).tie(cast(nn.Embedding, words))

    def look(self, seen: Tensor) -> list[Pair]:
        """Each layer's keys and values of a picture, which are the same for all words."""
        return [layer.crossattention.pair(seen) for layer in self._layers()]

    def forward(
        self, words: Tensor, position: int, memory: list[Pair], cache: list[Pair | None]
    ) -> tuple[Tensor, list[Pair]]:
        """The next word after one more.

        Args:
            words: Its id in each sentence, R×1.
            position: Its place in them.
            memory: What :meth:`look` gave.
            cache: Each layer's keys and values of the words before; None before the first.

        Returns:
            Logits, R×V, and the cache with this word.
        """
        embeddings = cast(nn.ModuleDict, self.bert["embeddings"])
        places = cast(nn.Embedding, embeddings["position_embeddings"]).weight[position]
        x = embeddings["LayerNorm"](embeddings["word_embeddings"](words) + places)
        grown = list[Pair]()
        for layer, pair, before in zip(self._layers(), memory, cache, strict=True):
            x, now = layer(x, pair, before)
            grown.append(now)
        return self.cls["predictions"](x[:, -1]), grown

    def _layers(self) -> list[_TextLayer]:
        layers = cast(nn.ModuleDict, self.bert["encoder"])["layer"]
        return cast("list[_TextLayer]", list(cast(nn.ModuleList, layers)))


class _TextLayer(nn.Module):
    def __init__(self, config: CaptionerConfig) -> None:
        super().__init__()
        width = config.text_width
        self.attention = _Attention(width, width, config.heads)
        self.crossattention = _Attention(width, config.vision_width, config.heads)
        self.intermediate = nn.ModuleDict({"dense": nn.Linear(width, 4 * width)})
        self.output = _Output(4 * width, width)

    def forward(self, x: Tensor, memory: Pair, before: Pair | None) -> tuple[Tensor, Pair]:
        now = keys, values = self.attention.pair(x)
        if before is not None:
            now = torch.cat([before[0], keys], 2), torch.cat([before[1], values], 2)
        x = self.attention(x, now)
        x = self.crossattention(x, memory)
        return self.output(F.gelu(self.intermediate["dense"](x)), x), now


class _Attention(nn.Module):
    def __init__(self, width: int, width_seen: int, heads: int) -> None:
        super().__init__()
        self._heads = heads
        self.self = nn.ModuleDict(
            {
                "query": nn.Linear(width, width),
                "key": nn.Linear(width_seen, width),
                "value": nn.Linear(width_seen, width),
            }
        )
        self.output = _Output(width, width)

    def pair(self, seen: Tensor) -> Pair:
        """Keys and values of what is looked at."""
        return tuple(_split(self.self[name](seen), self._heads) for name in ("key", "value"))  # type: ignore[return-value]

    def forward(self, x: Tensor, seen: Pair) -> Tensor:
        query = _split(self.self["query"](x), self._heads)
        found = F.scaled_dot_product_attention(query, *seen)
        return cast(Tensor, self.output(_joined(found), x))


class _Output(nn.Module):
    """A linear layer, and the norm of its sum with what came in."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.dense, self.LayerNorm = nn.Linear(width_in, width), _norm(width)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        return cast(Tensor, self.LayerNorm(self.dense(x) + residual))


class _Predictions(nn.Module):
    """Logits of all words; the last layer's weight is that of the word embeddings."""

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.transform = nn.ModuleDict(
            {"dense": nn.Linear(width, width), "LayerNorm": _norm(width)}
        )
        self.bias = nn.Parameter(torch.zeros(vocab_size))
        self.decoder = nn.Linear(width, vocab_size)

    def tie(self, words: nn.Embedding) -> None:
        self.decoder.weight, self.decoder.bias = words.weight, self.bias

    def forward(self, x: Tensor) -> Tensor:
        x = self.transform["LayerNorm"](F.gelu(self.transform["dense"](x)))
        return cast(Tensor, self.decoder(x))


def _norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, eps=1e-12)


def _split(x: Tensor, heads: int) -> Tensor:
    """B×N×C → B×heads×N×(C / heads)."""
    return x.reshape(*x.shape[:2], heads, -1).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """B×heads×N×c → B×N×(heads · c)."""
    return x.transpose(1, 2).flatten(2)
