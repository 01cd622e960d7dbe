"""The three stages of the pipeline as services elsewhere.

Each object serves one request and asks for one release. What the services compute of a picture stays in the messages
it came in, since the orchestrator only passes it on.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from services.common.parcels import Parcels
from services.common.tensors import from_message, to_message
from services.restorer.remote import ReleaseGone, Run, Service
from vlmir.errors import (
    DeadlineError,
    InputError,
    LimitError,
    OptionError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)
from vlmir.image import Image, decode, encode
from vlmir.image.tiles import TilePlan, plan_tiles
from vlmir.v1 import captioner_pb2, embedder_pb2, image_pb2, sampler_pb2
from vlmir.v1.captioner_pb2_grpc import CaptionerServiceStub
from vlmir.v1.embedder_pb2_grpc import EmbedderServiceStub
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub

if (
    TYPE_CHECKING
):  # PyTorch is imported where pictures are, not where an application is only put together
    from vlmir.sampling import Conditions, Plan, SampleStep
    from vlmir.vlm.embedder import ImageEmbedding, ViewMaker

__all__ = [
    "AbsentCaptioner",
    "AbsentEmbedder",
    "EmbedderTraits",
    "RemoteCaptioner",
    "RemoteEmbedder",
    "RemoteSampler",
    "SamplerTraits",
]

Pixels = npt.NDArray[np.float32]

CAPTION_SHARE = 1 / 3
"""Of the time that is left, what a caption may take: a picture can do without."""

EMBED_SHARE = 1 / 2
"""Likewise what the embedder may take, where a picture may do without."""

# Room in a message beside the pixels.
_REST_OF_MESSAGE = 1 << 16


class AbsentCaptioner:
    """Stands for a captioner that cannot be asked.

    Args:
        reason: A sentence for the user.
    """

    def __init__(self, reason: str) -> None:
        self._reason = reason

    def caption(self, pixels_HWC: Pixels) -> str:
        """Raises UnavailableError, for which a picture is restored without."""
        raise UnavailableError(self._reason)


class RemoteCaptioner:
    """The captioner's service.

    Args:
        stub: Of the service.
        run: The request.
        release: Must answer.
        image_size: Side S in pixels of the square that it looks at.
        most_s: Seconds that a caption may take.
        embedder: Begins to look at a picture while it is captioned; None: it waits for the caption.
    """

    def __init__(
        self,
        stub: CaptionerServiceStub,
        run: Run,
        *,
        release: str,
        image_size: int,
        most_s: float,
        embedder: RemoteEmbedder | None = None,
    ) -> None:
        self._stub, self._service = stub, Service("captioner", run)
        self._embedder = embedder
        self._release, self._image_size, self._most_s = release, image_size, most_s

    def caption(self, pixels_HWC: Pixels) -> str:
        """H×W×3, 0…1 → one sentence.

        Raises:
            UnavailableError: It is down, too slow, overloaded or out of order.
            ReleaseGone: It does not hold the release any more.
            RestorationCancelled: The request was cancelled.
            DeadlineError: Its time was over before.
        """
        if self._embedder is not None:
            self._embedder.begin(pixels_HWC)
        request = captioner_pb2.CaptionRequest(
            image=image_pb2.ImageSource(data=self._view(pixels_HWC)), release=self._release
        )
        try:
            reply: captioner_pb2.CaptionResponse = self._service.ask(
                self._stub.Caption, request, most_s=self._most_s, share=CAPTION_SHARE
            )
        except (ReleaseGone, RestorationCancelled, UnavailableError):
            raise
        except VlmirError as error:
            raise UnavailableError(f"The captioner did not answer: {error}") from error
        return reply.caption

    def _view(self, pixels_HWC: Pixels) -> bytes:
        """All that the captioner sees of a picture, as a file: S×S, 16 bit, so that next to nothing is lost."""
        from vlmir.vlm.embedder import ViewMaker
        from vlmir.vlm.preprocess import CLIP_MEAN, CLIP_STD

        square = ViewMaker(image_size=self._image_size, resize="squash", detail=False, window=None)
        mean, deviation = np.array([CLIP_MEAN, CLIP_STD], np.float32)
        pixels = square(pixels_HWC)[0].permute(1, 2, 0).numpy() * deviation + mean
        return encode(Image(pixels=np.clip(pixels, 0, 1), bit_depth=16), format="png")


@dataclass(frozen=True, kw_only=True)
class EmbedderTraits:
    """What must be known of an embedder to call it."""

    labels: tuple[str, ...]
    """Degradation labels."""
    views: ViewMaker
    """Makes what it looks at."""
    prototypes: npt.NDArray[np.float32]
    """Typical f_D of each label, K×D."""

    @classmethod
    def of(cls, info: embedder_pb2.EmbedderServiceInfoResponse) -> EmbedderTraits:
        """As the service tells.

        Raises:
            VlmirError: That makes no sense here.
        """
        from vlmir.vlm.embedder import ViewMaker

        if info.resize == embedder_pb2.RESIZE_MODE_UNSPECIFIED:
            raise VlmirError("the embedder does not say how it scales pictures; update it")
        crop = info.resize == embedder_pb2.RESIZE_MODE_CROP
        views = ViewMaker(
            image_size=info.image_size,
            resize="crop" if crop else "squash",
            detail=info.detail,
            window=info.window if info.HasField("window") else None,
        )
        prototypes = _array(info.prototypes, (len(info.labels), info.embedding_dim))
        return cls(labels=tuple(info.labels), views=views, prototypes=prototypes)


class AbsentEmbedder:
    """Stands for an embedder that cannot be asked.

    Args:
        labels: Degradation labels.
        reason: A sentence for the user.
    """

    def __init__(self, labels: tuple[str, ...], reason: str) -> None:
        self.labels, self._reason = labels, reason

    def embed_image(self, pixels_HWC: Pixels) -> ImageEmbedding:
        """Raises UnavailableError."""
        raise UnavailableError(self._reason)

    def embed_captions(self, captions: Sequence[str]) -> Any:
        """Raises UnavailableError."""
        raise UnavailableError(self._reason)

    def embed_label(self, label: str) -> Any:
        """Raises UnavailableError."""
        raise UnavailableError(self._reason)


class RemoteEmbedder:
    """The embedder's service; views are made on this side, and embeddings are ``Tensor`` messages.

    Args:
        stub: Of the service.
        run: The request.
        release: Must answer.
        traits: Of that release.
        most_s: Seconds that an answer may take; then it is as if the service could not be reached. None: all the time
            there is.
    """

    def __init__(
        self,
        stub: EmbedderServiceStub,
        run: Run,
        *,
        release: str,
        traits: EmbedderTraits,
        most_s: float | None = None,
    ) -> None:
        self._stub, self._service, self._run = stub, Service("embedder", run), run
        self._may_be_missed = most_s is not None
        self._within: dict[str, Any] = {
            "most_s": most_s,
            "share": 1.0 if most_s is None else EMBED_SHARE,
        }
        self._release, self._traits = release, traits
        self.labels = traits.labels
        self._begun: tuple[Pixels, Any, Any] | None = None

    def begin(self, pixels_HWC: Pixels) -> None:
        """Let the service look at a picture already; :meth:`embed_image` of it then gives what was seen.

        Raises:
            DeadlineError: The request's time is over.
        """
        request = self._request(pixels_HWC)
        call = self._service.begin(self._stub.EmbedImage, request, **self._within)
        self._begun = pixels_HWC, request, call

    def embed_image(self, pixels_HWC: Pixels) -> ImageEmbedding:
        """H×W×3, 0…1 → content, damage and label probabilities.

        Raises:
            ReleaseGone: The service does not hold the release any more.
            UnavailableError: It cannot be reached, or is too slow.
            VlmirError: The call failed.
        """
        from vlmir.vlm.embedder import ImageEmbedding

        begun, self._begun = self._begun, None
        if begun is not None and begun[0] is pixels_HWC:
            _, request, call = begun
        else:
            request, call = self._request(pixels_HWC), None
        reply: embedder_pb2.EmbedImageResponse = self._ask(self._stub.EmbedImage, request, call)
        degradations = {label: reply.degradations[label] for label in self.labels}
        return ImageEmbedding(
            cast(Any, reply.image_embedding), cast(Any, reply.degradation_embedding), degradations
        )

    def embed_captions(self, captions: Sequence[str]) -> list[image_pb2.Tensor]:
        """B captions → f_T of each; errors are those of :meth:`embed_image`."""
        return [self._embed_caption(caption) for caption in captions]

    def embed_label(self, label: str) -> image_pb2.Tensor:
        """A label → its typical f_D.

        Raises:
            OptionError: The label is unknown.
        """
        if label not in self.labels:
            known = ", ".join(self.labels)
            raise OptionError(f"Unknown degradation {label!r}; choose from {known}.")
        return to_message(self._traits.prototypes[self.labels.index(label)])

    def _request(self, pixels_HWC: Pixels) -> embedder_pb2.EmbedImageRequest:
        views = self._traits.views(pixels_HWC).numpy()
        return embedder_pb2.EmbedImageRequest(pixels=to_message(views), release=self._release)

    def _embed_caption(self, caption: str) -> image_pb2.Tensor:
        request = embedder_pb2.EmbedTextRequest(text=caption, release=self._release)
        reply: embedder_pb2.EmbedTextResponse = self._ask(self._stub.EmbedText, request)
        return reply.text_embedding

    def _ask(self, method: Any, request: Any, begun: Any = None) -> Any:
        try:
            return self._service.ask(method, request, begun=begun, **self._within)
        except DeadlineError as error:
            if not self._may_be_missed:
                raise
            self._run.left_s()  # raises where it is the request's time that is over
            raise UnavailableError("The embedder does not answer in time.") from error


@dataclass(frozen=True, kw_only=True)
class SamplerTraits:
    """What must be known of a sampler to call it."""

    solver: str
    """Where none is asked for."""
    solvers: tuple[str, ...]
    """Names of the solvers."""
    labels: tuple[str, ...]
    """Degradation labels that it was trained on."""
    steps: int
    """Network evaluations where neither steps nor realism are asked for."""
    most_steps: int
    """The greatest number of steps."""
    reads_captions: bool
    """Whether a caption has an effect."""
    wide_labels: tuple[str, ...]
    """Labels of damage that spans wide areas."""
    mean_states: int
    """Network evaluations at realism 0."""
    tile: int
    """Side of a tile in pixels where none is asked for."""
    overlap: int
    """Pixels that neighbouring tiles share."""
    align: int
    """Tiles begin at multiples of this many pixels."""
    max_bytes: int
    """The largest message that the service takes."""
    takes_uris: bool
    """Whether pixels may lie in the object store."""

    @classmethod
    def of(cls, info: sampler_pb2.SamplerServiceInfoResponse) -> SamplerTraits:
        """As the service tells.

        Raises:
            VlmirError: That makes no sense here.
        """
        if min(info.default_steps, info.tile, info.align) < 1:
            raise VlmirError("the sampler does not say how it cuts pictures; update it")
        return cls(
            solver=info.default_solver,
            solvers=tuple(info.solvers),
            labels=tuple(info.labels),
            steps=info.default_steps,
            most_steps=info.most_steps,
            reads_captions=info.reads_captions,
            wide_labels=tuple(info.wide_labels),
            mean_states=max(1, info.mean_evaluations),
            tile=info.tile,
            overlap=info.overlap,
            align=info.align,
            max_bytes=info.service.limits.max_message_bytes,
            takes_uris=info.takes_uris,
        )

    def tile_plan(self, height: int, width: int, tile: int | None) -> TilePlan:
        """How a picture is cut, as :meth:`vlmir.sampling.DiffusionSampler.tile_plan` cuts it."""
        side = self.tile if tile is None else tile or max(height, width)
        align = min(self.align, side)
        overlap = min(self.overlap, max(0, side // 2 - align))
        return plan_tiles(height, width, tile=side, overlap=overlap, align=align)


class RemoteSampler:
    """The sampler's service. Conditions are ``Tensor`` messages, as :class:`RemoteEmbedder` gives them.

    Args:
        stub: Of the service.
        run: The request.
        release: Must answer.
        traits: Of that release.
        parcels: Sends pixels by way of the store, if the service takes them from there.
        previews: Whether to ask for previews.
    """

    def __init__(
        self,
        stub: SamplerServiceStub,
        run: Run,
        *,
        release: str,
        traits: SamplerTraits,
        parcels: Parcels,
        previews: bool = False,
    ) -> None:
        self._stub, self._service = stub, Service("sampler", run)
        self._release, self._traits, self._previews = release, traits, previews
        self._parcels = parcels if traits.takes_uris else Parcels()
        self.solvers = traits.solvers
        self.reads_captions, self.most_steps = traits.reads_captions, traits.most_steps
        self.wide_labels, self.mean_states = traits.wide_labels, traits.mean_states

    def tile_plan(self, height: int, width: int, tile: int | None) -> TilePlan:
        """How a picture is cut."""
        return self._traits.tile_plan(height, width, tile)

    def sample(
        self,
        pictures: Sequence[Pixels],
        conditions: Sequence[Conditions],
        seeds: Sequence[int],
        plan: Plan,
    ) -> Generator[SampleStep, None, list[Pixels]]:
        """Restore pictures, one after the other; closing the generator frees their places in the service.

        Args:
            pictures: H×W×3, RGB, 0…1.
            conditions: One for each.
            seeds: One for each.
            plan: Steps, solver, realism, tiling, ensemble.

        Yields:
            What the service tells on the way. If it is lost, another begins anew.

        Returns:
            Restored pictures, H×W×3, 0…1.

        Raises:
            LimitError: A picture is too big for the service.
            ReleaseGone: The service does not hold the release any more.
            VlmirError: The call failed.
        """
        restored = []
        for picture, known, seed in zip(pictures, conditions, seeds, strict=True):
            restored.append((yield from self._sample(picture, known, seed, plan)))
        return restored

    def _sample(
        self, picture: Pixels, known: Conditions, seed: int, plan: Plan
    ) -> Generator[SampleStep, None, Pixels]:
        request = self._request(picture, known, seed, plan)
        restored: Pixels | None = None
        replies = self._service.listen(self._stub.Sample, request)
        try:
            for reply in replies:
                if reply.WhichOneof("event") == "progress":
                    yield _step(reply.progress)
                    continue
                restored = self._received(reply.result.pixels, (3, *picture.shape[:2]))
        finally:
            replies.close()
            self._parcels.drop(request.pixels)
        if restored is None:
            raise VlmirError("the sampler ended without a result")
        return restored

    def _received(self, message: image_pb2.Tensor, shape: tuple[int, ...]) -> Pixels:
        with _trusting():
            pixels = self._parcels.receive(message, shape=shape, name="pixels")
        self._parcels.drop(message)
        return np.ascontiguousarray(pixels.transpose(1, 2, 0))

    def _request(
        self, picture: Pixels, known: Conditions, seed: int, plan: Plan
    ) -> sampler_pb2.SampleRequest:
        most = self._traits.max_bytes - _REST_OF_MESSAGE
        if picture.nbytes > most:
            height, width = picture.shape[:2]
            raise LimitError(
                f"The picture has {width} × {height} pixels; the sampler takes at most {most // 12} pixels. "
                "Scale it down, or cut it."
            )
        text, image, degradation = cast(tuple[Any, Any, Any], known)
        return sampler_pb2.SampleRequest(
            pixels=self._parcels.send(picture.transpose(2, 0, 1)),
            conditions=sampler_pb2.Conditions(text=text, image=image, degradation=degradation),
            options=sampler_pb2.SampleOptions(
                steps=plan.steps,
                solver=plan.solver,
                seed=seed,
                realism=plan.realism,
                tile=plan.tile,
                ensemble=plan.ensemble,
            ),
            wide=plan.wide,
            previews=self._previews,
            release=self._release,
        )


def _array(message: image_pb2.Tensor, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """An array that a service sent."""
    with _trusting():
        return from_message(message, shape=shape)


@contextmanager
def _trusting() -> Iterator[None]:
    """An array of a service that is wrong is no fault of the caller's."""
    try:
        yield
    except InputError as error:
        raise VlmirError(f"a service sent a broken array: {error}") from error


def _step(progress: image_pb2.Progress) -> SampleStep:
    """What happened; a preview is a smaller picture than the result, 1×3×h×w."""
    from vlmir.sampling import SampleStep

    x0: Any = None
    if progress.HasField("preview"):
        x0 = decode(progress.preview.data).pixels.transpose(2, 0, 1)[None]
    return SampleStep(progress.step, progress.share, x0)
