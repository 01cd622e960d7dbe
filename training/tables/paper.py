"""The paper's Tables 1, 3 and 4 with our numbers beside them, and which damage is taken for which.

``python -m training.table out/evaluation.json --tables training/RESULTS.md`` writes them. The paper's rows are copied
from Yang, Dong, Lam, *Vision-Language Model Guided Image Restoration*.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import fill
from types import MappingProxyType

from training.tables.cells import Numbers, decibels, grid
from vlmir.metrics.perceptual import ALEXNET, INCEPTION

__all__ = ["markdown"]

Row = tuple[str, ...]

COLUMNS = ("PSNR, dB", "SSIM", "Y-PSNR, dB", "Y-SSIM", "LPIPS", "FID")

TABLE_1: Mapping[str, tuple[str, tuple[Row, ...]]] = MappingProxyType(
    {
        "RainDrop": (
            "raindrop (the paper: RainDrop's 58 test pictures; ours: a few of RainDrop)",
            (
                ("AirNet", "22.09", "0.8218", "23.66", "0.8732", "0.0757", "119.50"),
                ("PromptIR", "28.01", "0.8771", "29.83", "0.9134", "0.0429", "72.33"),
                ("IR-SDE", "27.89", "0.8707", "29.57", "0.9039", "0.0633", "32.37"),
                ("DA-CLIP", "29.09", "0.8856", "30.89", "0.9161", "0.0568", "21.72"),
                ("VLMIR", "29.36", "0.8866", "31.14", "0.9175", "0.0553", "25.99"),
            ),
        ),
        "SOTS-indoor": (
            "dehazing (the paper: 50 pictures of RESIDE-6k; ours: SOTS-indoor)",
            (
                ("AirNet", "27.45", "0.9475", "28.96", "0.9697", "0.0150", "29.59"),
                ("PromptIR", "27.58", "0.9479", "29.13", "0.9699", "0.0162", "26.25"),
                ("IR-SDE", "18.67", "0.8411", "20.11", "0.8933", "0.0928", "19.80"),
                ("DA-CLIP", "30.01", "0.9488", "31.62", "0.9742", "0.0199", "7.45"),
                ("VLMIR", "30.22", "0.9523", "31.85", "0.9745", "0.0199", "8.99"),
            ),
        ),
        "CBSD68 σ=50": (
            "denoising, σ = 50 (both: CBSD68; ours: protocol `file`, clipped and rounded)",
            (
                ("AirNet", "28.00", "0.7975", "29.67", "0.8214", "0.0747", "86.85"),
                ("PromptIR", "27.06", "0.7517", "28.88", "0.7884", "0.0965", "89.19"),
                ("IR-SDE", "25.54", "0.7057", "27.18", "0.7427", "0.1833", "77.03"),
                ("DA-CLIP", "25.71", "0.7157", "27.28", "0.7493", "0.1766", "74.09"),
                ("VLMIR", "25.74", "0.7171", "27.32", "0.7507", "0.1793", "71.82"),
            ),
        ),
        "CBSD68 σ=50 float": (
            "the same noise neither clipped nor rounded (protocol `float`)",
            (),
        ),
    }
)
"""Bench → its title and the paper's rows of Table 1."""

TABLE_3: tuple[Row, ...] = (
    ("SCA", "29.51", "0.9497", "31.09", "0.9741", "0.0207", "9.11"),
    ("ICA", "29.67", "0.9499", "31.24", "0.9738", "0.0206", "8.58"),
    ("SCA&ICA", "30.22", "0.9523", "31.85", "0.9745", "0.0199", "8.99"),
)
"""The paper's, on dehazing."""

TABLE_4: tuple[Row, ...] = (
    ("‘This is a photo’", "29.90", "0.9541", "–", "–", "0.0190", "8.572"),
    ("Null", "29.55", "0.9554", "–", "–", "0.0198", "8.86"),
    ("LQ caption", "30.22", "0.9513", "–", "–", "0.0199", "8.99"),
)
"""The paper's, on dehazing; it has no luma columns."""

_SETTINGS = {
    "one-step": "ours, one step",
    "ensemble": "ours, `--ensemble`",
    "stochastic": "ours, 20 stochastic steps",
}
_ABLATED = {
    "SOTS-indoor": "haze (SOTS-indoor)",
    "CBSD68 σ=50": "noise (CBSD68, σ = 50, `file`)",
}
_MODULES = {
    "none": "neither",
    "SCA": "SCA",
    "ICA": "ICA",
    "SCA&ICA": "SCA&ICA",
    "SCA&ICA, no f_D": "SCA&ICA, without f_D",
}
_TEXTS = {"This is a photo": "‘This is a photo’", "ICA": "Null", "SCA&ICA": "LQ caption"}

_PROTOCOL = (
    "PSNR and SSIM by the reference's protocol (uint8, four border pixels cut); ± is half of the 95 % confidence "
    "interval over pictures. LPIPS (AlexNet) and FID (against the ground truth) are of whole pictures. FID of fewer "
    "than 2,048 pictures is biased upwards: compare it only between rows of the same pictures. *Not computed*: the "
    f"metric's weights were not at hand; give `training.evaluate` `--lpips-backbone {ALEXNET}` (torchvision's) and "
    f"`--inception {INCEPTION}` (torch-fidelity's), or put the two files into PyTorch's cache."
)
_TITLE_3 = (
    "Table 3: attention modules (ours: one network, conditions withheld at inference; the paper trained a network "
    "for each)"
)
_TITLE_4 = (
    "Table 4: input of the text encoder (ours: one network; for null the learnt null replaces f_T)"
)
_HOW = "Ours makes one step, the paper samples in 100; other test pictures, another size of model."


def markdown(results: Numbers) -> str:
    """The tables of what was measured; the paper's own rows stand in each."""
    about = results["about"]
    text = [f"`{about['release']}`, measured on {about['machine']}.", fill(_PROTOCOL, 120)]
    text += ["### Table 1: universal restoration", _table_1(results)]
    text += _ablation(results, _TITLE_3, "variant", TABLE_3, _MODULES)
    text += _ablation(results, _TITLE_4, "text", TABLE_4, _TEXTS)
    if "confusion" in results.get("labels", {}):
        text += ["### Which damage is taken for which", *_confusion(results["labels"])]
    return "\n\n".join(text)


def _table_1(results: Numbers) -> str:
    rows: list[Row] = []
    for bench, (title, papers) in TABLE_1.items():
        rows += _group(title, [*papers, *_ours(results, bench)])
    return _block(("degradation", "method", *COLUMNS), rows)


def _group(title: str, rows: Sequence[Row]) -> list[Row]:
    """Rows under one title, which stands in the first, as in the paper."""
    return [(title if number == 0 else "", *row) for number, row in enumerate(rows)]


def _ours(results: Numbers, bench: str) -> list[Row]:
    """Our rows of one bench, and the input's PSNR, the only number of it that is kept."""
    measured = {
        text: results[f"{bench}, {setting}"]
        for setting, text in _SETTINGS.items()
        if f"{bench}, {setting}" in results
    }
    rows: list[Row] = []
    for text, numbers in measured.items():
        if not rows:
            rows.append(("the input", f"{numbers['input_psnr']:.2f}", *["–"] * 5))
        seeds = numbers.get("seeds", 1)
        drawn = f", mean of {seeds} seeds" if seeds > 1 else ""
        rows.append((f"{text}{drawn} ({numbers['pictures']} pictures)", *_six(numbers)))
    return rows


def _ablation(
    results: Numbers, title: str, what: str, papers: tuple[Row, ...], variants: Mapping[str, str]
) -> list[str]:
    """One of the paper's ablations; nothing where ours was not measured."""
    rows = _group("the paper, dehazing", papers)
    for bench, place in _ABLATED.items():
        measured = {
            name: results.get(f"{bench}, ablation: {variant}") for variant, name in variants.items()
        }
        ours = [(name, *_six(numbers)) for name, numbers in measured.items() if numbers]
        pictures = {numbers["pictures"] for numbers in measured.values() if numbers}
        rows += _group(f"ours, {place}, {'/'.join(map(str, sorted(pictures)))} pictures", ours)
    if len(rows) == len(papers):
        return []
    return [f"### {title}", _HOW, _block(("where", what, *COLUMNS), rows)]


def _six(numbers: Numbers) -> Row:
    """The columns of Table 1."""
    lpips, fid = numbers.get("lpips"), numbers.get("fid")
    return (
        decibels(numbers),
        f"{numbers['ssim']:.4f}",
        f"{numbers['psnr_y']:.2f}",
        f"{numbers['ssim_y']:.4f}",
        "not computed" if lpips is None else f"{lpips:.4f}",
        "not computed" if fid is None else f"{fid:.2f}",
    )


def _confusion(labels: Numbers) -> list[str]:
    """Rows: what was done to the picture; columns: what it was judged to have."""
    confusion = labels["confusion"]
    judged = list(confusion)
    rows = [
        (truth, *(str(row[name] or "·") for name in judged)) for truth, row in confusion.items()
    ]
    low, high = labels["ci95"]["accuracy"]
    said = (
        f"{labels['accuracy']:.1%} of {labels['pictures']} are right (95 % interval over photos: {low:.1%} to "
        f"{high:.1%}). Rows: the damage done; columns: the damage judged; cells: pictures."
    )
    return [fill(said, 120), _block(("done \\ judged", *judged), rows)]


def _block(header: Sequence[str], rows: Sequence[Row]) -> str:
    return "\n".join(grid(header, rows))
