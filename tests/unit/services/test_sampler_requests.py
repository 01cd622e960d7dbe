"""Requests to tasks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from services.common.parcels import Parcels
from services.common.tensors import to_message
from services.sampler import requests
from services.sampler.budget import Budget
from services.sampler.job import Task
from services.sampler.requests import check_size
from tests.unit.services.sampler_tools import Watched, picture
from vlmir.errors import InputError, LimitError, OptionError
from vlmir.image import Limits
from vlmir.sampling import CALL_PIXELS, DiffusionSampler, Plan
from vlmir.v1 import image_pb2, sampler_pb2

WIDTH = 32
"""Of the small preset's embeddings."""


@pytest.fixture(scope="module")
def sampler(small_bundle_folder: Path) -> DiffusionSampler:
    return Watched(small_bundle_folder).sampler


def request(pixels: Any = None, **options: Any) -> sampler_pb2.SampleRequest:
    return sampler_pb2.SampleRequest(
        pixels=to_message(picture() if pixels is None else pixels),
        options=sampler_pb2.SampleOptions(**options),
    )


def task_of(
    asked: sampler_pb2.SampleRequest, sampler: DiffusionSampler, memory: int | None = None
) -> Task:
    budget = Budget(host=memory, network=memory, apart=False, call_pixels=CALL_PIXELS)
    return requests.task_of(asked, sampler, max_window=40 * 160, budget=budget, parcels=Parcels())


def conditioned(**given: Any) -> sampler_pb2.SampleRequest:
    asked = request()
    for name, values in given.items():
        getattr(asked.conditions, name).CopyFrom(to_message(np.asarray(values, np.float32)))
    return asked


def test_pixels_are_only_looked_at(sampler: DiffusionSampler) -> None:
    made = task_of(request(), sampler)
    assert np.array_equal(made.pixels, picture())
    assert not made.pixels.flags.owndata
    assert made.conditions == (None, None, None)


def test_what_is_not_chosen_is_the_presets(sampler: DiffusionSampler) -> None:
    default = task_of(request(), sampler)
    assert default.plan == Plan(steps=1, solver="dpmpp_2m_sde", realism=0.0, tile=None)
    assert default.seed == 0
    chosen = {"steps": 7, "solver": "ddim", "realism": 0.1, "tile": 0, "ensemble": True}
    made = task_of(request(seed=5, **chosen), sampler)
    assert (made.seed, made.plan) == (5, Plan(**chosen))
    assert task_of(request(realism=0.5), sampler).plan.steps == 20
    assert task_of(request(steps=2), sampler).plan.realism == 1


def test_conditions_come_through_one_by_one(sampler: DiffusionSampler) -> None:
    values = np.linspace(-1, 1, WIDTH, dtype=np.float32)
    text, image, degradation = task_of(
        conditioned(text=values, degradation=-values), sampler
    ).conditions
    assert image is None and text is not None and degradation is not None
    assert torch.equal(text, torch.from_numpy(values)) and torch.equal(degradation, -text)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"steps": 0}, "steps must be at least 1, not 0"),
        ({"steps": 101}, "steps must be at most 100, not 101"),
        ({"solver": "magic"}, "Unknown solver 'magic'; choose from euler"),
        ({"realism": 1.5}, "realism must be 0…1, not 1.5"),
        ({"realism": float("nan")}, "realism must be 0…1, not nan"),
        ({"seed": -1}, "seed must be 0…2⁶³−1"),
        ({"tile": 64}, "tile must be 0"),
    ],
)
def test_impossible_options_are_refused(
    sampler: DiffusionSampler, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(OptionError, match=said):
        task_of(request(**options), sampler)


@pytest.mark.parametrize("wrong", [-0.01, 1.01, float("nan"), float("inf")])
def test_pixels_must_be_numbers_from_0_to_1(sampler: DiffusionSampler, wrong: float) -> None:
    pixels = picture().copy()
    pixels[1, 2, 3] = wrong
    with pytest.raises(InputError, match="pixels must be numbers 0…1"):
        task_of(request(pixels), sampler)


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 8, 8), np.float32), np.zeros((3, 8, 8), np.uint8), np.zeros((8, 3), np.float32)],
)
def test_pixels_must_be_three_planes_of_floats(sampler: DiffusionSampler, wrong: Any) -> None:
    with pytest.raises(InputError, match="pixels"):
        task_of(request(wrong), sampler)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": np.zeros(WIDTH + 1)}, "conditions.text must have the shape 32, not 33"),
        ({"image": np.zeros((1, WIDTH))}, "conditions.image must have the shape 32, not 1×32"),
        (
            {"degradation": np.full(WIDTH, np.nan)},
            "conditions.degradation holds values that are no",
        ),
    ],
)
def test_conditions_must_fit(sampler: DiffusionSampler, given: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        task_of(conditioned(**given), sampler)


def test_a_tile_for_which_all_would_wait_is_refused(sampler: DiffusionSampler) -> None:
    wide = picture(40, 200)
    task_of(request(wide), sampler)
    with pytest.raises(OptionError, match=r"Tiles of 200 × 40 pixels are too big here; .* most 80"):
        task_of(request(wide, tile=0), sampler)


def test_the_size_is_read_without_reading_the_pixels() -> None:
    limits = Limits(max_pixels=100)
    assert check_size(image_pb2.Tensor(shape=[3, 10, 10]), limits) == 100
    assert check_size(image_pb2.Tensor(), limits) == 0
    with pytest.raises(
        LimitError, match=r"110 pixels .11 × 10.; at most 100 are taken\. Scale it down"
    ):
        check_size(image_pb2.Tensor(shape=[3, 10, 11]), limits)


def test_what_fits_no_memory_is_refused_with_numbers(sampler: DiffusionSampler) -> None:
    with pytest.raises(LimitError, match=r"56×40 pixels needs \d+ MiB, and 8 MiB are free"):
        task_of(request(), sampler, 8 * 2**20)
    assert task_of(request(), sampler, 300 * 2**20).plan.call_pixels < CALL_PIXELS
