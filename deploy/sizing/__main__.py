"""The command line: ``python -m deploy.sizing``; without a load it prints the table of OPERATIONS.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence

from deploy.sizing.costs import load_costs
from deploy.sizing.model import HARDWARE, QUALITIES, Load, Sizing, evaluations, size

__all__ = ["main", "report", "table"]

LOADS = (1, 10, 100, 10_000)
BUNDLES = ("tiny", "base")


def table(hardware: Sequence[str] = ("cpu", "h100")) -> str:
    """Replicas for a few loads of pictures of one megapixel, default quality, with ``tiny``; as Markdown."""
    names = [part.name for part in size(Load(images_per_s=1)).parts]
    lines = [
        f"| images/s | networks on | {' | '.join(names)} | full first |",
        "|---" * (len(names) + 3) + "|",
    ]
    for kind in hardware:
        for rate in LOADS:
            sized = size(Load(images_per_s=rate, hardware=kind))
            first = sized.bottleneck
            cells = [f"{rate:,}", _label(sized), *(f"{part.replicas:,}" for part in sized.parts)]
            lines.append(f"| {' | '.join(cells)} | {first.name}: {first.tightest} |")
    return "\n".join(lines)


def report(sized: Sizing) -> str:
    """All that is known of one sizing, for people."""
    load, first = sized.load, sized.bottleneck
    lines = [
        f"{load.images_per_s:g} images/s of {load.megapixels:g} megapixels, {load.quality} quality with {load.bundle} "
        f"({evaluations(load.bundle, load.quality)} evaluations of {sized.windows} windows), "
        f"networks on {_label(sized)}, {load.utilisation:.0%} busy, one spare of each",
        "",
        f"  {'part':<10} {'replicas':>9}  {'in use':>6}  decided by",
    ]
    for part in sized.parts:
        lines.append(f"  {part.name:<10} {part.replicas:>9,}  {part.use:>6.0%}  {part.tightest}")
    costs, (into, out) = load_costs().replica, sized.store_mb_per_s
    lines += [
        "",
        f"  full first  the {first.name}'s {first.tightest}, at {sized.room:.2g} times this load",
        f"  one is      {_unit(load, costs)}, one processor of the others",
        f"  users       {_n(sized.user_mb_per_s[0])} MB/s in, {_n(sized.user_mb_per_s[1])} MB/s out",
        f"  inside      {_n(sized.inner_mb_per_s)} MB/s of pixels between restorer and sampler",
        f"  MinIO       {_n(into)} MB/s in, {_n(out)} MB/s out, {_n(sized.store_puts_per_s)} PUT/s, "
        f"{_n(sized.stored_tb)} TB of results",
        f"  set         VLMIR_BATCH_PIXELS={sized.batch_pixels} for the sampler",
        *(f"  beware      {wall}" for wall in sized.walls),
    ]
    return "\n".join(lines)


def _n(number: float) -> str:
    """Three digits, or all before the point."""
    return f"{number:,.0f}" if number >= 100 else f"{number:.3g}"


def _unit(load: Load, costs: Mapping[str, float]) -> str:
    large, small = costs["processors"], costs["processors_small"]
    if load.hardware != "cpu":
        return f"one {load.hardware.upper()} of sampler or embedder, {small:g} processors of the captioner"
    return f"{large:g} processors of the sampler, {small:g} of captioner and embedder"


def _label(sized: Sizing) -> str:
    kind = sized.load.hardware
    if kind == "cpu":
        return "cpu" if sized.measured else "cpu (estimate)"
    return f"{kind.upper()} ({'yours' if sized.measured else 'estimate'})"


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.sizing", description="How many of what a load takes."
    )
    parser.add_argument("--images-per-s", type=float, help="the load; without it: the table")
    parser.add_argument("--megapixels", type=float, default=1.0, help="of a picture")
    parser.add_argument("--quality", choices=QUALITIES, default="default")
    parser.add_argument("--bundle", choices=BUNDLES, default="tiny", help="whose networks")
    parser.add_argument(
        "--hardware", choices=HARDWARE, default="cpu", help="of sampler and embedder"
    )
    parser.add_argument(
        "--utilisation", type=float, default=0.6, help="how busy a replica may be, up to 1"
    )
    parser.add_argument(
        "--ms-per-megapixel",
        type=float,
        help="your own cost of an evaluation, of one processor or graphics processor",
    )
    parser.add_argument("--sources", action="store_true", help="say where the figures are from")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        The exit status: 0, or 2 for a load that is none.
    """
    given = _arguments(arguments)
    if given.sources:
        print("\n".join(f"{name}: {text}" for name, text in load_costs().sources.items()))
        return 0
    if given.images_per_s is None:
        print(table())
        return 0
    own = given.ms_per_megapixel
    try:
        load = Load(
            images_per_s=given.images_per_s,
            megapixels=given.megapixels,
            quality=given.quality,
            bundle=given.bundle,
            hardware=given.hardware,
            utilisation=given.utilisation,
            s_per_megapixel=None if own is None else own / 1000,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(size(load)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
