"""Register a measured bundle: ``python -m training.register BUNDLE --stage2 runs/stage2``.

Each part becomes a version of its registered model, with its files, signature, digest and the run that made it; the
sampler's version also holds bundle.json with the measured numbers, and names the versions of the other parts. A part
that is registered already keeps its version. All get the alias ``candidate``, last of all, so that a lost connection
leaves nothing behind that anybody follows. :mod:`training.promote` goes on from there.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from training.cache import fingerprint
from training.onnx_export import export_onnx
from training.release.lineage import Lineage, find_lineage
from training.release.registry import CANDIDATE, EVALUATION, MODEL_CARD, MODELS, connect, move_alias
from training.release.signatures import write_mlmodel
from training.table import identity
from vlmir.bundle import PARTS, Bundle, load_bundle
from vlmir.errors import BundleError, VlmirError
from vlmir.registry import ONNX, ONNX_DIGEST, digest_of_onnx

if TYPE_CHECKING:  # it takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["find_evaluation", "main", "register"]

MOST = 5000
"""Characters of a description that every database behind MLflow takes."""


def register(
    bundle: Bundle, *, evaluation: Path | None = None, stage2: Path | None = None
) -> dict[str, str]:
    """Register what is new of a bundle, and call all its parts the candidate.

    Args:
        bundle: The opened bundle, with its numbers; a MODEL_CARD.md in its folder goes along.
        evaluation: What :mod:`training.evaluate` wrote of it: with it two versions are compared picture by picture.
        stage2: Folder of the stage that made the sampler; its run is linked and gets the bundle as an artifact.

    Returns:
        Part → version, new or not.

    Raises:
        BundleError: It has not been measured.
        ValueError: The evaluation is of other weights, or has other numbers than the bundle.
        FileNotFoundError: ``stage2`` was not recorded.
        mlflow.exceptions.MlflowException: The registry cannot be reached; no alias has moved.
    """
    if not bundle.metrics:
        raise BundleError(
            f"{bundle.folder} has not been measured: run training.evaluate --data FOLDER --bundle {bundle.folder}, "
            f"then training.table out/evaluation.json --bundle {bundle.folder}."
        )
    papers = _papers(bundle, evaluation)
    client = connect()
    lineage = find_lineage(client, stage2, bundle.preset.name)
    registrar = _Registrar(client=client, bundle=bundle, papers=papers, lineage=lineage)
    others = {part: registrar.version(part) for part in bundle.digests if part != "sampler"}
    named = {f"{part}_version": str(version.version) for part, version in others.items()}
    sampler = registrar.version("sampler", named)
    move_alias(client, CANDIDATE, sampler)
    return {part: str(v.version) for part, v in {**others, "sampler": sampler}.items()}


def find_evaluation(bundle: Bundle) -> Path | None:
    """The evaluation of these weights, in the bundle's folder or where :mod:`training.evaluate` writes it."""
    files = (bundle.folder / EVALUATION, Path("out") / EVALUATION)
    return next((file for file in files if file.is_file() and _is_of(bundle, file)), None)


def _is_of(bundle: Bundle, evaluation: Path) -> bool:
    about = json.loads(evaluation.read_text("utf-8")).get("about", {})
    own = identity(bundle)
    return own == {name: about.get(name) for name in own}


def _papers(bundle: Bundle, evaluation: Path | None) -> dict[str, bytes]:
    """Name → content of what the sampler's version holds beside its weights.

    Raises:
        ValueError: The evaluation does not belong to the bundle.
    """
    card = bundle.folder / MODEL_CARD
    papers = {"bundle.json": (bundle.folder / "bundle.json").read_bytes()}
    if card.is_file():
        papers[MODEL_CARD] = card.read_bytes()
    if evaluation is None:
        return papers
    if not _is_of(bundle, evaluation):
        raise ValueError(
            f"{evaluation} is not of the bundle in {bundle.folder}; evaluate that one."
        )
    for name, part in json.loads(evaluation.read_text("utf-8")).items():
        if "psnr" in part and part["psnr"] != bundle.metrics.get(name, {}).get("psnr"):
            raise ValueError(
                f"{evaluation} has another number for {name!r} than the bundle: put it there with "
                f"training.table {evaluation} --bundle {bundle.folder}."
            )
    return papers | {EVALUATION: evaluation.read_bytes()}


@dataclass(frozen=True, kw_only=True)
class _Registrar:
    """Finds or makes the versions of a bundle's parts."""

    client: MlflowClient
    bundle: Bundle
    papers: dict[str, bytes]
    lineage: Lineage

    def version(self, part: str, named: dict[str, str] | None = None) -> ModelVersion:
        """The newest version that is this part, else a new one; ``named``: tags that name the other parts' versions."""
        tags = self._identity(part) | (named or {})
        found = self.client.search_model_versions(
            f"name = '{MODELS[part]}' and tags.digest = '{tags['digest']}'"
        )
        same = [v for v in found if tags.items() <= v.tags.items() and v.status == "READY"]
        return max(same, key=lambda v: int(v.version)) if same else self._add(part, tags)

    def _identity(self, part: str) -> dict[str, str]:
        """Tags that two versions of a part share if all their files are the same."""
        tags = {"part": part, "digest": self.bundle.digests[part]}
        if part == "embedder":  # its ONNX files depend on more than its weights
            preset = self.bundle.preset
            about = [dataclasses.asdict(preset.embedder), preset.labels]
            tags["architecture"] = fingerprint(about)
        if part == "sampler":
            tags["papers"] = fingerprint(sorted(self.papers), list(self.papers.values()))
        return tags

    def _add(self, part: str, tags: dict[str, str]) -> ModelVersion:
        import mlflow

        model = self.client.create_logged_model(
            self.lineage.experiment,
            name=MODELS[part],
            source_run_id=self.lineage.run_of(part),
            params={"release": self.bundle.release, "preset": self.bundle.preset.name},
            tags=tags,
            model_type=part,
        )
        with tempfile.TemporaryDirectory() as place:
            self._put_files(Path(place), part)
            write_mlmodel(Path(place), part, self.bundle, model)
            self.client.log_model_artifacts(model.model_id, place)
            graphs = Path(place) / ONNX
            more = {ONNX_DIGEST: digest_of_onnx(graphs)} if graphs.is_dir() else {}
        self.client.finalize_logged_model(model.model_id, "READY")
        self._link(part, model.model_id)
        about = tags | more | self.lineage.tags | {"release": self.bundle.release}
        version = mlflow.register_model(f"models:/{model.model_id}", MODELS[part], tags=about)
        if MODEL_CARD in self.papers:
            card = self.papers[MODEL_CARD].decode("utf-8")
            self.client.update_model_version(MODELS[part], version.version, _shortened(card))
        return self.client.get_model_version(MODELS[part], version.version)

    def _put_files(self, folder: Path, part: str) -> None:
        """What a version of a part holds: its own folder as in the bundle, and what comes along."""
        (folder / part).mkdir()
        for name in PARTS[part]:
            shutil.copyfile(self.bundle.file(part, name), folder / part / name)
        if part == "embedder":
            (folder / ONNX).mkdir()
            for graph in export_onnx(self.bundle):
                (folder / ONNX / f"{graph.name}.onnx").write_bytes(graph.data)
        if part == "sampler":
            for name, content in self.papers.items():
                (folder / name).write_bytes(content)

    def _link(self, part: str, model: str) -> None:
        """Show the model at the run that made it; stage 2's keeps the whole bundle, too."""
        from mlflow.entities import LoggedModelOutput

        run, bundle = self.lineage.run_of(part), self.bundle
        if run is None:
            return
        self.client.log_outputs(run, [LoggedModelOutput(model, step=0)])
        if part == "sampler":
            for other in bundle.digests:
                for name in PARTS[other]:
                    self.client.log_artifact(run, str(bundle.file(other, name)), f"bundle/{other}")
            for name in {*self.papers} - {EVALUATION}:
                self.client.log_artifact(run, str(bundle.folder / name), "bundle")


def _shortened(card: str) -> str:
    """A text that a description holds; the whole one is among the sampler's files."""
    rest = f"\n\n… (the rest is in the sampler's {MODEL_CARD})"
    return card if len(card) <= MOST else card[: MOST - len(rest)].rpartition("\n\n")[0] + rest


def main() -> None:
    """Command line."""
    from mlflow.exceptions import MlflowException

    parser = argparse.ArgumentParser(
        prog="python -m training.register",
        description="Register a measured bundle as the candidate.",
    )
    parser.add_argument("bundle", help="name or folder of the weights")
    parser.add_argument(
        "--evaluation",
        type=Path,
        help="what training.evaluate wrote (default: evaluation.json of the bundle or of out/, if of these weights)",
    )
    parser.add_argument(
        "--stage2", type=Path, metavar="FOLDER", help="stage that made the sampler, to link its run"
    )
    arguments = parser.parse_args()
    try:
        bundle = load_bundle(arguments.bundle)
        evaluation = arguments.evaluation or find_evaluation(bundle)
        versions = register(bundle, evaluation=evaluation, stage2=arguments.stage2)
    except (VlmirError, MlflowException, OSError, ValueError) as error:
        print(f"training.register: {error}", file=sys.stderr)
        sys.exit(2)
    for part, version in versions.items():
        print(f"{MODELS[part]} version {version}: {CANDIDATE}")
    if evaluation is None:
        print("without the numbers of each picture: no evaluation of these weights was found")


if __name__ == "__main__":
    main()
