"""Tables of measured numbers: ``python -m training.table out/evaluation.json --into README.md --bundle FOLDER``.

Reads what :mod:`training.evaluate` wrote, prints Markdown, and on request puts it between the markers of the README
and the model card, and the numbers themselves into the bundle's ``bundle.json``. ``--tables training/RESULTS.md``
writes the longer tables of :mod:`training.tables.paper`, beside the paper's own numbers, and of
:mod:`training.tables.steps`, each where something of it was measured; with ``--stages`` also how fast the stages ran
whose folders are named.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from training.cache import fingerprint
from training.tables import paper as paper_tables
from training.tables import stages as stage_tables
from training.tables import steps as steps_tables
from training.tables.cells import Numbers
from training.tables.readme import markdown
from vlmir.bundle import Bundle, load_bundle

__all__ = ["identity", "main", "markdown", "write_into_bundle", "write_into_markdown"]

_LONG = ("per_picture", "confusion", "solvers", "dial")
"""What of a measurement stays out of a bundle."""


def write_into_markdown(file: Path, text: str, name: str = "numbers") -> None:
    """Put ``text`` between the markers ``<!-- name -->`` and ``<!-- /name -->`` of a Markdown file.

    Raises:
        ValueError: It has none.
    """
    start_mark, end_mark = f"<!-- {name} -->", f"<!-- /{name} -->"
    before, start, rest = file.read_text("utf-8").partition(start_mark)
    _, end, after = rest.partition(end_mark)
    if not (start and end):
        raise ValueError(
            f"{file} has no {start_mark} … {end_mark}; add both lines where the tables go."
        )
    file.write_text(f"{before}{start_mark}\n{text}\n{end_mark}{after}", encoding="utf-8")


def identity(bundle: Bundle) -> dict[str, Any]:
    """What tells one bundle's numbers from another's: release, digests, and architecture with its switches."""
    preset = fingerprint(dataclasses.asdict(bundle.preset))
    return {"release": bundle.release, "digests": bundle.digests, "preset": preset}


def write_into_bundle(folder: Path, results: Numbers) -> None:
    """Store the numbers as the metrics of the bundle they were measured of, without what is kept per picture.

    Raises:
        ValueError: They are of another bundle.
    """
    file = folder / "bundle.json"
    bundle = json.loads(file.read_text("utf-8"))
    own = identity(load_bundle(folder))
    if own != {name: results["about"].get(name) for name in own}:
        raise ValueError(f"The numbers are not of the bundle in {folder}; evaluate that one.")
    numbers = {
        name: {key: value for key, value in part.items() if key not in _LONG}
        for name, part in results.items()
        if name != "about"
    }
    bundle["metrics"] = numbers | {"machine": results["about"]["machine"]}
    file.write_text(json.dumps(bundle, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("results", type=Path, nargs="?", help="JSON that training.evaluate wrote")
    parser.add_argument(
        "--into",
        type=Path,
        action="append",
        default=[],
        help="Markdown file to put the tables into",
    )
    parser.add_argument("--bundle", type=Path, help="bundle folder to store the numbers in")
    parser.add_argument(
        "--tables", type=Path, help="Markdown file to put the paper's tables into, with ours"
    )
    parser.add_argument(
        "--stages", type=Path, nargs="+", help="folders of stages, such as runs/stage2: their speed"
    )
    arguments = parser.parse_args()
    if not (arguments.results or arguments.stages):
        parser.error("name the JSON of training.evaluate, or folders after --stages.")
    if arguments.stages:
        try:
            text = stage_tables.markdown(arguments.stages)
        except FileNotFoundError as error:
            parser.error(str(error))
        print(text)
        if arguments.tables:
            write_into_markdown(arguments.tables, text, "stages")
    if arguments.results:
        _tell(arguments, json.loads(arguments.results.read_text("utf-8")))


def _tell(arguments: argparse.Namespace, results: Numbers) -> None:
    """Print the tables of measured numbers and put them where the arguments say."""
    text = markdown(results)
    print(text)
    for file in arguments.into:
        write_into_markdown(file, text)
    if arguments.tables:
        _into_tables(arguments.tables, results)
    if arguments.bundle:
        write_into_bundle(arguments.bundle, results)


def _into_tables(file: Path, results: Numbers) -> None:
    """The paper's tables and that of evaluations, each where something of it was measured."""
    steps = steps_tables.markdown(results)
    if steps:
        write_into_markdown(file, steps, steps_tables.marker(results))
    if any(not name.endswith(("about", steps_tables.SUFFIX)) for name in results):
        write_into_markdown(file, paper_tables.markdown(results))


if __name__ == "__main__":
    main()
