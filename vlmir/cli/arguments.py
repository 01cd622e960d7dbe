"""What can be said on the command line, checked before anything heavy is imported."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from vlmir import __version__
from vlmir.formats import FORMATS
from vlmir.options import PRECISIONS

__all__ = ["BENCHMARKS", "LABELS", "SOLVERS", "build_parser"]

BENCHMARKS = ("network", "base", "batches", "restoring", "growth", "reference", "start")
"""Parts of ``vlmir bench``."""

# Copies of vlmir.degradations.LABELS and vlmir.diffusion.SOLVERS: importing those takes seconds,
# which `vlmir --help` and a misspelt option should not. A test compares them.
LABELS = (
    "motion-blurry",
    "hazy",
    "jpeg-compressed",
    "low-light",
    "noisy",
    "raindrop",
    "rainy",
    "shadowed",
    "snowy",
    "uncompleted",
    "clean",
)
SOLVERS = ("euler_maruyama", "posterior", "ddim", "dpmpp_2m", "dpmpp_2m_sde")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; the chosen one stands in ``command``."""
    parser = argparse.ArgumentParser(
        prog="vlmir", description="Restore degraded photos.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"vlmir {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_restore(commands)
    _add_inspect(commands)
    _add_degrade(commands)
    _add_info(commands)
    _add_bench(commands)
    _add_models(commands)
    return parser


def _add_restore(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "restore",
        allow_abbrev=False,
        help="restore photos",
        description="Restore photos. Files that are already there are skipped, so an interrupted "
        "run is resumed by the same command.",
    )
    _add_inputs(parser)
    _add_output(parser)
    model = parser.add_argument_group("restoration")
    place = model.add_mutually_exclusive_group()
    _add_bundle(place)
    place.add_argument(
        "--server", metavar="HOST:PORT", help="restore on a server, with its weights and limits"
    )
    _add_connection(parser)
    model.add_argument(
        "--steps", type=_whole(1), metavar="N", help="sampling steps (default: the bundle's)"
    )
    model.add_argument("--solver", choices=SOLVERS, help="sampling method (default: the bundle's)")
    model.add_argument(
        "--seed", type=_whole(0), default=0, metavar="N", help="randomness (default: 0)"
    )
    model.add_argument(
        "--realism",
        type=_unit,
        metavar="0…1",
        help="0 most faithful, 1 most detailed (default: 0 for one step, 1 for more)",
    )
    model.add_argument(
        "--ensemble",
        action="store_true",
        help="average over mirror images: fewer errors, up to four times the work",
    )
    model.add_argument(
        "--strength",
        type=_unit,
        default=1.0,
        metavar="0…1",
        help="how far to go from the input (0) to the restored photo (1, the default)",
    )
    caption = model.add_mutually_exclusive_group()
    caption.add_argument("--caption", metavar="TEXT", help="what the photo shows, in your words")
    caption.add_argument("--no-caption", action="store_true", help="restore without a caption")
    model.add_argument(
        "--degradation",
        choices=LABELS,
        metavar="LABEL",
        help=f"what is wrong with the photo, if you know better: {', '.join(LABELS)}",
    )
    model.add_argument(
        "--tile",
        type=_whole(0),
        metavar="PX",
        help="side of a tile in pixels, at least 128, or 0 for none (default: as the picture needs)",
    )
    _add_compute(model)


def _add_inspect(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "inspect",
        allow_abbrev=False,
        help="say what a photo shows and what is wrong with it",
        description="Caption photos and name their degradations, without restoring them.",
    )
    _add_inputs(parser)
    _add_bundle(parser)
    parser.add_argument("--json", action="store_true", help="one JSON object a photo, to stdout")


def _add_degrade(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "degrade",
        allow_abbrev=False,
        help="make degraded copies of photos",
        description="Make degraded copies of photos; several labels make a mixture.",
    )
    _add_inputs(parser)
    _add_output(parser)
    damage = parser.add_argument_group("degradation")
    damage.add_argument(
        "--label",
        dest="labels",
        action="append",
        choices=LABELS,
        required=True,
        metavar="LABEL",
        help=f"one of {', '.join(LABELS)}; may be repeated",
    )
    damage.add_argument(
        "--strength",
        type=_unit,
        default=0.5,
        metavar="0…1",
        help="0 mild, 0.5 typical, 1 severe (default: 0.5)",
    )
    damage.add_argument(
        "--seed", type=_whole(0), default=0, metavar="N", help="randomness (default: 0)"
    )


def _add_info(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "info",
        allow_abbrev=False,
        help="say what a server serves",
        description="Say which weights a server serves, where it computes, what it takes, and how busy it is.",
    )
    parser.add_argument("--server", metavar="HOST:PORT", required=True, help="the server")
    _add_connection(parser, timeout_s=10.0)
    parser.add_argument("--json", action="store_true", help="one JSON object, to stdout")


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "bench",
        allow_abbrev=False,
        help="measure how fast this machine, or a server, restores",
        description="Measure how fast this machine restores, or with --server how a server holds up under 1 to 32 "
        "clients. What is compared is measured in turns; times are medians. Some minutes.",
    )
    place = parser.add_mutually_exclusive_group()
    _add_bundle(place)
    place.add_argument("--server", metavar="HOST:PORT", help="load a server with pictures")
    _add_connection(parser)
    _add_compute(parser)
    parser.add_argument(
        "--only",
        action="append",
        choices=BENCHMARKS,
        help="a part of it; may be repeated (default: all of this machine)",
    )
    parser.add_argument(
        "--rounds", type=_whole(1), default=5, metavar="N", help="turns of each (default: 5)"
    )
    parser.add_argument(
        "--requests",
        type=_whole(1),
        default=64,
        metavar="N",
        help="pictures for each number of clients of a server (default: 64)",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all numbers there, too")


def _add_models(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "models",
        allow_abbrev=False,
        help="make bundles of public weights",
        description="Make bundles of public weights.",
    )
    actions = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_import_daclip(actions)


def _add_import_daclip(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser(
        "import-daclip",
        allow_abbrev=False,
        help="make a bundle of DA-CLIP's checkpoints",
        description="Make a bundle of DA-CLIP's checkpoints (Luo et al. 2023; MIT), which are found on Hugging Face "
        "under weblzw/daclip-uir-ViT-B-32-irsde. Nothing in them is executed; every tensor is accounted for, and a "
        "picture is restored with the bundle before it appears. The weights know ten degradations, but no undamaged "
        "photo, and neither write nor read captions.",
        epilog="Then: vlmir restore --bundle OUT …",
    )
    parser.set_defaults(command="models import-daclip")
    parser.add_argument(
        "--unet", type=Path, required=True, metavar="FILE", help="the U-Net: universal-ir.pth"
    )
    parser.add_argument(
        "--clip",
        type=Path,
        required=True,
        metavar="FILE",
        help="CLIP with its controller: daclip_ViT-B-32.pt",
    )
    parser.add_argument(
        "output", type=Path, metavar="OUT", help="the bundle's folder, new or empty (about 1.2 GB)"
    )


def _add_inputs(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs",
        nargs="+",
        type=Path,
        metavar="IN",
        help="photos, or folders that are searched with all their subfolders",
    )
    _add_limits(parser.add_argument_group("limits, checked before decoding"))


def _add_bundle(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--bundle",
        default="tiny",
        metavar="NAME",
        help="the weights: 'tiny' (shipped) or a bundle's folder (default: tiny)",
    )


def _add_connection(parser: argparse.ArgumentParser, *, timeout_s: float = 600.0) -> None:
    group = parser.add_argument_group(
        "connection to --server",
        "A token in the environment variable VLMIR_TOKEN is sent with every call, over TLS only.",
    )
    group.add_argument("--tls", action="store_true", help="encrypt; trust public certificates")
    group.add_argument(
        "--tls-ca", type=Path, metavar="FILE", help="encrypt; trust the certificates in FILE (PEM)"
    )
    group.add_argument(
        "--timeout",
        type=_seconds,
        default=timeout_s,
        metavar="S",
        help=f"seconds that one call may take (default: {timeout_s:.0f})",
    )


def _add_limits(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--max-pixels",
        type=_whole(1),
        metavar="N",
        help="largest photo taken, width × height (default: 24 million); memory grows with it",
    )
    group.add_argument(
        "--max-bytes", type=_whole(1), metavar="N", help="largest file taken (default: 64 MiB)"
    )


def _add_compute(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--device",
        metavar="NAME",
        help="where the sampler runs, such as cpu or cuda:1 (default: a GPU if there is one)",
    )
    group.add_argument(
        "--precision",
        choices=PRECISIONS,
        help="of the sampler (default: bf16 where the processor multiplies in it)",
    )


def _add_output(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("output")
    group.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="OUT",
        help="a file, for one photo; else a folder, in which subfolders are kept",
    )
    group.add_argument(
        "--format", choices=FORMATS, help="container format (default: by OUT's or IN's suffix)"
    )
    loss = group.add_mutually_exclusive_group()
    loss.add_argument(
        "--quality", type=_whole(1, 100), metavar="1…100", help="of JPEG and lossy WebP"
    )
    loss.add_argument("--lossless", action="store_true", help="lose nothing (WebP; never JPEG)")
    group.add_argument(
        "--overwrite", action="store_true", help="replace existing outputs (default: skip them)"
    )
    group.add_argument("--json", action="store_true", help="one JSON line a photo, to stdout")
    group.add_argument("--report", type=Path, metavar="FILE", help="append the JSON lines to FILE")


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """A converter to whole numbers from ``least`` to ``most``, both included."""

    def convert(text: str) -> int:
        value = int(text) if text.isascii() and text.isdigit() else -1
        if value < least or (most is not None and value > most):
            reach = f"of at least {least}" if most is None else f"from {least} to {most}"
            raise argparse.ArgumentTypeError(f"must be a whole number {reach}, not {text!r}")
        return value

    return convert


def _seconds(text: str) -> float:
    """A time above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):  # NaN fails this, too
        raise argparse.ArgumentTypeError(f"must be a number of seconds above 0, not {text!r}")
    return value


def _unit(text: str) -> float:
    """A number from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:  # NaN fails this, too
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return value
