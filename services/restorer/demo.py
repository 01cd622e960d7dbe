"""The first thing to run: ``make demo`` starts a server, restores a photo through it, and shows the result.

A public-domain portrait is damaged in several ways; each copy goes through the gRPC call ``Restore`` of an embedded
server that runs as a process of its own. The pictures are written to ``out/demo/``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from vlmir.client import RestorationClient
from vlmir.degradations import degrade
from vlmir.image import Image, decode, encode
from vlmir.image.color import to_levels
from vlmir.metrics import psnr

__all__ = ["SHOWN", "embedded_server", "main", "run_demo"]

SHOWN: tuple[tuple[str, float], ...] = (
    ("noisy", 0.5),
    ("hazy", 0.5),
    ("rainy", 0.6),
    ("low-light", 0.4),
    ("snowy", 0.6),
)
"""Damage and its strength; noise of strength 0.5 has σ = 50."""

GAP = 8
"""Pixels of white between the pictures shown side by side."""


@contextmanager
def embedded_server(bundle: str) -> Iterator[str]:
    """An embedded server in a process of its own; gives its address, and stops it at the end.

    Raises:
        RuntimeError: The server ended before it served.
    """
    command = [sys.executable, "-m", "services.restorer.embedded", "--port", "0"]
    with subprocess.Popen(
        [*command, "--bundle", bundle], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith("serving "):
                raise RuntimeError(f"The server did not start; it said {line!r}.")
            print(line.strip())
            yield line.split()[-1]
        finally:
            process.terminate()


def run_demo(client: RestorationClient, photo: Image, out: Path) -> list[dict[str, object]]:
    """Damage ``photo`` in each way shown, restore it over gRPC, and write the pictures.

    Returns:
        One report for each damage, with the PSNR before and after, in dB.
    """
    out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, object]] = []
    for label, strength in SHOWN:
        damaged = photo.with_pixels(degrade(photo.pixels, label, seed=0, strength=strength))
        data = encode(damaged, format="png")
        began = time.perf_counter()
        restoration = client.restore(data)
        seconds = time.perf_counter() - began
        restored = decode(restoration.image_bytes)
        (out / f"{label}-degraded.png").write_bytes(data)
        (out / f"{label}-restored.png").write_bytes(restoration.image_bytes)
        pair = side_by_side([damaged.pixels, restored.pixels, photo.pixels])
        (out / f"{label}-side-by-side.png").write_bytes(encode(Image(pixels=pair)))
        truth = to_levels(photo.pixels, 8)
        before, after = (psnr(to_levels(p.pixels, 8), truth) for p in (damaged, restored))
        report = restoration.report
        print(
            f"{label:>16}  PSNR {before:5.2f} → {after:5.2f} dB ({after - before:+.2f})  {seconds:.2f} s  "
            f"judged {report.degradation} ({report.degradations[report.degradation]:.0%})  “{report.caption}”"
        )
        results.append(
            {
                "damage": label,
                "psnr_before": before,
                "psnr_after": after,
                "report": report.to_dict(),
            }
        )
    return results


def side_by_side(pictures: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Pictures of one height in a row: degraded, restored, original."""
    gap = np.ones((pictures[0].shape[0], GAP, 3), np.float32)
    row = [piece for picture in pictures for piece in (gap, picture)]
    return np.concatenate(row[1:], axis=1)


def main() -> int:
    """Command line; 1 where a picture did not become better."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--bundle", default="tiny", help="name or folder of the weights")
    parser.add_argument("--out", type=Path, default=Path("out/demo"), help="where the pictures go")
    arguments = parser.parse_args()
    from skimage.data import astronaut

    photo = Image.from_levels(np.ascontiguousarray(astronaut()))  # type: ignore[no-untyped-call]
    with embedded_server(arguments.bundle) as address, RestorationClient(address) as client:
        results = run_demo(client, photo, arguments.out)
    (arguments.out / "report.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    print(f"Pictures and report.json are in {arguments.out}/")
    worse = [
        r["damage"] for r in results if float(str(r["psnr_after"])) <= float(str(r["psnr_before"]))
    ]
    if worse:
        print(f"Not better: {', '.join(map(str, worse))}", file=sys.stderr)
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
