"""Tables of measured numbers: ``python -m training.table out/evaluation.json --into README.md --bundle FOLDER``.

Reads what :mod:`training.evaluate` wrote, prints Markdown, and on request puts it between the markers of the README
and the model card, and the numbers themselves into the bundle's ``bundle.json``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from training.cache import fingerprint
from vlmir.bundle import Bundle, load_bundle

__all__ = ["identity", "main", "markdown", "write_into_bundle", "write_into_markdown"]

START, END = "<!-- numbers -->", "<!-- /numbers -->"

_BENCHES = {
    "CBSD68 σ=50": "CBSD68, Gaussian σ = 50 (clipped, uint8)",
    "SOTS-indoor": "SOTS-indoor, haze",
    "Rain100H": "Rain100H, rain",
    "RainDrop": "RainDrop, real drops",
}

Numbers = Mapping[str, Any]


def markdown(results: Numbers) -> str:
    """What was measured of what, then two tables: restoration by bench, and everything else.

    What has not been measured yet is left out of the second table and shown as a dash in the first.
    """
    about = results["about"]
    what = f"`{about['release']}`, measured on {about['machine']}:"
    return "\n".join([what, "", *_restoration(results), "", *_rest(results)])


def _restoration(results: Numbers) -> list[str]:
    rows = [
        "| bench (pictures) | input PSNR | default, one step: PSNR / SSIM "
        "| `--ensemble`: PSNR / SSIM / Y-PSNR / Y-SSIM | 20 stochastic steps: PSNR / SSIM |",
        "|---|---|---|---|---|",
    ]
    for bench, title in _BENCHES.items():
        one, best, sample = (
            results.get(f"{bench}, {setting}") for setting in ("one-step", "ensemble", "stochastic")
        )
        measured = next((numbers for numbers in (one, best, sample) if numbers), None)
        if measured is None:
            continue
        cells = [
            f"{title} ({measured['pictures']})",
            f"{measured['input_psnr']:.2f} dB",
            _cell(one, lambda n: f"{n['psnr']:.2f} dB / {n['ssim']:.4f}", measured),
            _cell(best, _four, measured),
            _cell(sample, lambda n: f"{n['psnr']:.2f} dB / {n['ssim']:.4f}", measured),
        ]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def _cell(numbers: Numbers | None, text: Callable[[Numbers], str], row: Numbers) -> str:
    """One cell; where it is of fewer or more pictures than its row says, that is said."""
    if numbers is None:
        return "–"
    pictures = numbers["pictures"]
    return text(numbers) + (f" (of {pictures})" if pictures != row["pictures"] else "")


def _four(numbers: Numbers) -> str:
    return (
        f"**{numbers['psnr']:.2f} dB** / {numbers['ssim']:.4f} / "
        f"{numbers['psnr_y']:.2f} dB / {numbers['ssim_y']:.4f}"
    )


_LINES: tuple[tuple[str, str, Callable[[Numbers], str]], ...] = (
    (
        "labels",
        "degradation label accuracy, 11 labels, held-out photos",
        lambda n: f"{n['accuracy']:.1%} of {n['pictures']} ({_weakest(n)})",
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
    shares = {name: n for name, n in labels.items() if name not in ("accuracy", "pictures")}
    worst = sorted(shares, key=lambda label: shares[label])[:3]
    return "weakest: " + ", ".join(f"{label} {shares[label]:.0%}" for label in worst)


def _rest(results: Numbers) -> list[str]:
    rows = [f"| {what} | {text(results[part])} |" for part, what, text in _LINES if part in results]
    return ["| what | measured |", "|---|---|", *rows]


def write_into_markdown(file: Path, text: str) -> None:
    """Put ``text`` between the markers of a Markdown file.

    Raises:
        ValueError: It has none.
    """
    before, start, rest = file.read_text("utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not (start and end):
        raise ValueError(f"{file} has no {START} … {END}; add both lines where the tables go.")
    file.write_text(f"{before}{START}\n{text}\n{END}{after}", encoding="utf-8")


def identity(bundle: Bundle) -> dict[str, Any]:
    """What tells one bundle's numbers from another's: release, digests, and architecture with its switches."""
    preset = fingerprint(dataclasses.asdict(bundle.preset))
    return {"release": bundle.release, "digests": bundle.digests, "preset": preset}


def write_into_bundle(folder: Path, results: Numbers) -> None:
    """Store the numbers as the metrics of the bundle they were measured of.

    Raises:
        ValueError: They are of another bundle.
    """
    file = folder / "bundle.json"
    bundle = json.loads(file.read_text("utf-8"))
    own = identity(load_bundle(folder))
    if own != {name: results["about"].get(name) for name in own}:
        raise ValueError(f"The numbers are not of the bundle in {folder}; evaluate that one.")
    numbers = {name: value for name, value in results.items() if name != "about"}
    bundle["metrics"] = numbers | {"machine": results["about"]["machine"]}
    file.write_text(json.dumps(bundle, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path, help="JSON that training.evaluate wrote")
    parser.add_argument(
        "--into",
        type=Path,
        action="append",
        default=[],
        help="Markdown file to put the tables into",
    )
    parser.add_argument("--bundle", type=Path, help="bundle folder to store the numbers in")
    arguments = parser.parse_args()
    results = json.loads(arguments.results.read_text("utf-8"))
    text = markdown(results)
    print(text)
    for file in arguments.into:
        write_into_markdown(file, text)
    if arguments.bundle:
        write_into_bundle(arguments.bundle, results)


if __name__ == "__main__":
    main()
