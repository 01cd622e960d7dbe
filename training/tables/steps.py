"""Quality against network evaluations, for every solver, and what follows from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from textwrap import fill

from training.tables.cells import Numbers, grid

__all__ = ["FEW", "SUFFIX", "markdown", "marker"]

SUFFIX = ", steps"
"""Names of these measurements: the bench's, and this."""

FEW = 8
"""Evaluations that should do as well as …"""
REFERENCE = ("posterior", "100")
"""… the published procedure."""


def marker(results: Numbers) -> str:
    """Name of the place for the tables: networks that predict noise are another matter, and have one of their own."""
    return "noise-steps" if results["about"].get("prediction") == "noise" else "steps"


def markdown(results: Numbers) -> str:
    """Tables by solver and by realism with what they allow to say; empty where nothing was measured."""
    benches = {
        name.removesuffix(SUFFIX): numbers
        for name, numbers in results.items()
        if name.endswith(SUFFIX)
    }
    if not benches:
        return ""
    about, some = results["about"], next(iter(benches.values()))
    said = (
        f"`{about['release']}` on {about['machine']}: PSNR in dB / SSIM, means over the middle {some['side']}² of the "
        f"first {some['pictures']} pictures of each bench, one seed. Rows of solvers: samples (realism 1); columns: "
        "network evaluations."
    )
    dial = "The realism dial, 20 evaluations by the bundle's solver; columns: realism."
    parts = [
        fill(said, 120),
        "\n".join(_by_solver(benches)),
        fill(_reached(benches), 120),
        f"{dial}\n\n" + "\n".join(_by_realism(benches)),
        fill(_falls(benches), 120),
    ]
    return "\n\n".join(parts)


def _by_solver(benches: Mapping[str, Numbers]) -> list[str]:
    columns = list(next(iter(benches.values()))["solvers"][REFERENCE[0]])
    rows = []
    for bench, numbers in benches.items():
        title = f"{bench} (input {numbers['input_psnr']:.2f})"
        own = str(numbers["evaluations"])
        cells = [_cell(numbers) if column == own else "–" for column in columns]
        rows.append([title, "realism 0", *cells])
        for solver, found in numbers["solvers"].items():
            rows.append(["", f"`{solver}`", *(_cell(found[column]) for column in columns)])
    return grid(["bench", "way", *columns], rows)


def _by_realism(benches: Mapping[str, Numbers]) -> list[str]:
    columns = list(next(iter(benches.values()))["dial"])
    rows = [
        [bench, *(_cell(numbers["dial"][column]) for column in columns)]
        for bench, numbers in benches.items()
    ]
    return grid(["bench", *columns], rows)


def _cell(numbers: Numbers) -> str:
    return f"{numbers['psnr']:.2f} / {numbers['ssim']:.3f}"


def _reached(benches: Mapping[str, Numbers]) -> str:
    """Which few evaluations are at least as good as the reference in both measures on every bench."""
    references = [numbers["solvers"][REFERENCE[0]][REFERENCE[1]] for numbers in benches.values()]
    good = []
    for way, found in _few(benches):
        gains = [
            [own[m] - ref[m] for m in ("psnr", "ssim")]
            for own, ref in zip(found, references, strict=True)
        ]
        if min(map(min, gains)) >= 0:
            decibels = [gain[0] for gain in gains]
            good.append(f"{way} (by {min(decibels):.2f} to {max(decibels):.2f} dB)")
    if not good:
        return f"No {FEW} evaluations or fewer equal 100 posterior steps in PSNR and SSIM on every bench."
    return "Equal to or better than 100 posterior steps in PSNR and SSIM on every bench: " + (
        "; ".join(good) + "."
    )


def _few(benches: Mapping[str, Numbers]) -> Iterator[tuple[str, list[Numbers]]]:
    """Each way of at most :data:`FEW` evaluations, and what it gives on each bench."""
    count = next(iter(benches.values()))["evaluations"]
    yield f"realism 0 with {count}", list(benches.values())
    for solver, counts in next(iter(benches.values()))["solvers"].items():
        for count in (count for count in counts if int(count) <= FEW):
            found = [numbers["solvers"][solver][count] for numbers in benches.values()]
            yield f"`{solver}` with {count}", found


def _falls(benches: Mapping[str, Numbers]) -> str:
    """Whether PSNR falls along the dial, bench by bench."""
    rising = [
        bench
        for bench, numbers in benches.items()
        if any(a["psnr"] <= b["psnr"] for a, b in pairwise(numbers["dial"].values()))
    ]
    if rising:
        return f"PSNR does not fall at every step of the dial on {', '.join(rising)}."
    return "PSNR falls at every step of the dial on every bench."
