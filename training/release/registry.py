"""The registry's names and aliases, and how it is reached: MLflow's, on the tracking server.

Each part of a bundle is a registered model of its own. A version of the sampler names in its tags the versions of the
parts that it was trained with; so **the alias of the sampler alone says what is served**, whoever moves it: a command,
or a hand in MLflow's UI. The commands let the other parts' aliases follow, so that the UI is easy to read.

::

    vlmir-captioner   captioner/…           as in a bundle, like the other two
    vlmir-embedder    embedder/…            and onnx/clip_image.onnx, onnx/clip_text.onnx for Triton
    vlmir-sampler     sampler/…             and bundle.json; evaluation.json and MODEL_CARD.md where there are any

    tags              part, digest, release; of the embedder also onnx_digest, of the sampler captioner_version and
                      embedder_version
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from training.engine.tracking import tracking_uri
from vlmir.errors import OptionError
from vlmir.registry import CANDIDATE, CHAMPION, MODELS, PREVIOUS, SAMPLER, VERSIONS

if TYPE_CHECKING:  # it takes a second to import
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

__all__ = [
    "CANDIDATE",
    "CHAMPION",
    "EVALUATION",
    "MODELS",
    "MODEL_CARD",
    "PREVIOUS",
    "SAMPLER",
    "aliases",
    "connect",
    "find_version",
    "move_alias",
    "parts_of",
]

EVALUATION = "evaluation.json"
"""What :mod:`training.evaluate` measured, with the numbers of each picture; beside the sampler's bundle.json."""

MODEL_CARD = "MODEL_CARD.md"


def connect() -> MlflowClient:
    """A client of the registry; MLflow's own functions use the same server from then on."""
    import mlflow

    # A server that is gone is to be said in seconds, not in minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    mlflow.set_tracking_uri(tracking_uri())
    return mlflow.MlflowClient()


def aliases(client: MlflowClient, part: str = "sampler") -> dict[str, str]:
    """Alias → version of a part's model; empty where the model is not registered yet."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(MODELS[part]).aliases
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return {}
    return {alias: str(version) for alias, version in found.items()}


def find_version(client: MlflowClient, which: int | str) -> ModelVersion:
    """A version of the sampler.

    Args:
        client: The registry.
        which: Its number, or an alias.

    Raises:
        OptionError: There is none.
    """
    from mlflow.exceptions import MlflowException

    number = aliases(client).get(which) if isinstance(which, str) else str(which)
    if number is None:
        raise OptionError(f"No version of {SAMPLER} has the alias {which!r}.")
    try:
        return client.get_model_version(SAMPLER, number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise OptionError(f"{SAMPLER} has no version {number}.") from error


def parts_of(sampler: ModelVersion) -> dict[str, str]:
    """Part → version of all that a version of the sampler belongs to, itself last."""
    named = {part: sampler.tags.get(tag) for part, tag in VERSIONS.items()}
    return {p: v for p, v in named.items() if v} | {"sampler": str(sampler.version)}


def move_alias(client: MlflowClient, alias: str, sampler: ModelVersion) -> None:
    """Give an alias to a version of the sampler and to the parts that it names.

    A part that it does not name loses the alias. The sampler's comes last: if the connection is lost before, nothing
    has moved for those who follow it.
    """
    versions = parts_of(sampler)
    for part, name in MODELS.items():
        if part in versions:
            client.set_registered_model_alias(name, alias, versions[part])
        elif alias in aliases(client, part):
            client.delete_registered_model_alias(name, alias)
