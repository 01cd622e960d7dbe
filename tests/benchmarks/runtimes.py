"""Would another runtime evaluate the sampler's network faster on processors? Compiled PyTorch, ONNX Runtime, OpenVINO.

Run ``python -m tests.benchmarks.runtimes``; it takes minutes. All have the same weights, picture and threads, and take
turns. OpenVINO is no dependency of ours: it takes part where it is installed (``pip install openvino``). Compiling
needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import io
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime
import torch
from torch import Tensor, nn

from vlmir.bench.network import T, load_networks
from vlmir.bench.timing import in_turns, median_ratio, seconds
from vlmir.compute import Compute
from vlmir.metrics import psnr
from vlmir.nn import UNet

__all__ = ["main", "measure"]

Way: TypeAlias = Callable[[], npt.NDArray[np.float32]]

OURS = "PyTorch as the sampler runs it"


class Evaluation(nn.Module):
    """One evaluation at T, with its conditioning inside: picture (1×3×H×W) → x̂₀ or ε̂."""

    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet
        with torch.inference_mode(False), torch.no_grad():
            self.conditioning = unet.prepare(None, None, None, 1)
        self.register_buffer("t", torch.full((1,), T))

    def forward(self, mu: Tensor) -> Tensor:
        out: Tensor = self.unet(mu, mu, self.t, self.conditioning)
        return out


def measure(bundle: str, *, side: int, rounds: int) -> dict[str, dict[str, float]]:
    """One evaluation of a square picture by each runtime, in turns.

    Args:
        bundle: Name or folder of the weights.
        side: Of the picture, pixels.
        rounds: At least 1.

    Returns:
        Runtime → ``ms`` (median), ``times_ours`` (median of the rounds' ratios to :data:`OURS`), ``first_s`` (seconds
        of the first call, which compiles), and ``psnr`` against PyTorch in float32, dB.
    """
    networks = load_networks(bundle, Compute.choose("cpu"))
    mu = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    plain = Evaluation(networks.plain).eval()
    ours = Evaluation(networks.chosen).eval().requires_grad_(False)
    ways = {
        OURS: _torch(ours, mu),
        "PyTorch, float32": _torch(plain, mu),
        "torch.compile, for this size": _torch(torch.compile(ours, dynamic=False), mu),
        **dict(_foreign(_exported(plain, mu), mu.numpy())),
    }
    cpu = torch.device("cpu")
    first = {name: seconds(way, cpu, time.perf_counter) for name, way in ways.items()}
    truth = _picture(ways["PyTorch, float32"]())
    taken = in_turns(ways, rounds=rounds, device=cpu)
    return {
        name: {
            "ms": 1e3 * statistics.median(taken[name]),
            "times_ours": median_ratio(taken[name], taken[OURS]),
            "first_s": first[name],
            "psnr": psnr(_picture(way()), truth),
        }
        for name, way in ways.items()
    }


def _picture(batch_1CHW: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(batch_1CHW[0].transpose(1, 2, 0))


def _torch(evaluation: Callable[[Tensor], Tensor], mu: Tensor) -> Way:
    channels_last = mu.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def evaluate() -> npt.NDArray[np.float32]:
        found: npt.NDArray[np.float32] = evaluation(channels_last).float().numpy()
        return found

    return evaluate


def _foreign(graph: bytes, mu: npt.NDArray[np.float32]) -> Iterator[tuple[str, Way]]:
    yield "ONNX Runtime, float32", _onnxruntime(graph, mu)
    if importlib.util.find_spec("openvino"):
        for name, precision in (("float32", "f32"), ("bfloat16", "bf16")):
            yield f"OpenVINO, {name}", _openvino(graph, mu, precision)
    else:
        print("OpenVINO is not installed, and left out")


def _onnxruntime(graph: bytes, mu: npt.NDArray[np.float32]) -> Way:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def evaluate() -> npt.NDArray[np.float32]:
        (found,) = session.run(None, {"mu": mu})
        return np.asarray(found)

    return evaluate


def _openvino(graph: bytes, mu: npt.NDArray[np.float32], precision: str) -> Way:
    openvino: Any = importlib.import_module("openvino")
    core = openvino.Core()
    model = core.compile_model(
        core.read_model(io.BytesIO(graph)),
        "CPU",
        {
            "INFERENCE_PRECISION_HINT": precision,
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
            "PERFORMANCE_HINT": "LATENCY",
        },
    )
    return lambda: np.array(model(mu)[0])


def _exported(evaluation: Evaluation, mu: Tensor) -> bytes:
    program = torch.onnx.export(
        evaluation, (mu,), input_names=["mu"], opset_version=20, dynamo=True, verbose=False
    )
    assert program is not None
    file = io.BytesIO()
    program.save(file)
    return file.getvalue()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights, or base")
    parser.add_argument("--side", type=int, default=256, help="of the picture, pixels")
    parser.add_argument("--rounds", type=int, default=20)
    arguments = parser.parse_args()
    print(f"{Compute.choose('cpu')}, {torch.get_num_threads()} threads, {arguments.side}²")
    measured = measure(arguments.bundle, side=arguments.side, rounds=arguments.rounds)
    for name, found in measured.items():
        print(
            f"{name:30} {found['ms']:7.1f} ms  {found['times_ours']:5.2f} times ours  {found['psnr']:6.1f} dB  "
            f"first call {found['first_s']:.1f} s"
        )


if __name__ == "__main__":
    main()
