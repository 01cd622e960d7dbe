"""The commands about weights: ``vlmir models import-daclip``."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING

from vlmir.bundle import check_free
from vlmir.config import load_preset
from vlmir.errors import OptionError

if TYPE_CHECKING:
    from vlmir.bundle import Bundle

__all__ = ["import_daclip"]


def import_daclip(arguments: Namespace) -> int:
    """``vlmir models import-daclip``; returns 0, since a failure raises.

    Raises:
        OptionError: A checkpoint is missing or the output is taken.
        BundleError: A checkpoint is damaged or foreign, or the output cannot be written.
    """
    for path in (arguments.unet, arguments.clip):
        if not path.is_file():
            raise OptionError(f"There is no file {path}.")
    check_free(arguments.output)  # before PyTorch is imported
    from vlmir import importer

    bundle = importer.import_daclip(
        arguments.output, unet=arguments.unet, clip=arguments.clip, preset=load_preset("daclip")
    )
    print(_describe(bundle))
    return 0


def _describe(bundle: Bundle) -> str:
    from vlmir.parts import count_parameters

    parts = [
        f"  {part + ':':<9} {count:>11,} parameters, sha256 {bundle.digests[part]}"
        for part, count in count_parameters(bundle).items()
    ]
    labels = f"  labels:   {', '.join(bundle.preset.labels)}"
    return "\n".join([f"{bundle.folder} ({bundle.release})", *parts, labels])
