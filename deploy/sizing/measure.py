"""What the stages cost on this machine: ``python -m deploy.sizing.measure``, for ``costs.toml``.

One thread, and the time of the processor, so that other load on the machine counts little. Everything is done as the
services do it, with the bundle's own weights.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.flop_counter import FlopCounterMode

import vlmir
from services.common.tensors import from_message, to_message
from vlmir.bundle import load_bundle
from vlmir.compute import Compute
from vlmir.image import Image, decode, encode
from vlmir.options import PRECISIONS, Precision
from vlmir.parts import build_captioner, build_embedder, build_sampler
from vlmir.sampling import Conditions, Plan, finish
from vlmir.v1 import image_pb2
from vlmir.vlm.embedder import with_mirrors

__all__ = ["main", "measure"]

Pixels: TypeAlias = npt.NDArray[np.float32]

PICTURE = Path(vlmir.__file__).parent / "assets" / "tiny" / "before-after.jpg"
SIDE = 512


def measure(
    bundle: str = "tiny", *, precision: Precision = "auto", rounds: int = 5
) -> dict[str, float]:
    """Seconds of one processor (medians), and billions of floating-point operations.

    Args:
        bundle: Name or folder of the weights.
        precision: Of the restoring network.
        rounds: Trials of each.
    """
    torch.set_num_threads(1)
    opened = load_bundle(bundle)
    sampler = build_sampler(opened, Compute.choose("cpu", precision))
    captioner, embedder = build_captioner(opened), build_embedder(opened)
    photo = decode(PICTURE.read_bytes()).pixels
    large = np.tile(photo, (1 + 1000 // photo.shape[0], 1 + 1000 // photo.shape[1], 1))
    window = np.ascontiguousarray(large[:SIDE, :SIDE])
    picture = Image(pixels=np.ascontiguousarray(large[:1000, :1000]), bit_depth=8)
    file = encode(picture, format="png")
    caption = captioner.caption(photo)
    seen, words = embedder.embed_image(photo), embedder.embed_captions([caption])[0]
    all_views = with_mirrors(embedder.view_maker(photo))
    known = Conditions(words, seen.f_I, seen.f_D)
    plan = Plan(steps=1, solver=sampler.config.solver, realism=0.0, tile=0)

    def network() -> object:
        return finish(sampler.sample([window], [known], [0], plan))

    def look() -> object:
        # As for a picture that leaves doubt about its damage: most do not, and cost a ninth of this.
        return embedder.see(all_views[:1]), embedder.vote(all_views[1:])

    megapixels = SIDE * SIDE / 1e6
    return {
        "network_s_per_megapixel": _seconds(network, rounds) / megapixels,
        "caption_s": _seconds(lambda: captioner.caption(photo), rounds),
        "embed_s": _seconds(look, rounds)
        + _seconds(lambda: embedder.embed_captions([caption]), rounds),
        "decode_s_per_megapixel": _seconds(lambda: decode(file), rounds),
        "encode_s_per_megapixel": _seconds(lambda: encode(picture, format="png"), rounds),
        "pass_s_per_megapixel": _seconds(lambda: _pass(picture.pixels), rounds),
        "file_mb_per_megapixel": len(file) / 1e6,
        "network_gflop_per_megapixel": _gflop(network) / megapixels,
        "embed_gflop": _gflop(look) + _gflop(lambda: embedder.embed_captions([caption])),
    }


def _pass(pixels: Pixels) -> object:
    """Send pixels as the restorer and the sampler do: into a message, and out of it."""
    sent = to_message(np.ascontiguousarray(pixels.transpose(2, 0, 1))).SerializeToString()
    got = image_pb2.Tensor.FromString(sent)
    return from_message(got, shape=(3, None, None), name="pixels")


def _seconds(act: Callable[[], object], rounds: int) -> float:
    act()
    took = []
    for _ in range(rounds):
        began = time.process_time()
        act()
        took.append(time.process_time() - began)
    return statistics.median(took)


def _gflop(act: Callable[[], object]) -> float:
    with FlopCounterMode(display=False) as counter:
        act()
    return float(counter.get_total_flops()) / 1e9


def main() -> None:
    """Print the numbers as they stand in ``costs.toml``."""
    parser = argparse.ArgumentParser(description="Measure what the stages cost on this machine.")
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights")
    parser.add_argument("--rounds", type=int, default=5, help="trials of each stage")
    parser.add_argument("--precision", choices=PRECISIONS, default="auto", help="of the network")
    given = parser.parse_args()
    print(f"# {Compute.choose('cpu', given.precision)}")
    measured = measure(given.bundle, precision=given.precision, rounds=given.rounds)
    for name, value in measured.items():
        print(f"{name} = {value:.3g}")


if __name__ == "__main__":
    main()
