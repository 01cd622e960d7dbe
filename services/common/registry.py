"""What the MLflow registry says is served, and how its files come here.

It is only read, for which ``mlflow-skinny`` is enough; that is imported where a registry is followed, and not before.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import unquote, urlsplit, urlunsplit

from services.common.releases import parts_needed
from vlmir.bundle import Bundle, load_bundle
from vlmir.errors import BundleError, OptionError, UnavailableError
from vlmir.registry import (
    DIGEST,
    MODELS,
    ONNX,
    ONNX_DIGEST,
    RELEASE,
    SAMPLER,
    VERSIONS,
    digest_of_onnx,
)

if TYPE_CHECKING:  # it takes a second to import
    from mlflow.entities.model_registry import ModelVersion

__all__ = ["MlflowRegistry", "Registry", "Version", "open_for", "parted", "release_name"]

_QUICK = {
    # Who polls needs no other retries; by MLflow's default one question to a dead server takes four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Soon enough for a silent host, and time for a server to fetch a big file from its own store before it answers.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_ABSENT = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")


@dataclass(frozen=True, kw_only=True)
class Version:
    """A registered release: a version of the sampler, and those of the other parts that it names."""

    number: str
    key: str
    """Names these very files, also where another registry has a version of the same number; good as a file name."""
    name: str
    """What its bundle calls itself, by the version's tag."""
    digest: str
    """sha256 of the sampler, by the version's tag."""
    parts: Mapping[str, str]
    """Part → version of its registered model."""


class Registry(Protocol):
    """Where releases come from."""

    def champion(self) -> Version | None:
        """The version to be served; None where nobody has said which.

        Raises:
            UnavailableError: The registry cannot be reached.
        """

    def fetch(self, version: Version, part: str, folder: Path) -> None:
        """Put bundle.json and the files that a service of ``part`` needs into an empty folder.

        Raises:
            UnavailableError: They cannot be had at present.
            BundleError: bundle.json is damaged, or the ONNX files are not those that were registered.
        """


class MlflowRegistry:
    """An MLflow server, and the alias that is followed; see :class:`Registry`.

    Args:
        follow: The alias, such as ``models:/vlmir-sampler@champion``.
        address: The server's; None: that of ``MLFLOW_TRACKING_URI``.

    Raises:
        OptionError: ``follow`` is no alias of the sampler, or no server is named.
    """

    def __init__(self, follow: str, address: str | None = None) -> None:
        match = re.fullmatch(rf"models:/{SAMPLER}@([\w-]+)", follow)
        if match is None:
            raise OptionError(
                f"Follow an alias such as models:/{SAMPLER}@champion, not {follow!r}."
            )
        self._alias = match[1]
        # MLflow's own default is a new, empty database in the working folder.
        self._address = address or os.environ.get("MLFLOW_TRACKING_URI", "")
        if not self._address:
            raise OptionError(
                f"Set MLFLOW_TRACKING_URI to the address of the MLflow server to follow {follow}."
            )
        self._address, secrets = parted(self._address)
        # MLflow then sends them all the same, and no message of anybody's can quote them.
        for name, value in {**_QUICK, **secrets}.items():
            os.environ.setdefault(name, value)

    def champion(self) -> Version | None:
        """The version that has the alias; see :meth:`Registry.champion`."""
        from mlflow import MlflowClient
        from mlflow.exceptions import MlflowException

        with self._reached():
            client = MlflowClient(self._address, self._address)
            try:
                return _version(client.get_model_version_by_alias(SAMPLER, self._alias))
            except MlflowException as error:
                if error.error_code not in _ABSENT:
                    raise
                return None

    def fetch(self, version: Version, part: str, folder: Path) -> None:
        """Download a version; see :meth:`Registry.fetch`."""
        self._download("sampler", version, "bundle.json", folder)
        preset = load_bundle(folder, parts=()).preset
        for needed in parts_needed(preset, part):
            if needed in version.parts:
                self._download(needed, version, needed, folder)
        if part == "embedder":
            self._download(part, version, ONNX, folder)
            registered = self._tags(part, version).get(ONNX_DIGEST)
            if registered not in (None, digest_of_onnx(folder / ONNX)):
                raise BundleError(
                    f"The ONNX files of {MODELS[part]} version {version.parts[part]} are not those that were "
                    "registered (digest mismatch)."
                )

    def digest(self, part: str, version: Version) -> str:
        """sha256 of a part of a version, by the tag of the part's own version.

        Raises:
            UnavailableError: The registry cannot be reached, or does not say.
        """
        found = self._tags(part, version).get(DIGEST, "") if part in version.parts else ""
        if not found:
            raise UnavailableError(
                f"{SAMPLER} version {version.number} names no {part} with a digest; register the bundle anew."
            )
        return found

    def _tags(self, part: str, version: Version) -> Mapping[str, str]:
        """The tags of a part's own version."""
        from mlflow import MlflowClient

        with self._reached():
            client = MlflowClient(self._address, self._address)
            found = client.get_model_version(MODELS[part], version.parts[part])
        return dict(found.tags)

    def _download(self, part: str, version: Version, path: str, folder: Path) -> None:
        """Put a file or folder of a part's version into ``folder``."""
        from mlflow.artifacts import download_artifacts

        source = f"models:/{MODELS[part]}/{version.parts[part]}/{path}"
        with self._reached():
            download_artifacts(
                source,
                dst_path=str(folder),
                tracking_uri=self._address,
                registry_uri=self._address,
            )

    @contextmanager
    def _reached(self) -> Iterator[None]:
        from mlflow.exceptions import MlflowException

        try:
            yield
        except (MlflowException, OSError) as error:  # requests' errors are of the latter
            silent = isinstance(error, OSError) or isinstance(error.__context__, OSError)
            what = "does not answer" if silent else f"answers {str(error)!r}"
            raise UnavailableError(f"MLflow at {self._address} {what}.") from error


def parted(address: str) -> tuple[str, dict[str, str]]:
    """An address without user and password, and these as the variables from which MLflow takes them.

    Args:
        address: Such as ``https://anna:secret@host:5000``.
    """
    found = urlsplit(address)
    user, at, host = found.netloc.rpartition("@")
    if not at:
        return address, {}
    name, _, password = user.partition(":")
    secrets = {
        "MLFLOW_TRACKING_USERNAME": unquote(name),
        "MLFLOW_TRACKING_PASSWORD": unquote(password),
    }
    return urlunsplit(found._replace(netloc=host)), secrets


def _version(found: ModelVersion) -> Version:
    named = {part: found.tags.get(tag) for part, tag in VERSIONS.items()}
    source = hashlib.sha256(f"{found.source}".encode()).hexdigest()
    return Version(
        number=str(found.version),
        key=f"{found.version}-{source[:12]}",
        name=found.tags.get(RELEASE, SAMPLER),
        digest=found.tags.get(DIGEST, ""),
        parts={p: v for p, v in named.items() if v} | {"sampler": str(found.version)},
    )


def release_name(bundle: str, number: str) -> str:
    """A registered release's name, the same in every service: another version may hold other weights of one name."""
    return f"{bundle}@v{number}"


def open_for(part: str, folder: str | Path, *, sampler: str | None = None) -> Bundle:
    """Open a bundle for a service of ``part``: only the files it needs must be there, and their digests are checked.

    Args:
        part: The service's part.
        folder: The bundle's folder, or the name of a shipped one.
        sampler: The digest that its sampler must have, too, by the registry; None: any.

    Raises:
        BundleError: It is missing or damaged, or its files are not those that bundle.json or the registry names.
    """
    about = load_bundle(folder, parts=())
    if part not in about.digests:
        raise BundleError(f"{about.release} has no {part}.")
    if sampler is not None and about.digests["sampler"] != sampler:
        raise BundleError(
            f"bundle.json of {about.release} names another sampler than the registry (digest mismatch)."
        )
    return load_bundle(folder, parts=parts_needed(about.preset, part))
