"""The whole cluster with nothing left out: a picture through it, two hundred at once, and each part's death."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from skimage.data import astronaut

from tests.integration.calls import metrics
from tests.integration.load import HEALTHY_S, PATIENCE_S, Answer, Load, Photo, ask, photo
from tests.integration.stack import Stack, running_stack
from tests.integration.triton import needs_triton
from tests.unit.services.s3 import needs_s3
from vlmir.client import RestorationClient
from vlmir.errors import OverloadedError, UnavailableError
from vlmir.image import Image, encode
from vlmir.options import RestoreOptions
from vlmir.pipeline import Restorer
from vlmir.v1 import restorer_pb2

pytestmark = [needs_triton, needs_s3, pytest.mark.timeout(600)]

CLIENTS, PICTURES = 16, 200
SIZES = [(96, 128), (64, 64), (248, 160), (160, 160)]
"""Of pictures; the last two are cut into tiles of one size."""
STEPS = 12
OPTIONS = RestoreOptions(seed=3, solver="ddim", realism=1, steps=STEPS)

WINDOWS, CALLS = (f'vlmir_{name}_total{{kind="window"}}' for name in ("batch_items", "batches"))
STEPS_DONE = "vlmir_steps_total"


@pytest.fixture(scope="module")
def stack(small_bundle_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with running_stack(small_bundle_folder, tmp_path_factory.mktemp("stack")) as running:
        yield running


@pytest.fixture(scope="module")
def library(small_bundle_folder: Path) -> Restorer:
    return Restorer.load(small_bundle_folder)


@pytest.fixture(scope="module")
def photos(library: Restorer) -> list[Photo]:
    """Mixed sizes; with shipped weights instead of small ones it would take two cores an hour."""
    libraries = {library.release: library}
    return [photo(number, size, OPTIONS, libraries) for number, size in enumerate(SIZES)]


def test_a_photo_goes_through_everything(stack: Stack, library: Restorer) -> None:
    levels = np.ascontiguousarray(astronaut()[40:136, 160:288])
    data = encode(Image.from_levels(levels), format="png")
    photo = Photo(data, OPTIONS, {library.release: library.restore(data, OPTIONS)})
    before = inferred(stack)
    with RestorationClient(stack.app.address, upload_above=0, timeout_s=PATIENCE_S) as client:
        assert client.info().takes_uploads
        answer = ask(client, photo)
    answer.check()
    assert kept(stack, answer) == answer.restored.image_bytes
    assert all(now > then for then, now in zip(before, inferred(stack), strict=True))


def inferred(stack: Stack) -> list[float]:
    """How often each of Triton's models was asked."""
    return [stack.triton.inferences(model) for model in ("clip_image", "clip_text")]


def test_big_arrays_go_by_way_of_the_store(stack: Stack, photos: list[Photo]) -> None:
    with RestorationClient(stack.app.address, timeout_s=PATIENCE_S) as client:
        sent = {}
        for photo in photos[1:3]:
            before = received_by_sampler(stack)
            answer = ask(client, photo)
            answer.check()
            sent[answer.restored.report.width] = received_by_sampler(stack) - before
    assert SIZES[1:3] == [(64, 64), (248, 160)]
    assert sent[64] > 12 * 64 * 64  # within the message
    assert sent[160] < 20_000


def received_by_sampler(stack: Stack) -> float:
    """Bytes of the messages that asked it for pictures."""
    counted = metrics(stack.app.cluster.sampler.metrics_port)
    named = {n: v for n, v in counted.items() if "request_bytes_sum" in n and '"Sample"' in n}
    return sum(named.values())  # none before the first


def kept(stack: Stack, answer: Answer) -> bytes:
    """The same answer, asked for again."""
    wanted = restorer_pb2.GetResultRequest(request_id=answer.request_id)
    return stack.app.stub.GetResult(wanted, timeout=PATIENCE_S).result.image.data


def test_two_hundred_pictures_of_sixteen_clients(
    stack: Stack,
    photos: list[Photo],
    capsys: pytest.CaptureFixture[str],
) -> None:
    ask_all(stack, photos, PICTURES // 2)  # memory that is kept for reuse is taken now
    sampler = stack.app.cluster.sampler.metrics_port
    memory, before = stack.memory(), metrics(sampler)
    answers, seconds = ask_all(stack, photos, PICTURES)
    after, grown = metrics(sampler), stack.memory() / memory - 1
    done = {name: after[name] - before[name] for name in (WINDOWS, CALLS, STEPS_DONE)}
    mean = done[WINDOWS] / done[CALLS]
    p50, p95 = np.percentile(seconds, (50, 95))
    with capsys.disabled():
        print(
            f"\n{PICTURES} pictures, {CLIENTS} clients: p50 {p50:.2f} s, p95 {p95:.2f} s, "
            f"mean batch {mean:.1f}, memory {grown:+.1%}"
        )
    assert len(answers) == PICTURES
    assert done[STEPS_DONE] == PICTURES * STEPS
    assert mean > 3
    assert grown <= 0.05
    for answer in answers:
        answer.check()


def ask_all(stack: Stack, photos: list[Photo], number: int) -> tuple[list[Answer], list[float]]:
    """Restore so many pictures from all clients at once; the answers, and the seconds each took."""

    def client(first: int) -> list[tuple[Answer, float]]:
        told = []
        with RestorationClient(stack.app.address, timeout_s=PATIENCE_S) as connection:
            for one in range(first, number, CLIENTS):
                began = time.monotonic()
                answer = ask(connection, photos[one % len(photos)])
                told.append((answer, time.monotonic() - began))
        return told

    with ThreadPoolExecutor(CLIENTS) as pool:
        told = list(itertools.chain(*pool.map(client, range(CLIENTS))))
    return [answer for answer, _ in told], [seconds for _, seconds in told]


FAULTS: dict[str, Callable[[Stack], None]] = {
    "captioner": lambda stack: stack.app.cluster.captioner.kill(),
    "embedder": lambda stack: stack.app.cluster.embedder.kill(),
    "sampler": lambda stack: stack.app.cluster.sampler.kill(),
    "replica": lambda stack: stack.app.kill_replica(),
    "triton's models": lambda stack: stack.triton.kill_models(),
    "store": lambda stack: stack.restart_s3(),
}


@pytest.mark.parametrize("part", FAULTS)
def test_a_part_dies_under_load(stack: Stack, photos: list[Photo], part: str) -> None:
    load = Load(stack.app.address, accepted=(UnavailableError, OverloadedError))
    with load.on(photos[:4]):
        load.wait_for_whole(8)
        FAULTS[part](stack)
        began = time.monotonic()
        load.wait_for_whole(8, after=began)
        took = time.monotonic() - began
    assert took < HEALTHY_S, load.ends
    for answer in load.answers:
        answer.check()
        assert kept(stack, answer) == answer.restored.image_bytes
