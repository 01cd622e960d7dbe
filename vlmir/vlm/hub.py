"""Public weights for ``base``: BLIP from Hugging Face, CLIP by open_clip, from the hub or a local copy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from vlmir.config import CaptionerConfig, EmbedderConfig
from vlmir.errors import OptionError, UnavailableError
from vlmir.vlm.captioner import BlipCaptioner
from vlmir.vlm.tokenizer import CaptionTokenizer

__all__ = ["public_captioner", "public_clip"]


def public_captioner(
    config: CaptionerConfig, folder: Path | None = None
) -> tuple[BlipCaptioner, CaptionTokenizer]:
    """The public BLIP that ``config.hub`` names, and its words.

    Args:
        config: The captioner of a preset.
        folder: A local copy of the checkpoint (``config.json``, weights, tokenizer); None: the hub, or its cache.

    Raises:
        OptionError: The preset names no public checkpoint.
        UnavailableError: It can be found neither on the hub nor in the cache, nor in ``folder``.
        BundleError: Its tokenizer has no tokens for begin and end.
    """
    from transformers import AutoTokenizer, BlipForConditionalGeneration

    source = _source(config.hub, folder)
    try:
        model = BlipForConditionalGeneration.from_pretrained(source, use_safetensors=True)
        words = AutoTokenizer.from_pretrained(source)
    except OSError as error:
        raise _unavailable("BLIP", source) from error
    ids: Any = model.config.text_config
    tokenizer = CaptionTokenizer.of(
        words.backend_tokenizer, bos_id=ids.bos_token_id, eos_id=ids.sep_token_id
    )
    return BlipCaptioner(config, model, tokenizer), tokenizer


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
