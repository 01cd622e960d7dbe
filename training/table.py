"""The README's table of measured numbers, from the JSON that :mod:`training.evaluate` writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["markdown"]

_BENCHES = {
    "CBSD68 σ=50": "CBSD68, Gaussian σ = 50 (clipped, uint8)",
    "SOTS-indoor": "SOTS-indoor, haze (20 pairs)",
    "Rain100H": "Rain100H, rain (16 pairs)",
    "RainDrop": "RainDrop, real drops (6 pairs)",
}


def markdown(metrics: Mapping[str, Any]) -> str:
    """Two Markdown tables: restoration by bench, and everything else."""
    return "\n".join([*_restoration(metrics), "", *_rest(metrics)])


def _restoration(metrics: Mapping[str, Any]) -> list[str]:
    rows = [
        "| bench | input PSNR | default, one step: PSNR / SSIM | `--ensemble`: PSNR / SSIM / Y-PSNR / Y-SSIM "
        "| 20 stochastic steps: PSNR / SSIM |",
        "|---|---|---|---|---|",
    ]
    for bench, title in _BENCHES.items():
        one, best, sample = (
            metrics[f"{bench}, {setting}"] for setting in ("one-step", "ensemble", "stochastic")
        )
        rows.append(
            f"| {title} | {one['input_psnr']:.2f} dB | {one['psnr']:.2f} dB / {one['ssim']:.4f} | "
            f"**{best['psnr']:.2f} dB** / {best['ssim']:.4f} / {best['psnr_y']:.2f} dB / {best['ssim_y']:.4f} | "
            f"{sample['psnr']:.2f} dB / {sample['ssim']:.4f} |"
        )
    return rows


def _rest(metrics: Mapping[str, Any]) -> list[str]:
    labels, language = metrics["labels"], metrics["language"]
    same, speed = metrics["consistency"], metrics["speed"]
    lines = {
        "degradation label accuracy, 11 labels, 68 held-out photos each": f"{labels['accuracy']:.1%}",
        "caption → photo retrieval, R@10 among 1,000 photos": f"{language['retrieval_recall_at_10']:.1%} "
        f"({language['retrieval_times_chance']:.1f} × chance)",
        "captions, BLEU-4 (best constant sentence)": f"{language['bleu4']:.2f} ({language['bleu4_best_constant']:.2f})",
        "same seed alone and in a batch of 4, greatest difference (0…1)": f"{same['batch_difference']:.1e}",
        "tiled against untiled, 512², 8 stochastic steps": f"{same['tiled_psnr']:.1f} dB",
        "clean photos that come back at 40 dB or more": f"{same['clean_above_40_db']:.1%}",
        "`import vlmir`": f"{speed['import_s']:.2f} s",
        "`vlmir restore` of a 481×321 photo, start-up included": f"{speed['cli_s']:.1f} s",
        "the same photo, warm, in process": f"{speed['warm_s']:.2f} s",
        "24 megapixels: time and peak memory of the process": f"{speed['big_s']:.0f} s, {speed['big_gib']:.1f} GiB",
    }
    return ["| what | measured |", "|---|---|", *(f"| {k} | {v} |" for k, v in lines.items())]
