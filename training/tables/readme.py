"""The tables of README and model card: restoration by bench, synthetic damage, and everything else."""

from __future__ import annotations

from collections.abc import Callable

from training.measure.benches import MARGINS
from training.tables.cells import Numbers, decibels, grid
from vlmir.degradations import LABELS

__all__ = ["markdown"]

_BENCHES = {
    "CBSD68 σ=50": "CBSD68, Gaussian σ = 50 (clipped, uint8)",
    "CBSD68 σ=50 float": "CBSD68, Gaussian σ = 50 (not clipped, float)",
    "SOTS-indoor": "SOTS-indoor, haze",
    "Rain100H": "Rain100H, rain",
    "RainDrop": "RainDrop, real drops",
}


def markdown(results: Numbers) -> str:
    """What was measured of what, then tables: restoration by bench, synthetic damage, and everything else.

    What has not been measured yet is left out of the tables, or shown as a dash in the first. Where the results have
    them, PSNR carries half the width of its 95 % confidence interval over pictures.
    """
    about = results["about"]
    what = f"`{about['release']}`, measured on {about['machine']}:"
    parts = (_restoration(results), _synthetic(results), _rest(results))
    return "\n\n".join([what, *("\n".join(rows) for rows in parts if rows)])


def _restoration(results: Numbers) -> list[str]:
    header = (
        "bench (pictures)",
        "input PSNR",
        "default, one step: PSNR / SSIM",
        "`--ensemble`: PSNR / SSIM / Y-PSNR / Y-SSIM",
        "20 stochastic steps: PSNR / SSIM",
    )
    rows = []
    for bench, title in _BENCHES.items():
        one, best, sample = (
            results.get(f"{bench}, {setting}") for setting in ("one-step", "ensemble", "stochastic")
        )
        measured = next((numbers for numbers in (one, best, sample) if numbers), None)
        if measured is None:
            continue
        rows.append(
            (
                f"{title} ({measured['pictures']})",
                f"{measured['input_psnr']:.2f} dB",
                _cell(one, _two, measured),
                _cell(best, _four, measured),
                _cell(sample, _two, measured),
            )
        )
    return grid(header, rows)


def _synthetic(results: Numbers) -> list[str]:
    """Held-out synthetic sets in the default setting, each with the gain that is asked of it."""
    header = (
        "CBSD68 with synthetic damage (pictures)",
        "input PSNR",
        "default, one step: PSNR / SSIM",
        "above the input (asked)",
    )
    measured = {name: results.get(f"{name}, one-step") for name in MARGINS}
    rows = [
        (
            f"{name} ({numbers['pictures']})",
            f"{numbers['input_psnr']:.2f} dB",
            _two(numbers),
            f"{numbers['psnr'] - numbers['input_psnr']:+.2f} dB ({MARGINS[name]:.1f})",
        )
        for name, numbers in measured.items()
        if numbers
    ]
    return grid(header, rows)


def _cell(numbers: Numbers | None, text: Callable[[Numbers], str], row: Numbers) -> str:
    """One cell; where it is of fewer or more pictures than its row says, that is said."""
    if numbers is None:
        return "–"
    pictures = numbers["pictures"]
    return text(numbers) + (f" (of {pictures})" if pictures != row["pictures"] else "")


def _two(numbers: Numbers) -> str:
    return f"{decibels(numbers)} dB / {numbers['ssim']:.4f}"


def _four(numbers: Numbers) -> str:
    return (
        f"**{decibels(numbers)} dB** / {numbers['ssim']:.4f} / "
        f"{numbers['psnr_y']:.2f} dB / {numbers['ssim_y']:.4f}"
    )


_LINES: tuple[tuple[str, str, Callable[[Numbers], str]], ...] = (
    (
        "realism",
        "CBSD68 σ = 50 at `--realism 0.5 --steps 20`: PSNR / SSIM",
        lambda n: f"{decibels(n)} dB / {n['ssim']:.4f}",
    ),
    (
        "realism",
        "sharpness there (mean gradient over the truth's; the default's)",
        lambda n: f"{n['sharpness']:.2f} ({n['sharpness_faithful']:.2f})",
    ),
    (
        "labels",
        "degradation label accuracy, 11 labels, held-out photos",
        lambda n: f"{n['accuracy']:.1%} of {n['pictures']} ({_weakest(n)})",
    ),
    (
        "alignment",
        "cosine of the damaged photo's caption with the true ones, before → after stage 1 (with another photo's)",
        lambda n: (
            f"{n['before']:.3f} ({n['before_other']:.3f}) → {n['after']:.3f} ({n['after_other']:.3f})"
        ),
    ),
    (
        "language",
        "caption → photo retrieval, R@10 among 1,000 photos",
        lambda n: f"{n['retrieval_recall_at_10']:.1%} ({n['retrieval_times_chance']:.1f} × chance)",
    ),
    (
        "language",
        "captions, BLEU-4 (best constant sentence)",
        lambda n: f"{n['bleu4']:.2f} ({n['bleu4_best_constant']:.2f})",
    ),
    (
        "consistency",
        "same seed alone and in a batch of 4, greatest difference (0…1)",
        lambda n: f"{n['batch_difference']:.1e}",
    ),
    ("consistency", "the same in bfloat16", lambda n: f"{n['batch_psnr_bf16']:.1f} dB"),
    (
        "consistency",
        "one evaluation in bfloat16 against float32",
        lambda n: f"{n['bf16_psnr']:.1f} dB",
    ),
    (
        "consistency",
        "tiled against untiled, 512², 8 stochastic steps",
        lambda n: f"{n['tiled_psnr']:.1f} dB",
    ),
    (
        "consistency",
        "clean photos that come back at 40 dB or more (median)",
        lambda n: f"{n['clean_above_40_db']:.0%} ({n['clean_psnr_median']:.1f} dB)",
    ),
    ("speed", "`import vlmir`", lambda n: f"{n['import_s']:.2f} s"),
    (
        "speed",
        "`vlmir restore` of a 481×321 photo, start-up included",
        lambda n: f"{n['cli_s']:.1f} s",
    ),
    ("speed", "the same photo, warm, in process", lambda n: f"{n['warm_s']:.2f} s"),
    (
        "speed",
        "24 megapixels: time and peak memory of the process",
        lambda n: f"{n['big_s']:.0f} s, {n['big_gib']:.1f} GiB",
    ),
)
"""(Part of the results, what it is, how it is written)."""


def _weakest(labels: Numbers) -> str:
    """The three labels that are missed most."""
    shares = {name: labels[name] for name in LABELS if name in labels}
    worst = sorted(shares, key=lambda label: shares[label])[:3]
    return "weakest: " + ", ".join(f"{label} {shares[label]:.0%}" for label in worst)


def _rest(results: Numbers) -> list[str]:
    rows = [(what, text(results[part])) for part, what, text in _LINES if part in results]
    return grid(("what", "measured"), rows)
