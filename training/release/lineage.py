"""Which MLflow runs made the parts of a bundle."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from training.engine.tracking import RECORD, choose_experiment, find_run

if TYPE_CHECKING:  # it takes a second to import
    from mlflow import MlflowClient

__all__ = ["Lineage", "find_lineage"]


@dataclass(frozen=True, kw_only=True)
class Lineage:
    """Where the parts came from."""

    experiment: str
    """Id of the experiment that holds the runs."""
    named: dict[str, str] = field(default_factory=dict)
    """Part → the run that made it, by what stage 2 recorded."""
    found: frozenset[str] = frozenset()
    """The runs of these that the tracking server has."""

    def run_of(self, part: str) -> str | None:
        """The run that made a part, where the server has it."""
        run = self.named.get(part)
        return run if run in self.found else None

    @property
    def tags(self) -> dict[str, str]:
        """Tags that name the runs, as :mod:`training.engine.tracking` calls them."""
        return {f"vlmir.{part}_run": run for part, run in self.named.items()}


def find_lineage(client: MlflowClient, stage2: Path | None, model: str) -> Lineage:
    """The runs of pretraining and both stages, found by stage 2's.

    Args:
        client: The tracking server.
        stage2: Folder of stage 2; None: nothing is known.
        model: Name of the model; without a run, its experiment is taken.

    Raises:
        FileNotFoundError: Stage 2 was not recorded.
    """
    if stage2 is None:
        return Lineage(experiment=_experiment(client, model))
    file = stage2 / RECORD
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: {stage2} is no stage that MLflow recorded.")
    own = json.loads(file.read_text("utf-8"))["run"]
    sampler = find_run(client, own)
    if sampler is None:
        print(f"run {own} of {stage2} is not on this tracking server: not linked", file=sys.stderr)
        return Lineage(experiment=_experiment(client, model), named={"sampler": own})
    # Stage 1 may have named the captioner that stage 2 did not.
    stage1 = sampler.data.tags.get("vlmir.embedder_run")
    embedder = find_run(client, stage1) if stage1 else None
    tags = (embedder.data.tags if embedder else {}) | sampler.data.tags
    named = {p: run for p in ("captioner", "embedder") if (run := tags.get(f"vlmir.{p}_run"))}
    named["sampler"] = own
    return Lineage(
        experiment=sampler.info.experiment_id,
        named=named,
        found=frozenset(run for run in named.values() if find_run(client, run)),
    )


def _experiment(client: MlflowClient, model: str) -> str:
    name = f"vlmir-{model}"
    choose_experiment(name)
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None  # it was made, if it was not there
    return experiment.experiment_id
