"""The restorer on a real Ray Serve, over three real service processes with small weights."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import yaml
from google.rpc.error_details_pb2 import ErrorInfo, RequestInfo, RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from services.common.calls import CALLER, TIME_BUDGET
from services.common.errors import from_details
from services.restorer.settings import ClusterSettings
from tests.integration.calls import NOT_SERVING, SERVING, process, wait_until
from tests.integration.cluster import Cluster, starting_cluster
from tests.integration.serving import (
    CONFIG,
    PATIENCE_S,
    Application,
    running_ray,
    serving,
)
from tests.small import small_preset
from tests.unit.image.samples import png_header
from vlmir.client import RestorationClient
from vlmir.errors import OptionError
from vlmir.image import Image, decode, encode
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer
from vlmir.v1 import image_pb2, restorer_pb2
from vlmir.v1.restorer_pb2_grpc import RestorerServiceStub

WORKERS, QUEUE = 3, 1
LONG = 100
"""Steps that take seconds."""
TRACE, CALLER_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"

pytestmark = pytest.mark.timeout(300)


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A real receiver of OTLP, which keeps the spans of one trace."""

    def __init__(self) -> None:
        self.spans: dict[str, tuple[str, str, str]] = {}
        """Id → the process, the method, and the parent's id."""

    def Export(self, request: Any, context: Any) -> Any:
        for resource in request.resource_spans:
            about = {one.key: one.value.string_value for one in resource.resource.attributes}
            for span in (span for scope in resource.scope_spans for span in scope.spans):
                if span.trace_id.hex() == TRACE:
                    method = span.name.rpartition("/")[2]
                    told = about["service.name"], method, span.parent_span_id.hex()
                    self.spans[span.span_id.hex()] = told
        return trace_service_pb2.ExportTraceServiceResponse()

    def ways(self) -> set[tuple[str, ...]]:
        """The hops from the caller to each span that has no child."""
        parents = {parent for _, _, parent in self.spans.values()}
        return {tuple(self._way(span)) for span in set(self.spans) - parents}

    def _way(self, span: str) -> list[str]:
        if span == CALLER_SPAN:
            return []
        name, method, parent = self.spans.get(span, ("?", "?", CALLER_SPAN))
        return [*self._way(parent), f"{name}/{method}"]


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    """Where everything that is started meanwhile sends its spans."""
    collector = Collector()
    with ThreadPoolExecutor(2) as pool, pytest.MonkeyPatch.context() as patch:
        receiver = grpc.server(pool)
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, receiver)
        port = receiver.add_insecure_port("127.0.0.1:0")
        receiver.start()
        patch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{port}")
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "200")
        try:
            yield collector
        finally:
            receiver.stop(None)


@pytest.fixture(scope="module")
def services(small_bundle_folder: Path, collector: Collector) -> Iterator[Cluster]:
    """Starts first, and is waited for last: Ray starts meanwhile."""
    with starting_cluster(small_bundle_folder) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def app(services: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    """With a folder as store."""
    store = {"VLMIR_STORE_URL": str(tmp_path_factory.mktemp("store"))}
    args = {"workers": WORKERS, "queue": QUEUE, "allow_unconditioned": True}
    with running_ray(store), serving(services, **args) as application:
        yield application


@pytest.fixture(scope="module")
def library(small_bundle_folder: Path) -> Restorer:
    return Restorer.load(small_bundle_folder)


@pytest.fixture
def calls() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(16) as pool:
        yield pool


def picture(height: int = 48, width: int = 64, seed: int = 0) -> bytes:
    levels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return encode(Image.from_levels(levels), format="png")


seeds = iter(range(1, 10_000))


def request(data: bytes | None = None, **options: Any) -> restorer_pb2.RestoreRequest:
    """A request like no other, so that it is computed."""
    return restorer_pb2.RestoreRequest(
        image=image_pb2.ImageSource(data=data or picture()),
        options=restorer_pb2.RestoreOptions(
            **{"degradation": "noisy", "seed": next(seeds), **options}
        ),
    )


def long_request(**fields: Any) -> restorer_pb2.RestoreRequest:
    asked = request(picture(240, 280), steps=LONG)
    asked.MergeFrom(restorer_pb2.RestoreRequest(**fields))
    return asked


def refused(call: Callable[..., Any], asked: Any, **how: Any) -> tuple[str, str, dict[str, Any]]:
    """Name of the status, the sentence and the details that the gateway would make of it."""
    with pytest.raises(grpc.RpcError) as caught:
        call(asked, **{"timeout": PATIENCE_S, **how})
    error = caught.value
    text = error.details()
    assert "Traceback" not in text and ".py" not in text, text
    status = from_details(text)
    assert status is not None, text
    details: dict[str, Any] = {}
    for one in status.details:
        for kind in (ErrorInfo, RequestInfo, RetryInfo):
            message = kind()
            if one.Unpack(message):
                details[kind.__name__] = message
    return error.code().name, status.message, details


def test_the_config_has_no_key_that_ray_does_not_know() -> None:
    from ray.serve.config import AutoscalingConfig
    from ray.serve.schema import (
        DeploymentSchema,
        LoggingConfig,
        ServeApplicationSchema,
        ServeDeploySchema,
        gRPCOptionsSchema,
    )

    shipped = yaml.safe_load(CONFIG.read_text("utf-8"))
    ServeDeploySchema.model_validate(shipped)
    (application,) = shipped["applications"]
    (deployment,) = application["deployments"]
    assert deployment["name"] == "restorer"
    for part, schema in (
        (shipped, ServeDeploySchema),
        (shipped["grpc_options"], gRPCOptionsSchema),
        (shipped["logging_config"], LoggingConfig),
        (application, ServeApplicationSchema),
        (deployment, DeploymentSchema),
        (deployment["autoscaling_config"], AutoscalingConfig),
    ):
        assert set(part) <= set(schema.model_fields)


@pytest.mark.parametrize(
    ("args", "said"), [({"samplr": "x:1"}, "samplr"), ({"workers": 0}, "workers")]
)
def test_wrong_settings_are_refused(args: dict[str, Any], said: str) -> None:
    from services.restorer.app import build

    with pytest.raises(OptionError, match=said):
        build(args)


def test_arguments_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLMIR_SAMPLER", "one:1")
    monkeypatch.setenv("VLMIR_EMBEDDER", "two:2")
    settings = ClusterSettings.model_validate({"sampler": "three:3"})
    assert (settings.sampler, settings.embedder) == ("three:3", "two:2")


def test_a_picture_comes_out_as_from_the_library(app: Application, library: Restorer) -> None:
    data = picture(96, 130)
    for options in (RestoreOptions(seed=1), RestoreOptions(seed=2, steps=3, degradation="hazy")):
        with RestorationClient(app.address) as client:
            restored = client.restore(data, options)
        expected = library.restore(data, options)
        levels = decode(restored.image_bytes).pixels, decode(expected.encode()).pixels
        difference = np.abs(levels[0] - levels[1]) * 255
        assert difference.max() <= 1.001
        assert (difference > 0.5).mean() < 0.001
        assert restored.report.caption == expected.report.caption
        assert restored.report.digests == expected.report.digests
        assert restored.report.degradation == expected.report.degradation
        assert restored.report.release == "small-1"
        assert restored.report.warnings == expected.report.warnings


def test_a_stream_tells_how_far_it_is(app: Application) -> None:
    asked = request(steps=3)
    replies = list(
        app.stub.RestoreStream(
            restorer_pb2.RestoreStreamRequest(
                image=asked.image, options=asked.options, previews=True
            ),
            timeout=PATIENCE_S,
        )
    )
    progress = [reply.progress for reply in replies[:-1]]
    assert [one.step for one in progress] == [1, 2, 3]
    assert progress[-1].share == 1
    assert all(decode(one.preview.data).width == 64 for one in progress)
    assert decode(replies[-1].result.image.data).height == 48


def test_a_trace_goes_through_all_hops(app: Application, collector: Collector) -> None:
    through = ["vlmir-gateway/Restore"] * 2 + ["vlmir-restorer/Restore"]
    asked = {
        "vlmir-captioner": ("Caption",),
        "vlmir-embedder": ("EmbedImage", "EmbedText"),
        "vlmir-sampler": ("Sample",),
    }
    wanted = {
        (*through, f"vlmir-restorer/{method}", f"{name}/{method}")
        for name, methods in asked.items()
        for method in methods
    }
    sent = (("traceparent", f"00-{TRACE}-{CALLER_SPAN}-01"),)
    with (
        process("services.gateway", "--upstream", app.address) as (_, address),
        grpc.insecure_channel(address) as channel,
    ):
        RestorerServiceStub(channel).Restore(request(), timeout=PATIENCE_S, metadata=sent)
        wait_until(lambda: collector.ways() == wanted, told=collector.ways)


def test_info_tells_what_is_served(app: Application) -> None:
    info = app.stub.Info(restorer_pb2.RestorerServiceInfoRequest(), timeout=PATIENCE_S)
    assert info.service.release == "small-1"
    assert set(info.service.digests) == {"captioner", "embedder", "sampler"}
    assert info.service.queue_capacity == WORKERS + QUEUE
    assert tuple(info.labels) == small_preset().labels
    assert "ddim" in info.solvers
    assert info.keeps_results
    assert not info.takes_uploads


def test_health_is_told_once_and_whenever_it_changes(app: Application) -> None:
    stub = health_pb2_grpc.HealthStub(app.channel)
    watch = stub.Watch(health_pb2.HealthCheckRequest(), timeout=PATIENCE_S)
    assert next(watch).status == SERVING
    watch.cancel()
    unknown = health_pb2.HealthCheckRequest(service="vlmir.v1.Nothing")
    reply = stub.Check(unknown, timeout=PATIENCE_S)
    assert reply.status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": image_pb2.ImageSource(data=b"no picture")}, "image"),
        ({"image": image_pb2.ImageSource(data=picture()[:-100])}, "truncated"),
        ({"image": image_pb2.ImageSource(data=png_header(40_000, 40_000))}, "40000×40000"),
        ({"image": image_pb2.ImageSource(data=png_header(0, 0))}, "png"),
        ({"image": image_pb2.ImageSource(data=b"%PDF-1.7 no picture" * 9)}, "image"),
        ({"image": image_pb2.ImageSource(uri="s3://elsewhere/key")}, "bucket"),
        ({"image": image_pb2.ImageSource(uri="s3://vlmir/../../etc/passwd")}, "s3://"),
        ({"options": restorer_pb2.RestoreOptions(solver="magic")}, "solver"),
        ({"options": restorer_pb2.RestoreOptions(steps=0)}, "steps"),
        ({"request_id": "no/slash"}, "request_id"),
        ({"image": image_pb2.ImageSource(data=picture(8, 30_000))}, ""),
    ],
)
def test_bad_input_is_refused_with_a_sentence(
    app: Application, change: dict[str, Any], said: str
) -> None:
    asked = request()
    for name, value in change.items():
        if isinstance(value, str):
            setattr(asked, name, value)
        else:
            getattr(asked, name).CopyFrom(value)
    if said:
        code, sentence, details = refused(app.stub.Restore, asked)
        assert code == "INVALID_ARGUMENT"
        assert said in sentence
        assert details["ErrorInfo"].domain == "vlmir"
    else:  # odd, but fine
        assert app.stub.Restore(asked, timeout=PATIENCE_S).result.report.width == 30_000


def test_no_more_pictures_are_taken_than_there_is_room_for(app: Application) -> None:
    running = [
        app.stub.Restore.future(long_request(), timeout=PATIENCE_S) for _ in range(WORKERS + QUEUE)
    ]
    app.cluster.wait_for_depth(WORKERS)
    code, sentence, details = refused(app.stub.Restore, request())
    assert code == "RESOURCE_EXHAUSTED"
    assert "try again" in sentence
    assert details["RetryInfo"].retry_delay.ToNanoseconds() > 0
    for call in running:
        call.cancel()
    app.cluster.wait_for_depth(0)
    app.stub.Restore(request(), timeout=PATIENCE_S)


@pytest.mark.parametrize("way", ["field", "metadata"])
def test_a_request_ends_when_its_time_is_over(app: Application, way: str) -> None:
    asked = long_request(**({"time_budget_ms": 400} if way == "field" else {}))
    how = {"metadata": [(TIME_BUDGET, "400")]} if way == "metadata" else {}
    began = time.monotonic()
    code, sentence, _ = refused(app.stub.Restore, asked, **how)
    assert code == "DEADLINE_EXCEEDED"
    assert "time" in sentence
    assert time.monotonic() - began < 3
    app.cluster.wait_for_depth(0)


def test_a_cancelled_call_frees_its_place_in_the_sampler(app: Application) -> None:
    before = app.cluster.sampled
    asked = long_request()
    unary = app.stub.Restore.future(asked, timeout=PATIENCE_S)
    app.cluster.wait_for_depth(1)
    unary.cancel()
    app.cluster.wait_for_depth(0)
    for _ in range(3):
        stream_is_cancelled(app)
    assert app.cluster.sampled == before


def stream_is_cancelled(app: Application) -> None:
    """A stream's end is heard of, also while replies come one after the other."""
    asked = long_request()
    stream = app.stub.RestoreStream(
        restorer_pb2.RestoreStreamRequest(image=asked.image, options=asked.options),
        timeout=PATIENCE_S,
    )
    assert next(stream).progress.share > 0
    time.sleep(0.2)
    stream.cancel()
    app.cluster.wait_for_depth(0)


def test_the_same_is_computed_once(app: Application, calls: ThreadPoolExecutor) -> None:
    before = app.cluster.sampled
    asked = request(picture(120, 160), steps=20)
    asked.request_id = "twice-1"
    other_id = restorer_pb2.RestoreRequest()
    other_id.CopyFrom(asked)
    other_id.request_id = "twice-2"
    running = [
        calls.submit(app.stub.Restore, one, timeout=PATIENCE_S) for one in (asked, asked, other_id)
    ]
    replies = [call.result().result for call in running]
    replies.append(app.stub.Restore(asked, timeout=PATIENCE_S).result)
    assert len({reply.image.data for reply in replies}) == 1
    assert app.cluster.sampled == before + 1
    asked.options.steps = 21
    code, sentence, _ = refused(app.stub.Restore, asked)
    assert (code, "another picture" in sentence) == ("INVALID_ARGUMENT", True)


def test_nobody_gets_the_results_of_anothers_request(app: Application) -> None:
    asked, anna = request(), [(CALLER, "anna")]
    asked.request_id = "hers"
    restored = app.stub.Restore(asked, timeout=PATIENCE_S, metadata=anna).result
    wanted = restorer_pb2.GetResultRequest(request_id="hers")
    assert app.stub.GetResult(wanted, timeout=PATIENCE_S, metadata=anna).result == restored
    for how in ({}, {"metadata": [(CALLER, "bert")]}):
        code, sentence, _ = refused(app.stub.GetResult, wanted, **how)
        assert (code, "'hers' is known" in sentence) == ("INVALID_ARGUMENT", True)


def test_a_killed_replica_loses_no_result_and_no_request(
    app: Application, calls: ThreadPoolExecutor
) -> None:
    asked = request(steps=2)
    asked.request_id = "outlives"
    restored = app.stub.Restore(asked, timeout=PATIENCE_S).result
    with RestorationClient(app.address, timeout_s=PATIENCE_S) as client:
        options = RestoreOptions(steps=40, degradation="noisy", seed=next(seeds))
        long = calls.submit(client.restore, picture(120, 160), options, request_id="long")
        app.cluster.wait_for_depth(1)
        wanted = restorer_pb2.GetResultRequest(request_id="long")
        assert app.stub.GetResult(wanted, timeout=PATIENCE_S).running
        app.kill_replica()
        assert long.result(PATIENCE_S).report.steps == 40
    before = app.cluster.sampled
    wanted = restorer_pb2.GetResultRequest(request_id="outlives")
    assert app.stub.GetResult(wanted, timeout=PATIENCE_S).result == restored
    assert app.stub.Restore(asked, timeout=PATIENCE_S).result == restored
    assert app.cluster.sampled == before
    wanted.store_result = True
    linked = app.stub.GetResult(wanted, timeout=PATIENCE_S).result.image
    assert Path(linked.uri.removeprefix("file://")).read_bytes() == restored.image.data
    never = restorer_pb2.GetResultRequest(request_id="never-sent")
    code, sentence, _ = refused(app.stub.GetResult, never)
    assert (code, "never-sent" in sentence) == ("INVALID_ARGUMENT", True)


def test_without_the_captioner_it_goes_on(app: Application) -> None:
    app.cluster.captioner.kill()
    try:
        report = app.stub.Restore(request(), timeout=PATIENCE_S).result.report
        assert report.caption == ""
        assert any("captioner" in warning for warning in report.warnings)
        assert not any("127.0.0.1" in warning for warning in report.warnings)
        assert app.health() == SERVING
    finally:
        app.cluster.captioner.restart()


def test_without_the_embedder_it_goes_on_if_allowed(app: Application) -> None:
    app.cluster.embedder.kill()
    try:
        report = app.stub.Restore(request(), timeout=PATIENCE_S).result.report
        assert not report.degradations
        assert any("embedder" in warning for warning in report.warnings)
    finally:
        app.cluster.embedder.restart()


def test_without_the_sampler_it_says_so_at_once(app: Application) -> None:
    lost = app.stub.Restore.future(long_request(), timeout=PATIENCE_S)
    app.cluster.wait_for_depth(1)
    app.cluster.sampler.kill()
    try:
        began = time.monotonic()
        error = lost.exception(timeout=PATIENCE_S)
        assert isinstance(error, grpc.RpcError)
        code, sentence, details = refused(app.stub.Restore, request())
        assert time.monotonic() - began < 3
        assert (error.code().name, code) == ("UNAVAILABLE", "UNAVAILABLE")
        assert "sampler" in sentence and "try again" in sentence
        assert details["ErrorInfo"].reason == "UnavailableError"
        app.wait_for_health(NOT_SERVING)
    finally:
        app.cluster.sampler.restart()
    app.wait_for_health(SERVING)
    assert app.stub.Restore(request(), timeout=PATIENCE_S).result.report.steps == 1
