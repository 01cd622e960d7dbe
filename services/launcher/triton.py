"""A running Triton as the launcher sees it: which embedder it has loaded, and loading what its repository names now."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from services.launcher.repository import NAMES, Embedder, embedder_of
from vlmir.errors import BundleError, UnavailableError

__all__ = ["Triton"]

_PATIENCE_S = 5.0
_LOAD_S = 600.0
"""Seconds that loading a model may take, its way from the store included."""


class Triton:
    """A connection for a short while: the next one looks the address up anew.

    Args:
        client: It.
        address: For messages.
    """

    def __init__(self, client: InferenceServerClient, address: str) -> None:
        self._client, self._address = client, address

    @classmethod
    @contextmanager
    def connected(cls, address: str) -> Iterator[Triton]:
        """Connect while the block runs; whether somebody is there shows at the first question."""
        client = InferenceServerClient(address)
        try:
            yield cls(client, address)
        finally:
            client.close()

    def has(self, embedder: Embedder) -> bool:
        """Whether the models that are loaded are an embedder's.

        Raises:
            UnavailableError: Triton does not answer.
        """
        return all(self._loaded(name) == embedder for name in NAMES)

    def load(self) -> None:
        """Load what the repository names, beside what is loaded; that goes when its last request has ended.

        Raises:
            BundleError: Triton cannot; the model that failed stays as it was.
            UnavailableError: Triton does not answer, or is too slow.
        """
        for name in NAMES:
            try:
                self._client.load_model(name, client_timeout=_LOAD_S)
            except InferenceServerException as error:
                if _is_silent(error):
                    raise self._silent(error) from error
                raise BundleError(f"Triton cannot load {name}: {error.message()}") from error

    def _loaded(self, name: str) -> Embedder | None:
        """The embedder of a model; None where it is not loaded."""
        try:
            answer = self._client.get_model_config(name, client_timeout=_PATIENCE_S)
        except InferenceServerException as error:
            if _is_silent(error):
                raise self._silent(error) from error
            return None
        return embedder_of(answer.config)

    def _silent(self, error: InferenceServerException) -> UnavailableError:
        return UnavailableError(f"Triton at {self._address} does not answer: {error.message()}.")


def _is_silent(error: InferenceServerException) -> bool:
    return error.status() in ("StatusCode.UNAVAILABLE", "StatusCode.DEADLINE_EXCEEDED")
