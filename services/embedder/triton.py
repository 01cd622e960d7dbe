"""The embeddings by Triton: each request goes there as it comes, and is batched there."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

import grpc
from tritonclient.grpc import InferInput, InferRequestedOutput
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from services.common.batching import Admission, until
from services.common.calls import request_id
from services.common.telemetry import tracing
from services.embedder.backends import GRAPHS, Array, Ids, Seen, voters
from vlmir.errors import BundleError, UnavailableError, VlmirError

__all__ = ["Triton", "TritonBackend"]

log = logging.getLogger("vlmir.triton")

T = TypeVar("T")

_INFER = "/inference.GRPCInferenceService/ModelInfer"

_PATIENCE_S = 5.0
"""Seconds for what no caller waits for: a question about a model, a trial."""

_ANSWER_S = 30.0
"""Seconds after which a request to Triton is given up."""

_RELOAD_S = 60.0
"""Seconds that loading a model may take."""

_RELOAD_EVERY_S = 10.0
"""Seconds between two attempts to load a model that goes on failing."""

_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # A restarted Triton is found again at once, not after gRPC's two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),
]


class _BrokenModel(UnavailableError):
    """Triton is there, but cannot run a model."""


class _Unreachable(UnavailableError):
    """Triton is not there."""


class Triton:
    """A connection to a Triton server; belongs to the event loop that runs when it is made.

    Args:
        address: Where it listens, ``host:port`` of its gRPC side.
    """

    def __init__(self, address: str) -> None:
        self.address = address
        self.loop = asyncio.get_running_loop()
        self._client = InferenceServerClient(address, channel_args=_OPTIONS)
        self._under_way = set[asyncio.Task[Any]]()
        self._reloads: dict[str, asyncio.Task[None]] = {}
        self._next_reload: dict[str, float] = {}

    async def infer(
        self,
        model: str,
        version: str,
        inputs: Mapping[str, Array | Ids],
        outputs: Sequence[str],
    ) -> list[Array]:
        """Run a model; who may be cancelled calls it through :meth:`uncancelled`.

        Args:
            model: Its name.
            version: Its version.
            inputs: Name → batch.
            outputs: Names of what is wanted, in that order.

        Raises:
            UnavailableError: Triton cannot be reached, does not answer, or cannot run the model.
            BundleError: The model wants other inputs.
        """
        try:
            with _traced() as headers:
                answer = await self._client.infer(
                    model,
                    [_input(name, batch) for name, batch in inputs.items()],
                    model_version=version,
                    outputs=[InferRequestedOutput(name) for name in outputs],
                    client_timeout=_ANSWER_S,
                    headers=headers,
                )
        except InferenceServerException as error:
            raise self._translated(error, model) from error
        return [answer.as_numpy(name) for name in outputs]

    async def uncancelled(
        self, work: Callable[[], Coroutine[Any, Any, T]], deadline: float | None
    ) -> T:
        """Wait for work with Triton; whoever stops waiting, because of the deadline or a cancel, leaves it to its end.

        Triton's gRPC side can crash as a whole when a request is cancelled while it is answered (its issues 7368 and
        8034; 2.51 does within minutes), and a deadline that passes is a cancel, too.

        Args:
            work: Begins what is to be done; not called when the deadline has passed.
            deadline: Reading of ``time.monotonic``, or None.

        Raises:
            DeadlineError: The deadline passed.
        """
        async with until(deadline):
            task = asyncio.create_task(work())
            self._under_way.add(task)
            task.add_done_callback(self._ended)
            return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.exception()  # asked for here, since nobody may be left to hear of it

    async def version_of(self, model: str, digest: str) -> str:
        """The version of a model that was made from an embedder with this digest.

        Raises:
            UnavailableError: Triton cannot be reached, does not have the model, or has it from another embedder.
        """
        try:
            answer = await self._client.get_model_config(model, client_timeout=_PATIENCE_S)
        except InferenceServerException as error:
            raise self._translated(error, model) from error
        notes = {key: note.string_value for key, note in answer.config.parameters.items()}
        versions = _versions(notes)
        if digest not in versions:
            raise UnavailableError(
                f"Triton's {model} at {self.address} was made from another embedder; services.launcher.models brings "
                "this one there if it runs, else `python -m training.onnx_export` and loading it."
            )
        return versions[digest]

    def reload(self, model: str) -> None:
        """Begin to load a model anew, unless that was done just now: Triton does not when a model's process dies.

        Where it is well meanwhile, because another embedder was first, it serves on while it is loaded once more.
        """
        now = time.monotonic()
        if now >= self._next_reload.get(model, now):
            self._next_reload[model] = now + _RELOAD_S  # while it runs
            self._reloads[model] = asyncio.create_task(self._reload(model))

    async def _reload(self, model: str) -> None:
        log.warning("loading Triton's %s anew, since it fails", model)
        try:
            await self._client.load_model(model, client_timeout=_RELOAD_S)
        except InferenceServerException as error:
            log.warning("Triton's %s cannot be loaded: %s", model, error.message())
        self._next_reload[model] = time.monotonic() + _RELOAD_EVERY_S

    async def close(self) -> None:
        """Hang up, when what is under way has been answered, or is not after some seconds."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_PATIENCE_S)
        for task in self._reloads.values():
            task.cancel()
        await asyncio.gather(*self._reloads.values(), return_exceptions=True)
        await self._client.close()

    def _translated(self, error: InferenceServerException, model: str) -> VlmirError:
        match error.status():
            case "StatusCode.DEADLINE_EXCEEDED":
                return _Unreachable(f"Triton at {self.address} does not answer.")
            case "StatusCode.INVALID_ARGUMENT":
                return BundleError(
                    f"Triton's {model} does not fit this bundle; write it anew with "
                    f"`python -m training.onnx_export`: {error.message()}"
                )
            case "StatusCode.UNAVAILABLE":
                return _Unreachable(
                    f"Triton at {self.address} cannot be reached; is it running? ({error.message()})"
                )
        kind = _BrokenModel if error.status() == "StatusCode.INTERNAL" else UnavailableError
        return kind(
            f"Triton at {self.address} cannot run {model} at present; its log tells why: {error.message()}"
        )


@contextmanager
def _traced() -> Iterator[dict[str, str]]:
    """A span around a call, whose headers go along; trials, which belong to no request, would drown the rest."""
    if request_id.get() == "-":
        yield {}
        return
    span, code = tracing.client_span(_INFER), grpc.StatusCode.CANCELLED
    try:
        yield dict(span.headers)
        code = grpc.StatusCode.OK
    except InferenceServerException as error:
        name = str(error.status()).removeprefix("StatusCode.")
        code = getattr(grpc.StatusCode, name, grpc.StatusCode.UNKNOWN)
        raise
    finally:
        span.end(code)


def _versions(notes: Mapping[str, str]) -> dict[str, str]:
    """Digest → version of a model's versions: that of which its configuration is, and others that it notes."""
    others: dict[str, str] = json.loads(notes.get("others", "{}"))
    return others | {notes.get("embedder", ""): notes.get("version", "")}


def _input(name: str, batch: Array | Ids) -> Any:
    tensor = InferInput(name, list(batch.shape), np_to_triton_dtype(batch.dtype))
    tensor.set_data_from_numpy(batch)
    return tensor


class TritonBackend:
    """An embedder's models in Triton.

    Args:
        triton: The connection.
        versions: Version of each of ``GRAPHS``.
        capacity: Requests under way at most.
    """

    def __init__(self, triton: Triton, versions: Mapping[str, str], *, capacity: int) -> None:
        self._triton, self._versions = triton, versions
        self._admission = Admission(capacity)
        self.name = f"{triton.address}, triton"

    @classmethod
    def find(
        cls, triton: Triton, digest: str, *, capacity: int, patience_s: float
    ) -> TritonBackend:
        """The models of the embedder with this digest; called outside the event loop.

        Args:
            triton: The connection.
            digest: Of the embedder.
            capacity: Requests under way at most.
            patience_s: Seconds to wait for a Triton that is starting.

        Raises:
            UnavailableError: Triton cannot be reached, or does not have them.
        """
        last = time.monotonic() + patience_s

        async def version(name: str) -> str:
            while True:
                try:
                    return await triton.version_of(name, digest)
                except _Unreachable as error:
                    if time.monotonic() > last:
                        raise
                    log.info("%s", error)
                await asyncio.sleep(1)

        async def versions() -> dict[str, str]:
            return {name: await version(name) for name in GRAPHS}

        found = asyncio.run_coroutine_threadsafe(versions(), triton.loop).result()
        return cls(triton, found, capacity=capacity)

    @property
    def depth(self) -> int:
        """Requests under way."""
        return self._admission.depth

    @property
    def capacity(self) -> int:
        """Requests under way at most."""
        return self._admission.capacity

    async def image(self, views_VCSS: Array, *, deadline: float | None) -> Seen:
        """What is seen in the views of one picture.

        Errors are those of :meth:`Triton.uncancelled`, :meth:`Triton.infer` and `Admission`. The place is taken until
        Triton has answered, even where nobody waits any longer.
        """
        return await self._admitted(partial(self._image, views_VCSS), deadline)

    async def text(self, ids_L: Ids, *, deadline: float | None) -> Array:
        """f_T (D) of one caption; errors and places are those of :meth:`image`."""
        return await self._admitted(partial(self._text, ids_L), deadline)

    async def check(self, views_VCSS: Array, ids_L: Ids) -> None:
        """Run both models once, however busy they are: a model whose process died keeps saying that it is ready.

        One that fails is loaded anew in the background.

        Raises:
            VlmirError: One of them does not answer, or not in time.
        """
        deadline = time.monotonic() + _PATIENCE_S
        trials = (partial(self._image, views_VCSS), partial(self._text, ids_L))
        found = await asyncio.gather(
            *(self._triton.uncancelled(trial, deadline) for trial in trials), return_exceptions=True
        )
        for name, result in zip(GRAPHS, found, strict=True):
            if isinstance(result, _BrokenModel):
                self._triton.reload(name)
        for result in found:
            if isinstance(result, BaseException):
                raise result

    def warm_up(self, views_VCSS: Array, ids_L: Ids) -> None:
        """Compute once, outside the event loop."""
        trial = self.check(views_VCSS, ids_L)
        asyncio.run_coroutine_threadsafe(trial, self._triton.loop).result()

    def close(self) -> None:
        """Nothing is to be given back: the connection is shared."""

    async def _admitted(
        self, ask: Callable[[], Coroutine[Any, Any, T]], deadline: float | None
    ) -> T:
        async def work() -> T:
            with self._admission():
                return await ask()

        return await self._triton.uncancelled(work, deadline)

    async def _image(self, views_VCSS: Array) -> Seen:
        f_I, f_D, logits = await self._infer(
            "clip_image", {"views": views_VCSS[:1]}, ("f_I", "f_D", "logits")
        )
        seen = Seen(f_I[0], f_D[0], logits)
        if len(views_VCSS) == 1 or seen.certain:
            return seen
        (votes,) = await self._infer("clip_image", {"views": voters(views_VCSS)}, ("logits",))
        return seen.with_votes(votes)

    async def _text(self, ids_L: Ids) -> Array:
        (f_T,) = await self._infer("clip_text", {"ids": ids_L[None]}, ("f_T",))
        found: Array = f_T[0]
        return found

    async def _infer(
        self, model: str, inputs: Mapping[str, Array | Ids], outputs: Sequence[str]
    ) -> list[Array]:
        return await self._triton.infer(model, self._versions[model], inputs, outputs)
