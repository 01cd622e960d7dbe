"""A picture's evaluations by the network, window by window, apart from whoever makes the network calls.

A :class:`Sweep` is one evaluation of a whole picture. It hands out its windows one by one, cut only then, and puts x̂₀
together from the answers. Windows of one padded size, of any picture, step and time index, may share one call of
:func:`evaluate`: an answer does not depend on its neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from vlmir.diffusion import IRSDE
from vlmir.errors import VlmirError
from vlmir.image.tiles import TilePlan
from vlmir.nn import Conditioning, UNet, pad_to_multiple
from vlmir.nn.attention import Context, TransformerContext

__all__ = ["Evaluation", "SampleStep", "Sweep", "Work", "evaluate", "padded"]


class SampleStep(NamedTuple):
    """One window of one network evaluation done."""

    step: int
    """Whole evaluations so far."""
    share: float
    """Share of all the work that is done, above 0, at most 1."""
    x0: Tensor | None
    """After the last window of an evaluation: the clean picture as the network sees it now, B×3×H×W, or at half the
    size where it was looked at so. It may change when the run goes on."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Work:
    """What is the same for every sweep over one picture."""

    mu: Tensor
    """The low-quality picture, 3×H×W, 0…1."""
    unet: UNet
    """The network that looks at it."""
    conditioning: Conditioning
    """Its conditions, prepared by that network as a batch of one."""
    tiles: TilePlan
    mirrors: Sequence[tuple[int, ...]]
    """The axes along which each window is flipped, one evaluation for each entry."""
    evaluations: int
    """Sweeps in all."""
    schedule: IRSDE
    prediction: str
    """What the network's output means."""


class Evaluation(NamedTuple):
    """One window, maybe mirrored, for the network to look at."""

    x: Tensor
    """Its state, 3×h×w; like ``mu`` a view where that is possible."""
    mu: Tensor
    """Its low-quality pixels, 3×h×w."""
    t: int
    """The time index."""
    unet: UNet
    """Which is to look at it."""
    conditioning: Conditioning
    """Of its picture, a batch of one."""
    window: int
    """Number of the window in its picture."""
    axes: tuple[int, ...]
    """Along which it is flipped."""

    @property
    def pixels(self) -> int:
        """Pixels of the window, h · w."""
        return self.x.shape[-2] * self.x.shape[-1]


class Sweep:
    """One evaluation of one whole picture.

    An x̂₀ is the mean over the window's mirror images: a restorer should turn a mirrored picture into the mirrored
    result; where it does not, the mean is nearer to the truth than any one of them (Timofte et al. 2016, "Seven ways
    to improve example-based single image super resolution", section 3.6). Windows are blended by the tile plan.

    Args:
        x: The picture's state, 3×H×W. It must not change before the sweep is complete.
        t: The time index.
        work: What all sweeps share.
    """

    def __init__(self, x: Tensor, t: int, work: Work) -> None:
        self._x, self._t, self._work = x, t, work
        self._taken = 0
        self._done = 0
        self._waiting = dict[int, list[Tensor]]()
        self.x0 = torch.zeros_like(x)
        """The clean picture as the network sees it, 3×H×W; whole once the sweep is complete."""

    @property
    def complete(self) -> bool:
        """Whether every window has been answered."""
        return self._done == len(self._work.tiles.windows)

    @property
    def unet(self) -> UNet:
        """The network that looks at the picture."""
        return self._work.unet

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the next window; None: all have been taken."""
        number = self._taken // len(self._work.mirrors)
        if number == len(self._work.tiles.windows):
            return None
        window = self._work.tiles.windows[number]
        return window.height, window.width

    def take(self) -> Evaluation:
        """The next evaluation; each is handed out once.

        Raises:
            IndexError: All have been taken.
        """
        number, mirror = divmod(self._taken, len(self._work.mirrors))
        window, axes = self._work.tiles.windows[number], self._work.mirrors[mirror]
        x, mu = (
            whole[..., *window.slices].flip(axes) if axes else whole[..., *window.slices]
            for whole in (self._x, self._work.mu)
        )
        self._taken += 1
        return Evaluation(x, mu, self._t, self._work.unet, self._work.conditioning, number, axes)

    def give(self, asked: Evaluation, output: Tensor) -> bool:
        """Answer an evaluation that was taken, in any order.

        Args:
            asked: The evaluation.
            output: The network's output for it, 3×h×w.

        Returns:
            Whether its window is done: the last of its mirror images was answered.

        Raises:
            VlmirError: The output holds values that are no numbers.
        """
        work = self._work
        x0 = work.schedule.to_x0(output, asked.x, asked.mu, asked.t, work.prediction)
        if not torch.isfinite(x0).all():
            raise VlmirError(
                "The network produced values that are no numbers; its weights are unfit."
            )
        if work.prediction == "noise":
            # The network's error is magnified s_t / a_t times in it, 39 times at T, so it would leave what pictures can
            # hold and lead all later steps astray (DDPM, Ho et al. 2020, clips likewise).
            x0.clamp_(0, 1)
        patches = self._waiting.setdefault(asked.window, [])
        patches.append(x0.flip(asked.axes))
        if len(patches) < len(work.mirrors):
            return False
        patch = torch.stack(self._waiting.pop(asked.window)).mean(0)
        work.tiles.add(self.x0.numpy(), asked.window, patch.numpy())  # the same memory
        self._done += 1
        return True

    def told(self, after: int) -> SampleStep:
        """Progress, where ``after`` sweeps were complete before this one."""
        share = (after + self._done / len(self._work.tiles.windows)) / self._work.evaluations
        return SampleStep(
            after + self.complete, share, self.x0.unsqueeze(0) if self.complete else None
        )


def padded(size: tuple[int, int], multiple: int) -> tuple[int, int]:
    """Height and width that a network computes with, which pads to multiples of so many pixels."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def evaluate(evaluations: Sequence[Evaluation]) -> list[Tensor]:
    """The network's outputs for evaluations of one padded size, in one call; each 3×h×w of its window.

    Pictures with different damage may be for different networks (:mod:`vlmir.nn.adapters`): each has its own call then.
    """
    outputs = dict[int, Tensor]()
    for unet in dict.fromkeys(evaluation.unet for evaluation in evaluations):
        own = [i for i, evaluation in enumerate(evaluations) if evaluation.unet is unet]
        outputs |= zip(own, _evaluate(unet, [evaluations[i] for i in own]), strict=True)
    return [outputs[i] for i in range(len(evaluations))]


@torch.inference_mode()
def _evaluate(unet: UNet, evaluations: Sequence[Evaluation]) -> list[Tensor]:
    """The outputs of one network, in one call."""
    same = len({evaluation.x.shape for evaluation in evaluations}) == 1
    device = unet.device
    x, mu = (
        torch.stack(
            windows
            if same
            else [pad_to_multiple(window[None], unet.multiple)[0] for window in windows]
        )
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        for windows in ([e.x for e in evaluations], [e.mu for e in evaluations])
    )
    outputs = unet(
        x,
        mu,
        torch.tensor([evaluation.t for evaluation in evaluations], device=device),
        _joined([evaluation.conditioning for evaluation in evaluations]),
    ).to("cpu")
    return [
        output[:, : asked.x.shape[1], : asked.x.shape[2]]
        for output, asked in zip(outputs, evaluations, strict=True)
    ]


def _joined(parts: Sequence[Conditioning]) -> Conditioning:
    """Conditions of several pictures as one batch."""
    if len(parts) == 1:
        return parts[0]
    contexts = zip(*(part.contexts for part in parts), strict=True)
    return Conditioning(
        torch.cat([part.prompt for part in parts]),
        tuple(_joined_contexts(same) for same in contexts),
    )


def _joined_contexts(parts: Sequence[TransformerContext]) -> TransformerContext:
    semantic = [part.semantic for part in parts if part.semantic is not None]
    return TransformerContext(
        _stacked(semantic) if semantic else None, _stacked([part.image for part in parts])
    )


def _stacked(parts: Sequence[Context]) -> Context:
    return Context(
        torch.cat([part.key for part in parts]), torch.cat([part.value for part in parts])
    )
