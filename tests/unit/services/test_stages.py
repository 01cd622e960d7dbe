"""The stages as services elsewhere: real servers with small weights, and servers that fail."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import grpc
import numpy as np
import numpy.typing as npt
import pytest
from grpc_status import rpc_status

from services.common.calls import REQUEST_ID, request_id
from services.common.errors import to_status
from services.common.parcels import Parcels
from services.restorer.cluster import Choice, newest
from services.restorer.remote import ReleaseGone, Run
from services.restorer.stages import (
    EmbedderTraits,
    RemoteCaptioner,
    RemoteEmbedder,
    RemoteSampler,
    SamplerTraits,
)
from services.sampler.traits import traits
from tests.integration.calls import free_port
from tests.small import small_preset
from tests.unit.services.stage_servers import (
    PATIENCE_S,
    RELEASE,
    Servers,
    cluster,
    depth,
    running_services,
    stub_at,
    wait_for_depth,
)
from vlmir.bundle import load_bundle
from vlmir.compute import Compute
from vlmir.config import Preset, load_preset
from vlmir.errors import (
    DeadlineError,
    LimitError,
    OptionError,
    OverloadedError,
    RestorationCancelled,
    UnavailableError,
    VlmirError,
)
from vlmir.nn import UNet
from vlmir.parts import build_unet
from vlmir.pipeline import RestoreOptions, Restorer
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish
from vlmir.v1 import captioner_pb2, embedder_pb2, image_pb2, sampler_pb2
from vlmir.v1.captioner_pb2_grpc import (
    CaptionerServiceServicer,
    CaptionerServiceStub,
    add_CaptionerServiceServicer_to_server,
)
from vlmir.v1.embedder_pb2_grpc import (
    EmbedderServiceServicer,
    EmbedderServiceStub,
    add_EmbedderServiceServicer_to_server,
)
from vlmir.v1.sampler_pb2_grpc import (
    SamplerServiceServicer,
    SamplerServiceStub,
    add_SamplerServiceServicer_to_server,
)

PLAN = Plan(steps=3, solver="ddim", realism=1.0, tile=None)
NOTHING = Conditions(None, None, None)


@pytest.fixture(scope="module")
def servers(small_bundle_folder: Path) -> Iterator[Servers]:
    with running_services(small_bundle_folder) as found:
        yield found


@pytest.fixture(scope="module")
def library(small_bundle_folder: Path) -> Restorer:
    return Restorer.load(small_bundle_folder)


@contextmanager
def served_by(servicer: Any, add: Any) -> Iterator[tuple[str, grpc.Server]]:
    """A server of our own making, on a free port."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    add(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}", server
    finally:
        server.stop(None)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((height, width, 3), np.float32)


def sampler_at(stub: SamplerServiceStub, run: Run | None = None, **changed: Any) -> RemoteSampler:
    arguments = {
        "release": RELEASE,
        "traits": traits_of(small_preset()),
        "parcels": Parcels(),
    } | changed
    return RemoteSampler(stub, run or Run(None), **arguments)


def traits_of(preset: Preset, *, max_bytes: int = 10**8) -> SamplerTraits:
    """What a sampler of an architecture tells."""
    info = traits(without_weights(preset))
    info.service.limits.max_message_bytes = max_bytes
    return SamplerTraits.of(info)


def without_weights(preset: Preset) -> DiffusionSampler:
    return DiffusionSampler(cast(UNet, UnetWithoutWeights(preset)), preset.sampler)


def captioner_at(stub: CaptionerServiceStub, run: Run | None = None) -> RemoteCaptioner:
    return RemoteCaptioner(
        stub, run or Run(None), release=RELEASE, image_size=32, most_s=PATIENCE_S
    )


def choice_of(servers: Servers) -> Choice:
    with cluster(servers) as made:
        return made.choose()


# What the services say is what the library computes


@pytest.mark.parametrize(
    ("size", "degradation"),
    [((40, 56), "noisy"), ((20, 300), "noisy"), ((200, 180), "noisy"), ((40, 56), "hazy")],
)
def test_the_pipeline_over_services_restores_as_the_library(
    servers: Servers, library: Restorer, size: tuple[int, int], degradation: str
) -> None:
    levels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    options = RestoreOptions(steps=2, realism=1, seed=5, degradation=degradation)
    with cluster(servers) as made:
        restorer = made.restorer(made.choose(), Run(None))
        restored = restorer.restore(levels, options)
    expected = library.restore(levels, options)
    assert np.abs(restored.image.pixels - expected.image.pixels).max() < 1e-4
    ours, theirs = restored.report.to_dict(), expected.report.to_dict()
    for report in (ours, theirs):
        del report["milliseconds"]
    assert ours.pop("degradations") == pytest.approx(theirs.pop("degradations"), abs=1e-5)
    assert ours == theirs


def test_captions_are_those_of_the_library(servers: Servers, library: Restorer) -> None:
    with stub_at(servers.captioner, CaptionerServiceStub) as stub:
        captioner = captioner_at(stub)
        for seed in range(5):
            pixels = picture(30 + 9 * seed, 70, seed)
            assert captioner.caption(pixels) == library.inspect(pixels_as_levels(pixels)).caption


def pixels_as_levels(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    return np.round(pixels * 65535).astype(np.uint16)


class UnetWithoutWeights:
    """As much of a network as it takes to cut tiles."""

    multiple = UNet.multiple

    def __init__(self, preset: Preset) -> None:
        self.config = preset.sampler.unet


@pytest.mark.parametrize("name", ["small", "tiny", "base", "daclip"])
def test_tiles_are_cut_as_by_the_library(name: str) -> None:
    preset = small_preset() if name == "small" else load_preset(name)
    sampler, told = without_weights(preset), traits_of(preset)
    assert told.most_steps == sampler.most_steps
    assert told.reads_captions == sampler.reads_captions
    assert told.wide_labels == sampler.wide_labels
    assert told.mean_states == sampler.mean_states
    assert told.solvers == sampler.solvers
    nothing_chosen = sampler.plan(RestoreOptions())
    assert (told.solver, told.steps) == (nothing_chosen.solver, nothing_chosen.steps)
    for size in ((40, 56), (1000, 700), (333, 2111)):
        for tile in (None, 0, 128, 300):
            ours, theirs = told.tile_plan(*size, tile), sampler.tile_plan(*size, tile)
            assert ours.windows == theirs.windows


def test_previews_come_when_asked_for(servers: Servers) -> None:
    with stub_at(servers.sampler, SamplerServiceStub) as stub:
        for previews in (False, True):
            sampler = sampler_at(stub, previews=previews)
            steps = list(sampler.sample([picture()], [NOTHING], [0], PLAN))
            assert [step.step for step in steps] == [1, 2, 3]
            shapes = [None if step.x0 is None else step.x0.shape for step in steps]
            assert shapes == [(1, 3, 40, 56) if previews else None] * 3


def test_closing_the_generator_frees_the_place(servers: Servers) -> None:
    with stub_at(servers.sampler, SamplerServiceStub) as stub:
        steps = sampler_at(stub).sample([picture(200, 200)], [NOTHING], [0], long_plan())
        next(steps)
        assert depth(stub) == 1
        steps.close()
        wait_for_depth(stub, 0)


def test_cancelling_the_run_ends_the_call_that_is_waited_for(servers: Servers) -> None:
    with stub_at(servers.sampler, SamplerServiceStub) as stub:
        run = Run(None)
        steps = sampler_at(stub, run).sample([picture(300, 300)], [NOTHING], [0], long_plan())
        threading.Timer(0.1, run.cancel).start()
        with pytest.raises(RestorationCancelled):
            finish(steps)
        wait_for_depth(stub, 0)
        with pytest.raises(RestorationCancelled):  # nothing is begun any more
            finish(sampler_at(stub, run).sample([picture()], [NOTHING], [0], PLAN))


def long_plan() -> Plan:
    return Plan(steps=100, solver="ddim", realism=1.0, tile=None)


class Both(CaptionerServiceServicer, EmbedderServiceServicer):
    """Captions a picture when the embedder is looking at it, too."""

    def __init__(self) -> None:
        self.looking, self.looks = threading.Event(), 0

    def Caption(self, request: Any, context: Any) -> captioner_pb2.CaptionResponse:
        assert self.looking.wait(PATIENCE_S)
        return captioner_pb2.CaptionResponse(caption="a dog", release=RELEASE)

    def EmbedImage(self, request: Any, context: Any) -> embedder_pb2.EmbedImageResponse:
        self.looks += 1
        self.looking.set()
        return embedder_pb2.EmbedImageResponse(release=RELEASE)


def add_both(servicer: Both, server: grpc.Server) -> None:
    add_CaptionerServiceServicer_to_server(servicer, server)
    add_EmbedderServiceServicer_to_server(servicer, server)


def test_a_picture_is_looked_at_while_it_is_captioned(servers: Servers) -> None:
    known, both = choice_of(servers).embedder, Both()
    assert isinstance(known, EmbedderTraits)
    with (
        served_by(both, add_both) as (address, _),
        stub_at(address, CaptionerServiceStub) as captioner,
        stub_at(address, EmbedderServiceStub) as stub,
    ):
        run, seen = Run(None), picture()
        embedder = RemoteEmbedder(stub, run, release=RELEASE, traits=known)
        how = {"release": RELEASE, "image_size": 32, "most_s": PATIENCE_S, "embedder": embedder}
        assert RemoteCaptioner(captioner, run, **how).caption(seen) == "a dog"
        embedder.embed_image(seen)
        assert both.looks == 1
        embedder.embed_image(seen)  # asked again, it looks again
        embedder.begin(seen)
        embedder.embed_image(picture(seed=1))  # another is not the one begun
        assert both.looks == 4


def test_what_was_begun_ends_with_the_run(servers: Servers) -> None:
    known = choice_of(servers).embedder
    assert isinstance(known, EmbedderTraits)
    with stub_at(f"127.0.0.1:{free_port()}", EmbedderServiceStub) as nobody:
        run = Run(None)
        embedder = RemoteEmbedder(nobody, run, release=RELEASE, traits=known)
        embedder.begin(seen := picture())
        run.cancel()
        with pytest.raises(RestorationCancelled):
            embedder.embed_image(seen)


# Failures


def test_a_release_that_is_not_held_any_more(servers: Servers) -> None:
    known = choice_of(servers).embedder
    assert isinstance(known, EmbedderTraits)
    with (
        stub_at(servers.captioner, CaptionerServiceStub) as captioner,
        stub_at(servers.embedder, EmbedderServiceStub) as embedder,
        stub_at(servers.sampler, SamplerServiceStub) as sampler,
    ):
        run = Run(None)
        old = RemoteCaptioner(captioner, run, release="old-1", image_size=32, most_s=9)
        with pytest.raises(ReleaseGone):
            old.caption(picture())
        with pytest.raises(ReleaseGone):
            RemoteEmbedder(embedder, run, release="old-1", traits=known).embed_image(picture())
        with pytest.raises(ReleaseGone):
            finish(sampler_at(sampler, release="old-1").sample([picture()], [NOTHING], [0], PLAN))


def test_labels_are_known_without_a_call(servers: Servers) -> None:
    known = choice_of(servers).embedder
    assert isinstance(known, EmbedderTraits)
    with stub_at(f"127.0.0.1:{free_port()}", EmbedderServiceStub) as nobody:
        embedder = RemoteEmbedder(nobody, Run(None), release=RELEASE, traits=known)
        assert embedder.embed_label("hazy") != embedder.embed_label("noisy")
        with pytest.raises(OptionError, match="'foggy'"):
            embedder.embed_label("foggy")


def test_a_picture_too_big_for_a_message(servers: Servers) -> None:
    with stub_at(servers.sampler, SamplerServiceStub) as stub:
        sampler = sampler_at(stub, traits=traits_of(small_preset(), max_bytes=(1 << 16) + 12 * 100))
        with pytest.raises(LimitError, match="56 × 40 pixels; the sampler takes at most 100"):
            finish(sampler.sample([picture()], [NOTHING], [0], PLAN))


def test_no_call_is_made_when_the_time_is_over(servers: Servers) -> None:
    with (
        stub_at(servers.captioner, CaptionerServiceStub) as stub,
        pytest.raises(UnavailableError, match="time"),
    ):
        captioner_at(stub, Run(time.monotonic() - 1)).caption(picture())
    with stub_at(servers.sampler, SamplerServiceStub) as stub:
        sampler = sampler_at(stub, Run(time.monotonic() + 0.2))
        with pytest.raises(DeadlineError):
            finish(sampler.sample([picture(300, 300)], [NOTHING], [0], long_plan()))


class Recorded(CaptionerServiceServicer):
    """A captioner that tells of its calls, and does what it is told."""

    def __init__(self, *, delay_s: float = 0.0, fault: VlmirError | None = None) -> None:
        self.calls: list[tuple[captioner_pb2.CaptionRequest, dict[str, str], float]] = []
        self._delay_s, self._fault = delay_s, fault

    def Caption(self, request: Any, context: Any) -> captioner_pb2.CaptionResponse:
        metadata = dict(context.invocation_metadata())
        self.calls.append((request, metadata, context.time_remaining()))
        time.sleep(self._delay_s)
        if self._fault is not None:
            context.abort_with_status(rpc_status.to_status(to_status(self._fault, "x")))
        return captioner_pb2.CaptionResponse(caption="a dog")


def test_calls_say_who_asks_and_for_how_long() -> None:
    recorded = Recorded()
    with (
        served_by(recorded, add_CaptionerServiceServicer_to_server) as (address, _),
        stub_at(address, CaptionerServiceStub) as stub,
    ):
        token = request_id.set("the-request")
        try:
            assert captioner_at(stub, Run(time.monotonic() + 3)).caption(picture()) == "a dog"
        finally:
            request_id.reset(token)
    ((request, metadata, left),) = recorded.calls
    assert request.release == RELEASE
    assert metadata[REQUEST_ID] == "the-request"
    assert 0.5 < left <= 1.0  # a third of what there was


@pytest.mark.parametrize(
    ("recorded", "left_s"),
    [
        (Recorded(delay_s=0.5), 0.3),
        (Recorded(fault=OverloadedError("full", retry_after_s=1)), 60),
        (Recorded(fault=UnavailableError("no weights")), 60),
        (Recorded(fault=VlmirError("broken")), 60),
    ],
)
def test_whatever_is_wrong_with_the_captioner_a_picture_can_do_without(
    recorded: Recorded, left_s: float
) -> None:
    with (
        served_by(recorded, add_CaptionerServiceServicer_to_server) as (address, _),
        stub_at(address, CaptionerServiceStub) as stub,
        pytest.raises(UnavailableError),
    ):
        captioner_at(stub, Run(time.monotonic() + left_s)).caption(picture())
    assert len(recorded.calls) == 1  # who answered is not asked again


class Stuck(SamplerServiceServicer):
    """A sampler that begins, and never ends."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self._over = threading.Event()

    def Sample(self, request: Any, context: Any) -> Iterator[sampler_pb2.SampleResponse]:
        context.add_callback(self._over.set)
        self.begun.set()
        yield sampler_pb2.SampleResponse(progress=image_pb2.Progress(step=1, steps=3, share=1 / 3))
        self._over.wait(PATIENCE_S)


def test_a_call_lost_with_its_server_goes_to_another(servers: Servers) -> None:
    stuck = Stuck()
    with served_by(stuck, add_SamplerServiceServicer_to_server) as (address, server):
        both = f"ipv4:{address},{servers.sampler}"
        with stub_at(both, SamplerServiceStub) as stub:
            while not stuck.begun.is_set():  # they are called in turn
                steps = sampler_at(stub).sample([picture()], [NOTHING], [0], PLAN)
                assert next(steps).step == 1
            server.stop(None)
            assert [step.step for step in steps] == [1, 2, 3]


def test_a_call_lost_with_the_only_server_fails_at_once() -> None:
    stuck = Stuck()
    with (
        served_by(stuck, add_SamplerServiceServicer_to_server) as (address, server),
        stub_at(address, SamplerServiceStub) as stub,
    ):
        steps = sampler_at(stub).sample([picture()], [NOTHING], [0], PLAN)
        next(steps)
        server.stop(None)
        began = time.monotonic()
        with pytest.raises(UnavailableError, match="sampler cannot be reached") as told:
            next(steps)
        assert time.monotonic() - began < 2
        assert "127.0.0.1" not in str(told.value)


# The choice of a release


@pytest.mark.parametrize(
    ("sampler", "embedder", "captioner", "chosen"),
    [
        (["2", "1"], ["2", "1"], ["2"], "2"),
        (["2", "1"], ["1"], ["1"], "1"),  # the embedder is late
        (["1"], ["2", "1"], ["2", "1"], "1"),  # the sampler is late
        (["2", "1"], ["2", "1"], ["1"], "1"),  # the captioner is late
        (["2", "1"], ["2"], ["1"], "2"),  # better without a caption than not at all
        (["2", "1"], None, ["1"], "1"),
        (["2", "1"], ["2", "1"], None, "2"),
        (["2"], ["1"], ["1"], None),
    ],
)
def test_the_newest_release_that_all_hold(
    sampler: list[str],
    embedder: list[str] | None,
    captioner: list[str] | None,
    chosen: str | None,
) -> None:
    assert newest(sampler, embedder, captioner) == chosen


def test_what_is_known_of_the_services(servers: Servers) -> None:
    with cluster(servers) as made:
        choice = made.choose()
        assert made.infos() is made.infos()  # not asked at every request
    assert choice.release == RELEASE
    assert set(choice.digests) == {"captioner", "embedder", "sampler"}
    assert choice.captioner == 32


def test_services_that_are_missing(servers: Servers) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    with (
        cluster(servers, sampler=nobody) as made,
        pytest.raises(UnavailableError, match="The sampler"),
    ):
        made.choose()
    with (
        cluster(servers, embedder=nobody) as made,
        pytest.raises(UnavailableError, match="The embedder"),
    ):
        made.choose()
    for settings, warned in (
        ({"embedder": nobody, "allow_unconditioned": True}, "The embedder"),
        ({"captioner": nobody}, "The captioner"),
        ({"captioner": ""}, "no captioner"),
    ):
        with cluster(servers, **settings) as made:
            restorer = made.restorer(made.choose(), Run(None))
            report = restorer.restore(picture_levels(), RestoreOptions()).report
        assert any(warned in warning for warning in report.warnings)
        assert report.caption is None
        assert bool(report.degradations) == ("embedder" not in settings)


def picture_levels() -> npt.NDArray[np.uint8]:
    return np.random.default_rng(3).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def test_without_the_embedder_the_null_conditions_steer(
    servers: Servers, library: Restorer, small_bundle_folder: Path
) -> None:
    nobody = f"127.0.0.1:{free_port()}"
    levels = picture_levels()
    with cluster(servers, embedder=nobody, allow_unconditioned=True) as made:
        restored = made.restorer(made.choose(), Run(None)).restore(levels, RestoreOptions(steps=2))
    bundle = load_bundle(small_bundle_folder)
    sampler = DiffusionSampler(build_unet(bundle, Compute.choose()), bundle.preset.sampler)
    pixels = (levels / 255).astype(np.float32)
    plan = sampler.plan(RestoreOptions(steps=2))
    (expected,) = finish(sampler.sample([pixels], [NOTHING], [0], plan))
    assert np.abs(restored.image.pixels - expected).max() < 1e-4
    assert restored.report.degradation == ""
    assert (
        np.abs(expected - library.restore(levels, RestoreOptions(steps=2)).image.pixels).max()
        > 1e-3
    )


class Frozen(EmbedderServiceServicer):
    """Says what it holds, as another says it, and then nothing."""

    def __init__(self, other: str) -> None:
        self._other = other
        self.gate = threading.Event()

    def Info(self, request: Any, context: Any) -> embedder_pb2.EmbedderServiceInfoResponse:
        with stub_at(self._other, EmbedderServiceStub) as stub:
            told: embedder_pb2.EmbedderServiceInfoResponse = stub.Info(request)
        return told

    def EmbedImage(self, request: Any, context: Any) -> embedder_pb2.EmbedImageResponse:
        self.gate.wait(PATIENCE_S)
        raise AssertionError("nobody waits any more")


def test_an_embedder_that_hangs_is_left_out_where_it_may_be(servers: Servers) -> None:
    frozen = Frozen(servers.embedder)
    with served_by(frozen, add_EmbedderServiceServicer_to_server) as (address, _):
        try:
            for settings, left_s in (({"embed_s": 0.1}, PATIENCE_S), ({}, 4.0)):
                how = {"embedder": address, "allow_unconditioned": True, **settings}
                with cluster(servers, **how) as made:
                    restorer = made.restorer(made.choose(), Run(time.monotonic() + left_s))
                    report = restorer.restore(picture_levels(), RestoreOptions()).report
                assert not report.degradations
                assert any("embedder does not answer in time" in one for one in report.warnings)
            with cluster(servers, embedder=address) as made:
                restorer = made.restorer(made.choose(), Run(time.monotonic() + 0.5))
                with pytest.raises(DeadlineError):
                    restorer.restore(picture_levels(), RestoreOptions())
        finally:
            frozen.gate.set()


def test_an_embedder_must_say_how_it_looks() -> None:
    with pytest.raises(VlmirError, match="how it scales"):
        EmbedderTraits.of(embedder_pb2.EmbedderServiceInfoResponse())


def test_a_sampler_must_say_how_it_cuts() -> None:
    with pytest.raises(VlmirError, match="how it cuts"):
        SamplerTraits.of(sampler_pb2.SamplerServiceInfoResponse())
