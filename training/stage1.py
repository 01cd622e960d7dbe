"""Stage 1, the embedder: ``python -m training.stage1 --photos FOLDER --captioned FOLDER --pretrained runs/pretrain``.

Trains the degradation controller and the LoRA caption encoder against the frozen CLIP (paper, section 3.2, eq. 3)::

    L = L_c(f_I, f_GT^T) + L_c(f_D, f_D^T) + α (1 − cos(f_LQ^T, f_GT^T)),   α = 0.5

Two readings of ours. The second term classifies f_D against the label set: in a batch many pictures share a label, and
the reference counts them as negatives of each other. The first term uses the captioned photos only: their captions are
human, so they are true of the content.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from training.cache import fingerprint
from training.loop import Log, adamw, cosine_rate, mixed_precision, resume, save_progress
from training.pool import build_pool, read_folder, read_pairs
from training.pretrain import contrastive_loss
from training.views import (
    DamageData,
    StageOneData,
    load_pretrained,
    prepare_damage,
    prepare_stage1,
)
from vlmir.bundle import load_bundle
from vlmir.config import load_preset
from vlmir.parts import fill_embedder
from vlmir.vlm.clip import DegradationCLIP, encode_tower

__all__ = ["main", "train", "train_stem"]

ALPHA = 0.5
BATCH = 48
STEM_BATCH = 48
STEM_RATE = 1e-3
LEARNING_RATE = 6e-4
"""The paper's 3e-5 is for 300 epochs from LAION weights; ``tiny`` makes two orders of magnitude fewer steps."""


def stage1_loss(network: DegradationCLIP, batch: StageOneData) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of eq. 3 on a batch whose first pictures are captioned photos."""
    views = batch.normalised_views()
    half = batch.captioned
    f_D, control = network.controller(views)
    kept = [hidden[:half] for hidden in control]
    f_I = encode_tower(network.clip.visual, views[:half, :3], kept)
    scale = network.logit_scale.exp().clamp(max=100)
    content = contrastive_loss(f_I.float(), batch.f_GT[:half], scale)
    degradation = F.cross_entropy(network.degradation_logits(f_D.float()), batch.labels)
    f_T = network.encode_caption(batch.lq_ids).float()
    caption = (1 - F.cosine_similarity(f_T, batch.f_GT)).mean()
    return content, degradation, caption


def train_stem(
    network: DegradationCLIP, read: Callable[[], DamageData], out: Path, steps: int
) -> None:
    """First phase: the controller's convolutional path alone learns to tell the labels apart; then it is frozen.

    A checkpoint every 100 steps; resumes from ``out/stem.pt``. The pictures are read only where there is a step to do.
    """
    stem = network.controller.stem
    if stem is None:
        return
    stem.train().to(memory_format=torch.channels_last)
    optimizer = adamw(stem.parameters(), rate=STEM_RATE, weight_decay=0.05)
    file = out / "stem.pt"
    start, _ = resume(file, stem, optimizer)
    if start >= steps:
        return
    data = read()
    log = Log(out, "stem", steps, start=start)
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, total=steps, warmup=50, peak=STEM_RATE)
        batch = data.draw(STEM_BATCH, generator)
        views = batch.normalised_views().contiguous(memory_format=torch.channels_last)
        with mixed_precision():
            f_D = stem(views)
        logits = network.degradation_logits(f_D.float())
        loss = F.cross_entropy(logits, batch.labels, label_smoothing=0.02)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if (step + 1) % 50 == 0:
            right = (logits.argmax(1) == batch.labels).float().mean()
            log(step + 1, degradation=loss.item(), accuracy=right.item())
        if (step + 1) % 100 == 0 or step + 1 == steps:
            save_progress(file, step + 1, stem, optimizer)


def _resume_joint(file: Path, network: DegradationCLIP, optimizer: torch.optim.Optimizer) -> int:
    """The steps that the joint phase has done, its state loaded.

    Raises:
        ValueError: It was begun on another convolutional path than the network has now.
    """
    stem = network.controller.stem
    before = fingerprint(stem)
    start, _ = resume(file, network, optimizer)
    if fingerprint(stem) != before:
        raise ValueError(
            f"{file} was begun on another convolutional path; delete it, and the joint phase starts anew."
        )
    return start


def train(network: DegradationCLIP, data: StageOneData, out: Path, steps: int) -> None:
    """Second phase, joint: AdamW, cosine, mixed precision; a checkpoint every 50 steps.

    It resumes from ``out/embedder.pt``. The convolutional path stays as the first phase left it: on these fewer
    pictures it would learn them by heart.
    """
    stem = network.controller.stem
    if stem is not None:
        stem.requires_grad_(False)
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = adamw(parameters, rate=LEARNING_RATE, weight_decay=0.02)
    file = out / "embedder.pt"
    start = _resume_joint(file, network, optimizer)
    log = Log(out, "stage1", steps, start=start)
    network.train()
    if stem is not None:
        stem.eval()
    for step in range(start, steps):
        generator = torch.Generator().manual_seed(step)
        for group in optimizer.param_groups:
            group["lr"] = cosine_rate(step, total=steps, warmup=20, peak=LEARNING_RATE)
        batch = data.draw(BATCH, generator)
        with sdpa_kernel(SDPBackend.MATH):
            with mixed_precision():
                content, degradation, caption = stage1_loss(network, batch)
            loss = content + degradation + ALPHA * caption
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if (step + 1) % 10 == 0:
            log(
                step + 1,
                content=content.item(),
                degradation=degradation.item(),
                caption=caption.item(),
            )
        if (step + 1) % 50 == 0 or step + 1 == steps:
            save_progress(file, step + 1, network, optimizer)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--photos", type=Path, required=True, help="folder of clean photos")
    parser.add_argument("--pairs", type=Path, help="folder of real pairs, <label>/{LQ,GT}")
    parser.add_argument("--captioned", type=Path, required=True, help="folder of captioned photos")
    parser.add_argument(
        "--pretrained",
        type=Path,
        default=Path("runs/pretrain"),
        help="what training.pretrain made, or a bundle",
    )
    parser.add_argument("--pool", type=Path, default=Path("runs/pool"), help="made if not there")
    parser.add_argument("--out", type=Path, default=Path("runs/stage1"))
    parser.add_argument("--stem-steps", type=int, default=900, help="steps of the first phase")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument(
        "--threads", type=int, help="CPU threads; the machine's number if not given"
    )
    parser.add_argument("--init", type=Path, help="bundle whose embedder is trained further")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    preset = load_preset("tiny")
    pairs = list(read_pairs(arguments.pairs)) if arguments.pairs else []
    pool = build_pool(arguments.pool, read_folder(arguments.photos), pairs)
    parts = load_pretrained(preset, arguments.init or arguments.pretrained)
    network = DegradationCLIP(preset.embedder, len(preset.labels), parts.clip)
    length = preset.embedder.clip.text_cfg.context_length
    network.set_labels(parts.tokenizer(preset.labels, length))
    if arguments.init is not None:
        fill_embedder(network, load_bundle(arguments.init))
    out: Path = arguments.out
    # Not kept in a variable: it takes more memory than the joint phase has to spare.
    train_stem(
        network,
        lambda: prepare_damage(preset, pool, arguments.captioned, out),
        out,
        arguments.stem_steps,
    )
    data = prepare_stage1(preset, parts, pool, arguments.captioned, out)
    train(network, data, out, arguments.steps)


if __name__ == "__main__":
    main()
