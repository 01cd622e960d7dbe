"""The three services together: which release a request uses, and a pipeline over them for it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import grpc

from services.common.channels import connect_sync
from services.common.parcels import Parcels
from services.restorer.remote import ReleaseGone, Run, Service
from services.restorer.settings import ClusterSettings
from services.restorer.stages import (
    AbsentCaptioner,
    AbsentEmbedder,
    EmbedderTraits,
    RemoteCaptioner,
    RemoteEmbedder,
    RemoteSampler,
    SamplerTraits,
)
from vlmir.errors import UnavailableError, VlmirError
from vlmir.image import Limits
from vlmir.pipeline import Captioner, Embedder, Restorer
from vlmir.v1 import captioner_pb2, embedder_pb2, image_pb2, sampler_pb2
from vlmir.v1.captioner_pb2_grpc import CaptionerServiceStub
from vlmir.v1.embedder_pb2_grpc import EmbedderServiceStub
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub

__all__ = ["Choice", "Cluster", "newest"]

log = logging.getLogger("vlmir.cluster")

_FRESH_S = 1.0
"""For so long the services are not asked again what they hold."""
_INFO_S = 2.0
_PATIENCE_S = 30.0
"""For so long what a service said last is believed while it is too busy to say it again."""
_REMEMBERED = 16
_NONE_IN_COMMON = (
    "The services have no release of the weights in common at present; try again in a few seconds."
)


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What one request uses; the same for all its calls."""

    release: str
    """Name and version of the weights."""
    digests: dict[str, str]
    """Part → sha256."""
    captioner: int | str | None
    """Side of the square it looks at, or why it cannot be asked, or None: these weights have none."""
    embedder: EmbedderTraits | str
    """What it looks at, or why it cannot be asked."""
    sampler: SamplerTraits
    """What it takes."""
    device: str
    """Where the sampler computes."""


class Infos(NamedTuple):
    """What the services said of themselves; None: it does not answer, or holds nothing."""

    captioner: captioner_pb2.CaptionerServiceInfoResponse | None
    embedder: embedder_pb2.EmbedderServiceInfoResponse | None
    sampler: sampler_pb2.SamplerServiceInfoResponse | None

    @property
    def labels(self) -> Sequence[str]:
        """Degradation labels, as far as one that answers tells."""
        told: Sequence[str] = ()
        if self.sampler is not None:
            told = self.sampler.labels
        elif self.embedder is not None:
            told = self.embedder.labels
        return told

    @property
    def services(self) -> list[image_pb2.ServiceInfo]:
        """Of those that answer, the sampler first."""
        return [info.service for info in reversed(self) if info is not None]


def newest(
    sampler: Sequence[str], embedder: Sequence[str] | None, captioner: Sequence[str] | None
) -> str | None:
    """The release to use, or None.

    Args:
        sampler: Releases it holds, the current one first.
        embedder: Likewise; None: it is left out.
        captioner: Likewise. One that all three hold is preferred, but a picture can do without a caption.
    """
    common = [name for name in sampler if embedder is None or name in embedder]
    whole = [name for name in common if captioner is None or name in captioner]
    return next(iter(whole or common), None)


class _Listened:
    """What one service says of itself, asked for again and again."""

    def __init__(self, name: str, stub: Any, request: Any) -> None:
        self.name, self._stub, self._request = name, stub, request
        self._last: Any = None
        self._heard = 0.0

    def ask(self) -> Any:
        """A call under way."""
        return self._stub.Info.future(self._request, timeout=_INFO_S)

    def hear(self, call: Any) -> Any:
        """The call's answer; None while the service does not answer, or holds no release."""
        try:
            self._last = call.result()
            self._heard = time.monotonic()
        except grpc.RpcError as error:
            busy = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            if not busy or time.monotonic() > self._heard + _PATIENCE_S:
                if self._last is not None:
                    log.warning("the %s does not answer: %s", self.name, error.details())
                self._last = None
        return self._last if self._last is not None and self._last.service.releases else None


class Cluster:
    """Connections to the services, shared by all requests of a process.

    Args:
        settings: Addresses and limits.
        parcels: Sends pixels to the sampler.

    Raises:
        OptionError: The certificates are unfit.
    """

    def __init__(self, settings: ClusterSettings, parcels: Parcels | None = None) -> None:
        # Else the first request would pay for it.
        import vlmir.sampling
        import vlmir.vlm.embedder  # noqa: F401

        self._settings, self._parcels = settings, parcels or Parcels()
        self.limits = Limits(max_bytes=settings.max_bytes, max_pixels=settings.max_pixels)
        """What pictures are accepted."""
        addresses = (settings.captioner, settings.embedder, settings.sampler)
        self._channels = [connect_sync(address, settings) for address in addresses if address]
        self._sampler = SamplerServiceStub(self._channels[-1])
        self._embedder = EmbedderServiceStub(self._channels[-2])
        self._captioner = CaptionerServiceStub(self._channels[0]) if settings.captioner else None
        self._asking = threading.Lock()
        self._listened = (
            _Listened("captioner", self._captioner, captioner_pb2.CaptionerServiceInfoRequest()),
            _Listened("embedder", self._embedder, embedder_pb2.EmbedderServiceInfoRequest()),
            _Listened("sampler", self._sampler, sampler_pb2.SamplerServiceInfoRequest()),
        )
        self._infos: Infos | None = None
        self._asked = 0.0
        self._embedders: dict[str, EmbedderTraits] = {}
        self._samplers: dict[str, sampler_pb2.SamplerServiceInfoResponse] = {}

    def close(self) -> None:
        """End all connections; calls under way fail."""
        for channel in self._channels:
            channel.close()

    def infos(self, *, fresh: bool = False) -> Infos:
        """What the services say of themselves, at most a second old; blocks.

        Args:
            fresh: Ask again in any case.
        """
        with self._asking:
            now = time.monotonic()
            if fresh or self._infos is None or now > self._asked + _FRESH_S:
                self._infos = self._ask()
                self._asked = time.monotonic()
            return self._infos

    def choose(self, *, fresh: bool = False) -> Choice:
        """What a request that begins now uses; blocks.

        Args:
            fresh: Ask the services again, after one gave up what was chosen.

        Raises:
            UnavailableError: The sampler does not answer, or the embedder where it may not be left out, or they have no
                release in common.
        """
        infos = self.infos(fresh=fresh)
        captioner, embedder, sampler = infos
        if sampler is None:
            raise UnavailableError(_down("sampler"))
        if embedder is None and not self._settings.allow_unconditioned:
            raise UnavailableError(_down("embedder"))
        release = newest(
            sampler.service.releases,
            embedder.service.releases if embedder else None,
            captioner.service.releases if captioner else None,
        )
        if release is None:
            raise UnavailableError(_NONE_IN_COMMON)
        try:
            return self._choice(release, infos)
        except ReleaseGone as error:  # given up since the services were asked
            if fresh:
                raise UnavailableError(_NONE_IN_COMMON) from error
        return self.choose(fresh=True)

    def restorer(self, choice: Choice, run: Run, *, previews: bool = False) -> Restorer:
        """The pipeline for one request."""
        embedder = self._embedder_stage(choice, run)
        return Restorer(
            captioner=self._captioner_stage(choice, run, embedder),
            embedder=embedder,
            sampler=RemoteSampler(
                self._sampler,
                run,
                release=choice.release,
                traits=choice.sampler,
                parcels=self._parcels,
                previews=previews,
            ),
            release=choice.release,
            digests=choice.digests,
            solver=choice.sampler.solver,
            steps=choice.sampler.steps,
            device=choice.device,
            limits=self.limits,
            unconditioned=self._settings.allow_unconditioned,
        )

    def _choice(self, release: str, infos: Infos) -> Choice:
        with self._asking:  # one request asks for all
            sampler = self._sampler_for(release)
            embedder = self._embedder_for(release) if infos.embedder else _down("embedder")
        return Choice(
            release=release,
            digests=dict(sampler.service.digests),
            captioner=self._captioner_for(release, infos, needed=bool(sampler.captioner_release)),
            embedder=embedder,
            sampler=SamplerTraits.of(sampler),
            device=sampler.service.device,
        )

    def _captioner_stage(self, choice: Choice, run: Run, embedder: Embedder) -> Captioner | None:
        if isinstance(choice.captioner, str):
            return AbsentCaptioner(choice.captioner)
        if choice.captioner is None or self._captioner is None:
            return None
        return RemoteCaptioner(
            self._captioner,
            run,
            release=choice.release,
            image_size=choice.captioner,
            most_s=self._settings.caption_s,
            embedder=embedder if isinstance(embedder, RemoteEmbedder) else None,
        )

    def _embedder_stage(self, choice: Choice, run: Run) -> Embedder:
        if isinstance(choice.embedder, str):
            return AbsentEmbedder(choice.sampler.labels, choice.embedder)
        return RemoteEmbedder(
            self._embedder,
            run,
            release=choice.release,
            traits=choice.embedder,
            most_s=self._settings.embed_s if self._settings.allow_unconditioned else None,
        )

    def _ask(self) -> Infos:
        """Ask all at once."""
        asked = self._listened if self._captioner else self._listened[1:]
        calls = [(one, one.ask()) for one in asked]
        heard = [one.hear(call) for one, call in calls]
        infos = Infos(*[None] * (3 - len(heard)), *heard)
        if infos.sampler is not None:
            _remember(self._samplers, infos.sampler.service.release, infos.sampler)
        if infos.embedder is not None:
            release = infos.embedder.service.release
            if release not in self._embedders:
                _remember(self._embedders, release, EmbedderTraits.of(infos.embedder))
        return infos

    def _sampler_for(self, release: str) -> sampler_pb2.SamplerServiceInfoResponse:
        if release not in self._samplers:
            request = sampler_pb2.SamplerServiceInfoRequest(release=release)
            _remember(self._samplers, release, _described("sampler", self._sampler, request))
        return self._samplers[release]

    def _embedder_for(self, release: str) -> EmbedderTraits | str:
        """Its traits, or why it cannot be asked where it may be left out."""
        if release not in self._embedders:
            request = embedder_pb2.EmbedderServiceInfoRequest(release=release)
            try:
                info = _described("embedder", self._embedder, request)
            except UnavailableError as error:
                if not self._settings.allow_unconditioned:
                    raise
                return str(error)
            _remember(self._embedders, release, EmbedderTraits.of(info))
        return self._embedders[release]

    def _captioner_for(self, release: str, infos: Infos, *, needed: bool) -> int | str | None:
        if infos.captioner is None:
            return _down("captioner") if needed and self._captioner is not None else None
        if release not in infos.captioner.service.releases:
            return f"The captioner does not hold release {release!r}."
        return infos.captioner.image_size


def _described(name: str, stub: Any, request: Any) -> Any:
    """What a service says of a release that is not its current one.

    Raises:
        ReleaseGone: It does not hold it any more.
        UnavailableError: It does not answer.
    """
    try:
        return Service(name, Run(None)).ask(stub.Info, request, most_s=_INFO_S)
    except ReleaseGone:
        raise
    except VlmirError as error:
        raise UnavailableError(_down(name)) from error


def _down(service: str) -> str:
    return f"The {service} cannot be reached at present; try again in a few seconds."


def _remember(table: dict[str, Any], key: str, value: Any) -> None:
    """Add to a table of a few entries; the oldest makes room."""
    table.pop(key, None)
    table[key] = value
    while len(table) > _REMEMBERED:
        del table[next(iter(table))]
