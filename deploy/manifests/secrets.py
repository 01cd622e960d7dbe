"""The Secrets that the manifests name. None is in the repository: they are made in the cluster, once."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from deploy.manifests.kubectl import kubectl
from deploy.manifests.render import Manifest
from services.gateway.tokens import digest
from vlmir.errors import OptionError, UnavailableError

__all__ = ["NAMESPACE", "SECRETS", "make_secrets", "needed", "require_secrets", "secret_value"]

NAMESPACE = "vlmir"
"""Of all objects."""

SECRETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "vlmir-minio-root": ("user", "password"),
        "vlmir-store-account": ("access-key", "secret-key"),
        "vlmir-mlflow-account": ("access-key", "secret-key"),
        "vlmir-models-writer": ("access-key", "secret-key"),
        "vlmir-models-reader": ("access-key", "secret-key"),
        "vlmir-postgres": ("password",),
        "vlmir-gateway-tokens": ("tokens",),
        "vlmir-batch": ("token",),
    }
)
"""Name → keys."""

_TOKENS, _BATCH = "vlmir-gateway-tokens", "vlmir-batch"
_NAMES = ("user", "access-key")
"""Keys whose value is the name of an account."""


def needed(objects: Sequence[Manifest]) -> list[str]:
    """Those of `SECRETS` that some manifests name."""
    text = json.dumps(objects)
    return [name for name in SECRETS if f'"{name}"' in text]


def require_secrets(objects: Sequence[Manifest]) -> None:
    """Make sure that the cluster has the Secrets that the manifests name.

    Raises:
        UnavailableError: Some are missing.
    """
    missing = _missing(objects)
    if missing:
        raise UnavailableError(
            f"The namespace {NAMESPACE} lacks the Secrets {', '.join(missing)}; `make secrets` makes them with random "
            "values, deploy/k8s/README.md tells how to make them with yours."
        )


def make_secrets(objects: Sequence[Manifest]) -> list[str]:
    """Make the Secrets that are missing, with random values.

    Returns:
        What is to be said: which were made, and the token of the first caller, which is nowhere else.

    Raises:
        OptionError: The batch job's token would have to be added to tokens that are there.
    """
    missing, said = _missing(objects), list[str]()
    if _BATCH in missing and _TOKENS in needed(objects) and _TOKENS not in missing:
        raise OptionError(
            f"Add the token of {_BATCH} by hand: {_TOKENS} is there already, and only you know what is in it."
        )
    batch = secrets.token_urlsafe(32)
    if _TOKENS in missing and _BATCH in needed(objects) and _BATCH not in missing:
        batch = secret_value(_BATCH, "token")
    for name in missing:
        values = _values(name)
        if name == _BATCH:
            values = {"token": batch}
        elif name == _TOKENS:
            first = secrets.token_urlsafe(32)
            values = {"tokens": f"first:{digest(first)}\nbatch:{digest(batch)}\n"}
            said.append(f"token of the caller `first`, to be kept now: {first}")
        kubectl("create", "--filename=-", given=_secret(name, values))
        said.append(f"made the Secret {name}")
    return said or ["all Secrets are there"]


def secret_value(name: str, key: str) -> str:
    """A value of a Secret in the cluster.

    Raises:
        KubectlError: There is no such Secret.
        OptionError: It has no such key.
    """
    data = json.loads(kubectl("--namespace", NAMESPACE, "get", "secret", name, "--output=json"))
    if key not in data.get("data", {}):
        raise OptionError(f"The Secret {name} has no {key}.")
    return base64.b64decode(data["data"][key]).decode()


def _missing(objects: Sequence[Manifest]) -> list[str]:
    there = kubectl("--namespace", NAMESPACE, "get", "secrets", "--output=name").split()
    return [name for name in needed(objects) if f"secret/{name}" not in there]


def _values(name: str) -> dict[str, str]:
    """Random ones, of characters that need no quoting in a URL; names of accounts tell whose they are."""
    return {
        key: name.removeprefix("vlmir-") if key in _NAMES else secrets.token_hex(20)
        for key in SECRETS[name]
    }


def _secret(name: str, values: Mapping[str, str]) -> str:
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": NAMESPACE},
            "stringData": values,
        }
    )
