"""Stage 2, the sampler: ``python -m training.stage2 --pool runs/pool --stage1 runs/stage1 --pretrained runs/pretrain``.

Trains the conditional diffusion U-Net from scratch with the embedder frozen (paper, section 3.3). Crops are seen, but
the conditions describe the whole picture. Half of the draws are at t = T, where one network call gives the posterior
mean: the setting that users run most.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from training.conditions import PoolConditions, embed_pool, no_conditions
from training.crops import CropLoader, Crops
from training.loop import (
    Log,
    adamw,
    cosine_rate,
    load_checkpoint,
    mixed_precision,
    resume,
    save_progress,
)
from training.pool import Pool
from training.views import load_pretrained
from vlmir.bundle import load_bundle
from vlmir.config import Preset, load_preset
from vlmir.daclip import load_strictly
from vlmir.diffusion import IRSDE, loss
from vlmir.nn import UNet
from vlmir.parts import build_unet
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.embedder import ClipEmbedder

__all__ = ["Ema", "condition", "diffusion_loss", "main", "train"]

LEARNING_RATE = 1e-3
BETAS = (0.9, 0.99)
EMA_DECAY = 0.999
AT_T_SHARE = 0.5
NORM = "rms"
"""The loss's norm: pictures are judged by PSNR, and one evaluation should give the mean of what is possible."""


class Ema:
    """Exponential moving average of a module's parameters; the average is what ships."""

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters; early steps move faster, so the random start is forgotten."""
        keep = min(EMA_DECAY, (step + 1) / (step + 10))
        own = [p.detach() for p in self._module.parameters()]
        torch._foreach_lerp_(list(self.average.values()), own, 1 - keep)


def condition(unet: UNet, crops: Crops) -> tuple[Tensor, Tensor, Tensor]:
    """f_T, f_I and f_D with the network's null in place of each withheld one."""
    given = zip(
        ("text", "image", "degradation"),
        (crops.f_T, crops.f_I, crops.f_D),
        crops.withheld,
        strict=True,
    )
    f_T, f_I, f_D = (torch.where(mask[:, None], unet.null[name], f) for name, f, mask in given)
    return f_T, f_I, f_D


def diffusion_loss(
    unet: UNet, schedule: IRSDE, objective: str, crops: Crops, generator: torch.Generator
) -> Tensor:
    """The training objective's mean over a batch, at random times, many of them T.

    A network that predicts x₀ is shown x_T = μ there, without noise, as one evaluation starts at inference: what little
    of x₀ is left in x_T must not be shown without the noise that hides it.
    """
    batch = len(crops.lq)
    t = torch.randint(1, schedule.T + 1, (batch,), generator=generator)
    at_T = torch.rand(batch, generator=generator) < AT_T_SHARE
    t = torch.where(at_T, schedule.T, t)
    noise = torch.randn(crops.lq.shape, generator=generator)
    noise = noise.contiguous(memory_format=torch.channels_last)
    x_t = schedule.marginal(crops.gt, crops.lq, t, noise)
    if objective == "x0":
        x_t = torch.where(at_T[:, None, None, None], crops.lq, x_t)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
    with mixed_precision():
        output = unet(x_t, crops.lq, t, unet.prepare(*condition(unet, crops), batch))
    errors = loss(objective, schedule, output.float(), crops.gt, crops.lq, x_t, t, noise, NORM)
    return errors.mean()


def train(
    preset: Preset,
    loader: CropLoader,
    out: Path,
    *,
    steps: int,
    batch: int,
    size: int,
    compiled: bool,
    init: Path | None = None,
) -> None:
    """Train from random weights, or from the U-Net of the bundle ``init``.

    The loop: AdamW, cosine, mixed precision, EMA, a checkpoint every 250 steps; resumes from ``out/sampler.pt``.
    """
    config = preset.sampler
    schedule = IRSDE(**vars(config.schedule))
    unet = UNet(config.unet).to(memory_format=torch.channels_last)
    if init is not None:
        load_strictly(unet, build_unet(load_bundle(init)).state_dict())
    optimizer = adamw(unet.parameters(), rate=LEARNING_RATE, betas=BETAS)
    ema = Ema(unet)
    file = out / "sampler.pt"
    start, state = resume(file, unet, optimizer)
    ema.average = state.get("ema", ema.average)
    if compiled:
        unet.forward = torch.compile(unet.forward, dynamic=False)  # type: ignore[method-assign]
    log = Log(out, "stage2", steps, start=start)
    running, waited = 0.0, 0.0
    unet.train()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, total=steps, warmup=100, peak=LEARNING_RATE)
        began = time.monotonic()
        crops = loader(step, batch, size)
        waited += time.monotonic() - began
        value = diffusion_loss(unet, schedule, config.prediction, crops, generator)
        optimizer.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.update(step)
        running += value.item()
        if (step + 1) % 50 == 0:
            log(step + 1, loss=running / 50, gradient=norm.item(), loading_s=waited)
            running, waited = 0.0, 0.0
        if (step + 1) % 250 == 0 or step + 1 == steps:
            more = {"ema": ema.average, "prototypes": loader.prototypes}
            save_progress(file, step + 1, unet, optimizer, **more)


def _conditions(preset: Preset, pool: Pool, pretrained: Path, stage1: Path) -> PoolConditions:
    """The conditions of the pool's pictures by the embedder that stage 1 made."""
    parts = load_pretrained(preset, pretrained)
    network = DegradationCLIP(preset.embedder, len(preset.labels), parts.clip)
    state = load_checkpoint(stage1 / "embedder.pt")
    if state is None:
        raise FileNotFoundError(f"{stage1}/embedder.pt is missing: run training.stage1 first.")
    network.load_state_dict(state["model"])
    embedder = ClipEmbedder(network, parts.tokenizer, preset.labels)
    return embed_pool(pool, parts.captioner, embedder, stage1)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--pool", type=Path, default=Path("runs/pool"), help="made by stage 1")
    parser.add_argument("--pretrained", type=Path, default=Path("runs/pretrain"))
    parser.add_argument("--stage1", type=Path, default=Path("runs/stage1"))
    parser.add_argument("--out", type=Path, default=Path("runs/stage2"))
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=10)
    parser.add_argument("--size", type=int, default=128, help="side of the crops in pixels")
    parser.add_argument("--init", type=Path, help="bundle whose U-Net is trained further")
    parser.add_argument("--entries", type=int, help="use so many random pictures of the pool only")
    parser.add_argument(
        "--threads", type=int, help="CPU threads; the machine's number if not given"
    )
    parser.add_argument(
        "--blind",
        action="store_true",
        help="withhold all conditions: a first phase that can run beside stage 1; resume without it",
    )
    parser.add_argument("--no-compile", action="store_true", help="run the network uncompiled")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    preset = load_preset("tiny")
    pool = Pool(arguments.pool, limit=arguments.entries)
    if arguments.blind:
        conditions = no_conditions(pool, preset)
    else:
        conditions = _conditions(preset, pool, arguments.pretrained, arguments.stage1)
    loader = CropLoader(pool, conditions, preset.labels, seed=0, blind=arguments.blind)
    train(
        preset,
        loader,
        arguments.out,
        steps=arguments.steps,
        batch=arguments.batch,
        size=arguments.size,
        compiled=not arguments.no_compile,
        init=arguments.init,
    )


if __name__ == "__main__":
    main()
