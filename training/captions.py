"""Captions of pictures, made once: ``python -m training.captions --data photos/ pairs/ --pretrained runs/pretrain``.

BLIP captions every picture of the pool, degraded (LQ) and clean (GT). A caption is kept under the content of its
picture and of the captioner, as soon as its batch is done: an interrupted run goes on where it stopped. Stage 2 finds
the captions of the degraded pictures. Stage 1 damages its pictures anew, so it captions them by itself, into the same
kind of file.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from training.command import add_inputs, load_model, users_faults
from training.data.caption_cache import CaptionCache
from training.data.folders import find_data
from training.pretrained import load_pretrained

__all__ = ["caption", "main"]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.captions",
        description="Caption the degraded and the clean pictures that the stages train on.",
    )
    add_inputs(parser)
    parser.add_argument("--pretrained", type=Path, help="where BLIP is (default: as in stage 1)")
    arguments = parser.parse_args()
    with users_faults("captions"):
        caption(arguments)


def caption(arguments: argparse.Namespace) -> None:
    """Caption the pool; the captions lie beside it.

    Raises:
        VlmirError: The arguments name no model, or nothing to caption.
        FileNotFoundError: BLIP is not there.
        ValueError: The pool was made of other pictures.
    """
    _, preset = load_model(arguments)
    parts = load_pretrained(preset, arguments.pretrained)
    pool = find_data(arguments.data).pool(arguments.pool)
    captions = CaptionCache(arguments.pool, parts.need_captioner())
    for what, picture in (("LQ", pool.lq), ("GT", pool.gt)):
        words = captions([partial(picture, i) for i in range(len(pool))], f"{what} pictures")
        print(
            f"{len(words)} {what} pictures, {len(set(words))} different captions, such as {words[0]!r}"
        )


if __name__ == "__main__":
    main()
