"""The sampler as a process of its own, called over real connections."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import numpy.typing as npt
import pytest
import torch
from google.rpc.error_details_pb2 import RetryInfo
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from services.common.tensors import from_message, to_message
from vlmir.bundle import load_bundle
from vlmir.client.failures import translated
from vlmir.compute import Compute
from vlmir.degradations import LABELS
from vlmir.errors import ReleaseError
from vlmir.image import decode
from vlmir.parts import build_unet
from vlmir.sampling import Conditions, DiffusionSampler, Plan, finish
from vlmir.v1 import image_pb2, sampler_pb2
from vlmir.v1.sampler_pb2_grpc import SamplerServiceStub

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "-m", "services.sampler", "--port", "0"]
LIMITS = ["--workers", "4", "--queue", "2", "--max-pixels", "70000"]
SERVICE = "vlmir.v1.SamplerService"
PATIENCE_S = 30.0


def start(*flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True, env={**os.environ}
    )


def address_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("serving small-1 on 127.0.0.1:"), line
    return line.split()[-1]


@pytest.fixture(scope="module")
def address(small_bundle_folder: Path) -> Iterator[str]:
    with start("--bundle", str(small_bundle_folder), *LIMITS) as process:
        try:
            yield address_of(process)
        finally:
            process.kill()


@pytest.fixture(scope="module")
def stub(address: str) -> Iterator[SamplerServiceStub]:
    with grpc.insecure_channel(address) as channel:
        yield SamplerServiceStub(channel)


@pytest.fixture(scope="module")
def library(small_bundle_folder: Path) -> DiffusionSampler:
    bundle = load_bundle(small_bundle_folder)
    return DiffusionSampler(build_unet(bundle, Compute.choose()), bundle.preset.sampler)


def picture(height: int = 40, width: int = 56, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).random((3, height, width), np.float32)


def request(
    pixels: npt.NDArray[np.float32] | None = None, **options: Any
) -> sampler_pb2.SampleRequest:
    return sampler_pb2.SampleRequest(
        pixels=to_message(picture() if pixels is None else pixels),
        options=sampler_pb2.SampleOptions(**options),
    )


def endless() -> sampler_pb2.SampleRequest:
    return request(picture(240, 280), steps=100)


def result_of(replies: Any) -> sampler_pb2.SampleResult:
    *_, last = replies
    assert last.WhichOneof("event") == "result"
    return last.result


def refused(stub: SamplerServiceStub, asked: sampler_pb2.SampleRequest, **options: Any) -> Any:
    with pytest.raises(grpc.RpcError) as caught:
        result_of(stub.Sample(asked, timeout=PATIENCE_S, **options))
    return caught.value


def wait_until_idle(stub: SamplerServiceStub) -> None:
    end = time.monotonic() + PATIENCE_S
    while stub.Info(sampler_pb2.SamplerServiceInfoRequest()).service.queue_depth:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_side_by_side_each_result_is_the_librarys(
    stub: SamplerServiceStub, library: DiffusionSampler
) -> None:
    f = torch.randn(3, 32, generator=torch.Generator().manual_seed(0))
    wanted = [
        (picture(seed=1), Plan(steps=5, solver="posterior", realism=1.0, tile=None)),
        (picture(seed=2), Plan(steps=8, solver="ddim", realism=0.5, tile=None)),
        (picture(32, 24, 3), Plan(steps=1, solver="ddim", realism=0.0, tile=None, ensemble=True)),
        (picture(200, 180, 4), Plan(steps=2, solver="dpmpp_2m", realism=1.0, tile=128)),
        (picture(seed=5), Plan(steps=6, solver="posterior", realism=1.0, tile=0)),
    ]

    def serve(number: int) -> sampler_pb2.SampleResult:
        pixels, plan = wanted[number]
        known = sampler_pb2.SampleOptions.DESCRIPTOR.fields_by_name
        options = {
            name: value for name, value in vars(plan).items() if name in known and value is not None
        }
        asked = request(pixels, seed=number, **options)
        for name, values in zip(("text", "image", "degradation"), f.numpy(), strict=True):
            getattr(asked.conditions, name).CopyFrom(to_message(values))
        return result_of(stub.Sample(asked, timeout=PATIENCE_S))

    with ThreadPoolExecutor(len(wanted)) as pool:
        served = list(pool.map(serve, range(len(wanted))))
    for number, ((pixels, plan), result) in enumerate(zip(wanted, served, strict=True)):
        interleaved = np.ascontiguousarray(pixels.transpose(1, 2, 0))
        run = library.sample([interleaved], [Conditions(*f)], [number], plan)
        got = from_message(result.pixels)
        assert np.abs(got - finish(run)[0].transpose(2, 0, 1)).max() < 1e-4
        assert (result.release, result.solver) == ("small-1", plan.solver)
        assert result.steps == plan.evaluations
        assert set(result.milliseconds) == {"wait", "sample"}
    assert [(result.tiles > 1, result.tile_size > 0) for result in served] == [
        (number == 3, number == 3) for number in range(5)
    ]


def test_progress_and_previews_come_first(stub: SamplerServiceStub) -> None:
    asked = request(steps=4)
    asked.previews = True
    *told, last = stub.Sample(asked, timeout=PATIENCE_S)
    assert last.WhichOneof("event") == "result"
    assert [(reply.progress.step, reply.progress.steps) for reply in told] == [
        (n, 4) for n in range(1, 5)
    ]
    assert [reply.progress.share for reply in told] == [0.25, 0.5, 0.75, 1]
    assert all(decode(reply.progress.preview.data).width == 56 for reply in told)
    asked.previews = False
    *told, _ = stub.Sample(asked, timeout=PATIENCE_S)
    assert not any(reply.progress.HasField("preview") for reply in told)


def test_info(stub: SamplerServiceStub, library: DiffusionSampler) -> None:
    info = stub.Info(sampler_pb2.SamplerServiceInfoRequest())
    service = info.service
    assert service.release == info.embedder_release == info.captioner_release == "small-1"
    assert set(service.digests) == {"captioner", "embedder", "sampler"}
    assert (service.device, service.queue_capacity) == (str(Compute.choose("cpu")), 6)
    assert service.limits.max_image_pixels == 70_000
    assert tuple(info.solvers) == library.solvers
    assert (info.default_solver, info.default_steps) == ("dpmpp_2m_sde", 1)
    assert (info.most_steps, info.reads_captions) == (library.most_steps, True)
    assert (info.tile, info.overlap, info.align) == (160, 96, library.unet.multiple)
    assert tuple(info.labels) == LABELS


def test_info_of_a_release_by_name(stub: SamplerServiceStub) -> None:
    named = stub.Info(sampler_pb2.SamplerServiceInfoRequest(release="small-1"))
    assert named == stub.Info(sampler_pb2.SamplerServiceInfoRequest())
    with pytest.raises(grpc.RpcError) as refused:
        stub.Info(sampler_pb2.SamplerServiceInfoRequest(release="small-0"))
    assert refused.value.code() is grpc.StatusCode.UNAVAILABLE
    assert isinstance(translated(refused.value, "x"), ReleaseError)


def test_health_and_reflection(address: str) -> None:
    with grpc.insecure_channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        reply = check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (sampler_pb2.SampleRequest(), "pixels has no content"),
        (request(picture()[:2]), "pixels must have the shape 3×any×any"),
        (request(picture() + 1), "pixels must be numbers 0…1"),
        (request(picture(280, 260)), "at most 70000 are taken"),
        (request(solver="magic"), "Unknown solver 'magic'"),
        (request(steps=101), "steps must be at most 100"),
        (
            sampler_pb2.SampleRequest(
                pixels=image_pb2.Tensor(
                    dtype=image_pb2.DATA_TYPE_FLOAT32, shape=[3, 2**31, 2**31], data=b"0000"
                )
            ),
            "at most 70000 are taken",
        ),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(
    stub: SamplerServiceStub, asked: sampler_pb2.SampleRequest, said: str
) -> None:
    error = refused(stub, asked)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert said in error.details()


def test_another_release_is_not_to_be_had(stub: SamplerServiceStub) -> None:
    asked = request()
    asked.release = "small-2"
    error = refused(stub, asked)
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert "'small-2'" in error.details() and "'small-1'" in error.details()
    asked.release = "small-1"
    assert result_of(stub.Sample(asked, timeout=PATIENCE_S)).release == "small-1"


def test_the_time_budget_ends_the_work(stub: SamplerServiceStub) -> None:
    asked = endless()
    asked.time_budget_ms = 100
    error = refused(stub, asked)
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert "fewer steps" in error.details()
    wait_until_idle(stub)


def test_one_too_many_is_refused_and_who_cancels_makes_room(stub: SamplerServiceStub) -> None:
    wait_until_idle(stub)
    # Together they have four times --max-pixels, or nearly so: there is no room for one more.
    calls = [stub.Sample(endless(), timeout=PATIENCE_S) for _ in range(4)]
    info = sampler_pb2.SamplerServiceInfoRequest()
    while stub.Info(info).service.queue_depth < 4:
        time.sleep(0.01)
    error = refused(stub, endless())
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    retry = RetryInfo()
    status = rpc_status.from_call(error)
    assert status is not None
    assert any(detail.Unpack(retry) for detail in status.details)
    assert retry.retry_delay.ToNanoseconds() > 0
    for call in calls:
        call.cancel()
    wait_until_idle(stub)
    result_of(stub.Sample(request(), timeout=PATIENCE_S))


def test_it_drains_on_sigterm(small_bundle_folder: Path) -> None:
    with start("--bundle", str(small_bundle_folder)) as process:
        try:
            with grpc.insecure_channel(address_of(process)) as channel:
                call = SamplerServiceStub(channel).Sample(
                    request(picture(160, 160), steps=15), timeout=PATIENCE_S
                )
                next(call)
                process.send_signal(signal.SIGTERM)
                assert from_message(result_of(call).pixels).shape == (3, 160, 160)
            assert process.wait(timeout=PATIENCE_S) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("flags", "status", "said"),
    [
        (["--batch-pixels", "0"], 2, "error: batch_pixels: "),
        (["--bundle", "/no/such/folder"], 1, "error: No bundle at '/no/such/folder'"),
    ],
)
def test_what_keeps_it_from_serving_is_told_in_one_line(
    flags: list[str], status: int, said: str
) -> None:
    done = subprocess.run(
        [*COMMAND, *flags], cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert done.returncode == status
    last = done.stderr.splitlines()[-1]
    assert last.startswith(said) and "Traceback" not in done.stderr
