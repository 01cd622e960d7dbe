"""Stage 1, the embedder: ``python -m training.stage1 --data photos/ pairs/ captioned/``.

Trains the degradation controller and the LoRA caption encoder against the frozen CLIP (paper, section 3.2, eq. 3)::

    L = L_c(f_I, f_GT^T) + L_c(f_D, f_D^T) + α (1 − cos(f_LQ^T, f_GT^T)),   α = 0.5

Two readings of ours. The second term classifies f_D against the label set: in a batch many pictures share a label, and
the reference counts them as negatives of each other. The first term uses the captioned photos only: their captions are
human, so they are true of the content.

Where the preset has a convolutional path, f_D also learns to say how much is wrong (:mod:`training.data.severity`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.cache import fingerprint
from training.command import Stage, add_common, run_stage
from training.data.folders import find_data
from training.data.pool import Pool
from training.data.severity import SEVERITIES
from training.data.views import DamageData, StageOneData, prepare_damage, prepare_stage1
from training.engine.checkpoints import Checkpoints
from training.engine.loop import Run, Task, fit, seed_of
from training.pretrain import contrastive_loss
from training.pretrained import load_pretrained, new_embedder
from vlmir.bundle import load_bundle
from vlmir.errors import OptionError
from vlmir.vlm.clip import DegradationCLIP, DetailStem, encode_tower

__all__ = ["JointTask", "StemTask", "main", "work"]


class StemTask(Task):
    """First phase: the controller's convolutional path alone learns to tell the labels apart; then it is frozen."""

    name = "stem"

    def __init__(
        self, network: DegradationCLIP, data: DamageData, *, batch: int, severity: float, run: Run
    ) -> None:
        super().__init__()
        stem = network.controller.stem
        assert stem is not None
        self.stem: DetailStem = stem.to(run.compute.device).to(memory_format=torch.channels_last)
        self._head = [network.to(run.compute.device)]  # in a list: not a part of what is trained
        self._severity_axes = unnamed_axes(network.label_embeddings, SEVERITIES)
        self._data, self._batch, self._severity, self._run = data, batch, severity, run
        self.data = data.digest

    @property
    def model(self) -> nn.Module:
        """The convolutional path."""
        return self.stem

    def draw(self, step: int) -> DamageData:
        """This worker's pictures of a step."""
        generator = torch.Generator().manual_seed(seed_of(self._run.seed, step))
        places = self._run.workers.share(self._batch)
        return self._data.draw(self._batch, generator).part(places)

    def forward(self, batch: DamageData) -> dict[str, Tensor]:
        """The classification of f_D, what it says of the severity, and how many labels were right."""
        views = batch.normalised_views().contiguous(memory_format=torch.channels_last)
        with self._run.compute.autocast():
            f_D = self.stem(views)
        f_D = f_D.float()
        logits = self._head[0].degradation_logits(f_D)
        label = F.cross_entropy(logits, batch.labels, label_smoothing=0.02)
        said = f_D @ self._severity_axes.T
        severity = F.smooth_l1_loss(said, batch.severity)
        return {
            "loss": label + self._severity * severity,
            "accuracy": (logits.argmax(1) == batch.labels).float().mean(),
            "severity": severity,
        }


def unnamed_axes(label_embeddings: Tensor, count: int) -> Tensor:
    """``count`` orthonormal directions (count×D) that are orthogonal to all K×D label embeddings.

    What f_D says along them does not move its similarity with any label but by its length.
    """
    # The right singular vectors beyond the K-th span what no label uses.
    Vh: Tensor = torch.linalg.svd(label_embeddings.double()).Vh
    return Vh[len(label_embeddings) :][:count].float()


class JointTask(Task):
    """Second phase: controller and caption encoder together.

    The convolutional path stays as the first phase left it: on these fewer pictures it would learn them by heart.
    """

    name = "embedder"

    def __init__(
        self, network: DegradationCLIP, data: StageOneData, *, batch: int, alpha: float, run: Run
    ) -> None:
        super().__init__()
        if network.controller.stem is not None:
            network.controller.stem.requires_grad_(False)
        self.network = network.to(run.compute.device)
        self._data, self._batch, self._alpha, self._run = data, batch, alpha, run
        self.data = data.digest
        self._stem = fingerprint(network.controller.stem) if network.controller.stem else ""

    @property
    def model(self) -> nn.Module:
        """The whole embedder; its CLIP needs no gradient."""
        return self.network

    def train(self, mode: bool = True) -> JointTask:
        """Everything but the frozen path goes into training mode."""
        super().train(mode)
        if self.network.controller.stem is not None:
            self.network.controller.stem.eval()
        return self

    def draw(self, step: int) -> StageOneData:
        """This worker's pictures of a step."""
        generator = torch.Generator().manual_seed(seed_of(self._run.seed, step))
        places = self._run.workers.share(self._batch)
        return self._data.draw(self._batch, generator).part(places)

    def extra_state(self) -> dict[str, Any]:
        """Which convolutional path this phase was begun on."""
        return {"stem": self._stem}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Refuse to go on upon another path.

        Raises:
            OptionError: The first phase has gone on since.
        """
        if state["stem"] != self._stem:
            raise OptionError(
                f"The joint phase in {self._run.out} was begun on another convolutional path; delete its folder "
                f"{self.name!r}, and it starts anew."
            )

    def forward(self, batch: StageOneData) -> dict[str, Tensor]:
        """The three terms of eq. 3 on a batch whose first pictures are captioned photos, and their sum."""
        network, gathered, half = self.network, self._run.workers.gathered, batch.captioned
        views = batch.normalised_views()
        # The plain formula: on CPUs it takes less time than flash attention for so few tokens.
        with sdpa_kernel(SDPBackend.MATH), self._run.compute.autocast():
            f_D, control = network.controller(views)
            kept = [hidden[:half] for hidden in control]
            f_I = encode_tower(network.clip.visual, views[:half, :3], kept).float()
            f_T = network.encode_caption(batch.lq_ids).float()
        scale = network.logit_scale.exp().clamp(max=100)
        content = contrastive_loss(gathered(f_I), gathered(batch.f_GT[:half]), scale)
        degradation = F.cross_entropy(network.degradation_logits(f_D.float()), batch.labels)
        caption = (1 - F.cosine_similarity(f_T, batch.f_GT)).mean()
        return {
            "loss": content + degradation + self._alpha * caption,
            "content": content,
            "degradation": degradation,
            "caption": caption,
        }


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m training.stage1",
        description="Train the embedder: degradation controller and LoRA caption encoder.",
    )
    add_common(parser, out=Path("runs/stage1"))
    parser.add_argument(
        "--pretrained",
        type=Path,
        help="CLIP and BLIP: training.pretrain's folder or a bundle (default: runs/pretrain, or the public weights)",
    )
    parser.add_argument("--init", type=Path, help="bundle whose embedder is trained further")
    run_stage(parser.parse_args(), "stage1")


def work(arguments: argparse.Namespace, stage: Stage) -> None:
    """Train the embedder as the command line says."""
    preset, config, run = stage.preset, stage.config.stage1, stage.run
    folders = find_data(arguments.data)
    captioned = folders.one_captioned()
    with run.workers.first_alone():
        pool = folders.pool(arguments.pool)
        run.tracker.tag("data.digest", pool.digest)
    parts = load_pretrained(preset, arguments.init or arguments.pretrained)
    parts.need_captioner()
    run.tracker.built_on(captioner=parts.folder)
    init = load_bundle(arguments.init) if arguments.init is not None else None
    network = new_embedder(preset, parts, init)
    if network.controller.stem is not None and config.stem.steps:
        # Prepared in a scope of its own: its pictures take more memory than the joint phase has to spare.
        train_stem(network, arguments, stage)
    with run.workers.first_alone():
        data = prepare_stage1(preset, parts, pool, captioned, arguments.pool, run.compute.device)
    joint = config.joint
    task = JointTask(network, data, batch=joint.batch, alpha=config.alpha, run=run)
    fit(task, joint, run)


def train_stem(network: DegradationCLIP, arguments: argparse.Namespace, stage: Stage) -> None:
    """The first phase, on pictures of its own; they are read only where there is a step to do."""
    config, run = stage.config.stage1.stem, stage.run
    captioned = find_data(arguments.data).one_captioned()
    done = Checkpoints(run.out / StemTask.name).latest()
    if run.resume and done is not None and done["step"] >= config.steps:
        stem = network.controller.stem
        assert stem is not None
        stem.load_state_dict(done["model"])
        return
    with run.workers.first_alone():
        data = prepare_damage(
            stage.preset, Pool(arguments.pool), captioned, arguments.pool, seed=run.seed
        )
    severity = stage.config.stage1.severity
    fit(StemTask(network, data, batch=config.batch, severity=severity, run=run), config, run)


if __name__ == "__main__":
    main()
