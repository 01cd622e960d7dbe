"""Public weights for ``base``: BLIP from Hugging Face, CLIP by open_clip, from the hub or a local copy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from vlmir.config import CaptionerConfig, EmbedderConfig
from vlmir.errors import OptionError, UnavailableError
from vlmir.vlm.captioner import BlipCaptioner

__all__ = ["public_captioner", "public_clip"]


class _HubWords:
    """A Hugging Face tokenizer, reduced to what a captioner needs."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def decode(self, ids: Sequence[int]) -> str:
        """Ids → text without special tokens."""
        return cast(str, self._tokenizer.decode(ids, skip_special_tokens=True)).strip()


def public_captioner(config: CaptionerConfig, folder: Path | None = None) -> BlipCaptioner:
    """The public BLIP that ``config.hub`` names.

    Args:
        config: The captioner of a preset.
        folder: A local copy of the checkpoint (``config.json``, weights, tokenizer); None: the hub, or its cache.

    Raises:
        OptionError: The preset names no public checkpoint.
        UnavailableError: It can be found neither on the hub nor in the cache, nor in ``folder``.
    """
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    source = _source(config.hub, folder)
    try:
        model = BlipForConditionalGeneration.from_pretrained(source, use_safetensors=True)
        words = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise _unavailable("BLIP", source) from error
    return BlipCaptioner(config, model, _HubWords(words))


def public_clip(config: EmbedderConfig, file: Path | None = None) -> Any:
    """The public open_clip ``CLIP`` that ``config.hub`` names (``model/pretrained tag``).

    Args:
        config: The embedder of a preset.
        file: A local weights file of that model; None: the hub, or its cache.

    Raises:
        OptionError: The preset names no public checkpoint.
        UnavailableError: It can be found neither on the hub nor in the cache, nor at ``file``.
    """
    import open_clip

    source = _source(config.hub, None)
    name, _, tag = source.partition("/")
    if file is not None and not file.is_file():
        raise _unavailable("CLIP", str(file))
    try:
        return open_clip.create_model(name, pretrained=tag if file is None else str(file))
    except (OSError, RuntimeError) as error:
        raise _unavailable("CLIP", source if file is None else str(file)) from error


def _source(hub: str | None, folder: Path | None) -> str:
    if hub is None:
        raise OptionError("This preset names no public checkpoint; use `base`.")
    return hub if folder is None else str(folder)


def _unavailable(what: str, source: str) -> UnavailableError:
    return UnavailableError(
        f"{what} weights {source!r} could not be loaded: connect to the Hugging Face hub once, or give "
        "the path of a local copy."
    )
