"""Stage 2, the sampler: ``python -m training.stage2 --data photos/ pairs/ --stage1 runs/stage1``.

Trains the conditional diffusion U-Net from scratch with the embedder frozen (paper, section 3.3). Crops are seen, but
the conditions describe the whole picture. ``--resume`` goes on from the last checkpoint, ``--init`` from a bundle's
U-Net.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from training.command import Stage, add_common, run_stage
from training.config import StageTwoConfig
from training.data.conditions import embed_pool, no_conditions
from training.data.crops import CropLoader, Crops
from training.data.folders import find_data
from training.data.pool import Bytes, Pool
from training.engine.loop import Run, Task, fit
from training.engine.tracking import Tracker
from training.pretrained import load_embedder
from vlmir.bundle import load_bundle
from vlmir.config import Preset
from vlmir.daclip import load_strictly
from vlmir.diffusion import IRSDE, OBJECTIVES, loss
from vlmir.errors import OptionError
from vlmir.nn import UNet
from vlmir.parts import build_sampler, build_unet

__all__ = ["Ema", "SamplerTask", "condition", "main", "work"]


LEAST_ERROR = 1e-10
"""Mean square error counted for a crop without any, whose PSNR is infinite: 100 dB."""


class Ema:
    """Exponential moving average of a module's parameters; the average is what ships."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self._module, self._decay = module, decay
        self.average = {name: p.detach().clone() for name, p in module.named_parameters()}

    @torch.no_grad()
    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take the values of another average of the same parameters."""
        for name, own in self.average.items():
            own.copy_(average[name])

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move towards the parameters; early steps move faster, so the random start is forgotten."""
        keep = min(self._decay, (step + 1) / (step + 10))
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


class SamplerTask(Task):
    """The U-Net towards the training objective, at random times, many of them T."""

    name = "sampler"

    def __init__(
        self, preset: Preset, config: StageTwoConfig, loader: CropLoader, run: Run, unet: UNet
    ) -> None:
        """Train ``unet``.

        Raises:
            OptionError: The preset's network does not predict what follows from the objective.
        """
        super().__init__()
        prediction = preset.sampler.prediction
        if OBJECTIVES[config.objective] != prediction:
            raise OptionError(
                f"The objective {config.objective!r} makes a network predict {OBJECTIVES[config.objective]!r}, "
                f"but the preset's predicts {prediction!r}."
            )
        self.unet: UNet = unet.to(run.compute.device).to(memory_format=torch.channels_last)
        self.ema = Ema(self.unet, config.ema)
        self.schedule = IRSDE(**vars(preset.sampler.schedule))
        self._config, self._loader, self._run = config, loader, run
        self.data = loader.data
        self._noise_free = prediction == "x0"
        self._held_out = loader.held_out(config.size)

    @property
    def model(self) -> nn.Module:
        """The U-Net."""
        return self.unet

    def draw(self, step: int) -> Crops:
        """This worker's crops of a step."""
        batch, size = self._config.crops(step)
        return self._loader(step, size, self._run.workers.share(batch))

    def forward(self, crops: Crops) -> dict[str, Tensor]:
        """The mean of the objective over a batch.

        A network that predicts x₀ is shown x_T = μ at t = T, without noise, as one evaluation starts at inference: what
        little of x₀ is left in x_T must not be shown without the noise that hides it.
        """
        t, noise = crops.t, crops.noise
        x_t = self.schedule.marginal(crops.gt, crops.lq, t, noise)
        if self._noise_free:
            at_T = (t == self.schedule.T)[:, None, None, None]
            x_t = torch.where(at_T, crops.lq, x_t)
        x_t = x_t.contiguous(memory_format=torch.channels_last)
        with self._run.compute.autocast():
            prepared = self.unet.prepare(*condition(self.unet, crops), len(t))
            output = self.unet(x_t, crops.lq, t, prepared)
        config = self._config
        errors = loss(
            config.objective,
            self.schedule,
            output.float(),
            crops.gt,
            crops.lq,
            x_t,
            t,
            noise,
            config.norm,
        )
        return {"loss": errors.mean()}

    def after_step(self, step: int) -> None:
        """Move the average."""
        self.ema.update(step)

    def extra_state(self) -> dict[str, Any]:
        """The average, and the label prototypes that were trained with."""
        return {"ema": self.ema.average, "prototypes": self._loader.prototypes}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Take the average back, into the tensors that are there: their device and their layout stay."""
        self.ema.load(state["ema"])

    def validate(self, step: int, tracker: Tracker) -> dict[str, float]:
        """PSNR of one evaluation by the averaged network on held-out crops, by label; pictures: LQ, restored, GT."""
        own = {name: p.detach().clone() for name, p in self.unet.named_parameters()}
        self.unet.load_state_dict(self.ema.average, strict=False)
        numbers = {}
        for label, crops in self._held_out.items():
            restored = self._restored(self._run.compute.moved(crops)).cpu()
            error = (restored - crops.gt).square().mean(dim=(1, 2, 3)).clamp_min(LEAST_ERROR)
            numbers[f"psnr/{label}"] = float((-10 * error.log10()).mean())
            tracker.image(label, _sheet(crops.lq, restored, crops.gt), step)
        self.unet.load_state_dict(own, strict=False)
        return numbers

    @torch.inference_mode()
    def _restored(self, crops: Crops) -> Tensor:
        """One evaluation at T of all crops, B×3×S×S, 0…1 and rounded to 256 levels."""
        T, x = self.schedule.T, crops.lq
        if not self._noise_free:
            x = self.schedule.prior(x, crops.noise)
        prepared = self.unet.prepare(*condition(self.unet, crops), len(x))
        output = self.unet(x, crops.lq, torch.full((len(x),), T, device=x.device), prepared)
        prediction = OBJECTIVES[self._config.objective]
        x0 = self.schedule.to_x0(output, x, crops.lq, T, prediction)
        return (x0.clamp(0, 1) * 255).round() / 255


def _sheet(*columns: Tensor) -> Bytes:
    """Pictures (B×3×S×S, 0…1) of each column beside each other, one row each: H×W×3 uint8."""
    rows = torch.cat(columns, dim=-1).permute(0, 2, 3, 1).flatten(0, 1)
    return np.asarray((rows * 255).round().to(torch.uint8).numpy())


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.stage2", description="Train the sampler: the diffusion U-Net."
    )
    add_common(parser, out=Path("runs/stage2"))
    parser.add_argument("--stage1", type=Path, default=Path("runs/stage1"), help="the embedder")
    parser.add_argument("--pretrained", type=Path, help="CLIP and BLIP that stage 1 built on")
    parser.add_argument(
        "--init",
        type=Path,
        help="bundle whose U-Net is trained further; it may have fewer blocks than the preset's",
    )
    parser.add_argument(
        "--adapter",
        metavar="LABEL",
        help="begin with the network that the bundle of --init has for this damage alone",
    )
    parser.add_argument("--entries", type=int, help="use so many random pictures of the pool only")
    parser.add_argument(
        "--blind",
        action="store_true",
        help="withhold all conditions: a first phase that can run beside stage 1; resume without it",
    )
    parser.add_argument("--no-compile", action="store_true", help="run the network uncompiled")
    run_stage(parser.parse_args(), "stage2")


def work(arguments: argparse.Namespace, stage: Stage) -> None:
    """Train the sampler as the command line says."""
    preset, config, run = stage.preset, stage.config.stage2, stage.run
    with run.workers.first_alone():
        find_data(arguments.data).pool(arguments.pool)
        pool = Pool(arguments.pool, limit=arguments.entries)
        run.tracker.tag("data.digest", pool.digest)
        if arguments.blind:
            conditions = no_conditions(pool, preset)
        else:
            parts, embedder = load_embedder(preset, arguments.pretrained, arguments.stage1)
            run.tracker.built_on(captioner=parts.folder, embedder=arguments.stage1)
            # A network without semantic attention reads no captions.
            captioner = parts.need_captioner() if preset.sampler.unet.semantic else None
            conditions = embed_pool(pool, captioner, embedder, arguments.pool, run.compute.device)
    T = preset.sampler.schedule.T
    loader = CropLoader(
        pool, conditions, preset.labels, config, T=T, seed=run.seed, blind=arguments.blind
    )
    unet = UNet(preset.sampler.unet)
    if arguments.init is None and arguments.adapter is not None:
        raise OptionError("--adapter names one of the networks of --init: give that, too.")
    if arguments.init is not None:
        given = _given(arguments.init, arguments.adapter).state_dict()
        load_strictly(unet, given, may_miss=r"\.more\.")
    task = SamplerTask(preset, config, loader, run, unet)
    if not arguments.no_compile:
        unet.forward = torch.compile(unet.forward, dynamic=False)  # type: ignore[method-assign]
    fit(task, config.loop, run)


def _given(init: Path, label: str | None) -> UNet:
    """The network of a bundle to begin with: that for every damage, or for one."""
    bundle = load_bundle(init)
    if label is None:
        return build_unet(bundle)
    networks = {one.label: one.unet for one in build_sampler(bundle).adapted}
    if label not in networks:
        raise OptionError(
            f"{init} has no adapter for {label!r}, but for: {', '.join(networks) or 'none'}."
        )
    return networks[label]


if __name__ == "__main__":
    main()
