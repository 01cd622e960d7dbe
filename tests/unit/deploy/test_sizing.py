"""The sizing model: its laws, its bottlenecks, and the table in the operator's book."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.sizing import HARDWARE, QUALITIES, Load, size
from deploy.sizing.__main__ import main, table
from deploy.sizing.costs import load_costs, networks
from deploy.sizing.model import evaluations
from services.common.settings import WeightsSettings
from services.common.store import StoreSettings

ROOT = Path(__file__).parents[3]
BOOK = ROOT / "deploy" / "OPERATIONS.md"
loads = st.builds(
    Load,
    images_per_s=st.floats(0.01, 1e5),
    megapixels=st.floats(0.01, 24),
    quality=st.sampled_from(QUALITIES),
    bundle=st.sampled_from(("tiny", "base")),
    hardware=st.sampled_from(HARDWARE),
    utilisation=st.floats(0.1, 1),
)


def with_(load: Load, **changes: Any) -> Load:
    return dataclasses.replace(load, **changes)


@settings(deadline=None, max_examples=50)
@given(loads, st.floats(1, 1000))
def test_needs_are_linear_in_the_load(load: Load, factor: float) -> None:
    one, many = size(load), size(with_(load, images_per_s=factor * load.images_per_s))
    for part, other in zip(one.parts, many.parts, strict=True):
        if part.name == "mlflow":  # it is asked by replicas, not by pictures
            continue
        for resource, need in part.needs.items():
            assert other.needs[resource] == pytest.approx(factor * need)
    assert many.inner_mb_per_s == pytest.approx(factor * one.inner_mb_per_s)
    assert many.stored_tb == pytest.approx(factor * one.stored_tb)


@settings(deadline=None, max_examples=50)
@given(loads)
def test_there_is_one_more_than_the_ceiling(load: Load) -> None:
    for part in size(load).parts:
        assert part.replicas == math.ceil(max(part.needs.values()) / load.utilisation) + 1
        assert part.replicas >= 2
        without_the_spare = max(part.needs.values()) / (part.replicas - 1)
        assert without_the_spare <= load.utilisation * (1 + 1e-9)


@settings(deadline=None, max_examples=50)
@given(loads, st.floats(1, 10), st.sampled_from(["images_per_s", "megapixels"]))
def test_more_never_takes_less(load: Load, factor: float, what: str) -> None:
    more = with_(load, **{what: min(factor * getattr(load, what), 1e6)})
    for part, other in zip(size(load).parts, size(more).parts, strict=True):
        # Of a larger picture, tiles may overlap a little less.
        assert other.replicas >= math.floor(0.98 * part.replicas), part.name


@settings(deadline=None, max_examples=50)
@given(loads)
def test_better_costs_more_and_busier_costs_less(load: Load) -> None:
    plain, ensemble = (
        size(with_(load, quality=quality))["sampler"] for quality in ("default", "ensemble")
    )
    assert ensemble.needs["computing"] == pytest.approx(4 * plain.needs["computing"])
    lazy, busy = size(with_(load, utilisation=0.1)), size(with_(load, utilisation=1.0))
    assert all(a.replicas >= b.replicas for a, b in zip(lazy.parts, busy.parts, strict=True))


@settings(deadline=None, max_examples=50)
@given(loads)
def test_the_bottleneck_is_what_is_full_first(load: Load) -> None:
    sized = size(load)
    at_the_limit = size(with_(load, images_per_s=load.images_per_s * sized.room))
    full = [
        part.name
        for part, there in zip(sized.parts, at_the_limit.parts, strict=True)
        if part.name != "mlflow" and there.needs[there.tightest] > part.replicas * (1 + 1e-9)
    ]
    assert not full
    if sized.bottleneck.name != "mlflow":
        name = sized.bottleneck.name
        assert at_the_limit[name].needs[at_the_limit[name].tightest] == pytest.approx(
            sized.bottleneck.replicas
        )


def test_known_bottlenecks_are_named() -> None:
    on_processors = size(Load(images_per_s=100))
    assert (on_processors.bottleneck.name, on_processors.bottleneck.tightest) == (
        "sampler",
        "computing",
    )
    # Where an evaluation costs almost nothing, the pixels do not come fast enough.
    fast = Load(images_per_s=10_000, hardware="h100", s_per_megapixel=1e-4)
    assert size(fast)["sampler"].tightest == "network"
    assert (
        size(Load(images_per_s=10_000, hardware="h100", bundle="base"))["sampler"].tightest
        == "computing"
    )
    assert size(Load(images_per_s=10_000))["minio"].tightest == "requests"
    assert size(Load(images_per_s=100, megapixels=12))["minio"].tightest == "network"
    assert any("PB" in wall for wall in size(Load(images_per_s=10_000)).walls)
    assert size(Load(images_per_s=10)).walls == ()
    assert any("Ray" in wall for wall in size(Load(images_per_s=20_000)).walls)


def test_big_arrays_go_by_the_store() -> None:
    """From 32 MiB on, of 12 bytes for each pixel."""
    small, big = (size(Load(images_per_s=1, megapixels=mp)) for mp in (2.7, 2.9))
    assert small.store_mb_per_s[1] == 0
    assert big.store_mb_per_s[1] == pytest.approx(2 * 12 * 2.9)
    assert big.store_puts_per_s == small.store_puts_per_s + 2


def test_your_own_cost_wins() -> None:
    load = Load(images_per_s=10, hardware="h100")
    own = size(with_(load, s_per_megapixel=0.2))
    assert own.measured and not size(load).measured
    six_windows = 10 * 0.2 * 6 * 480 * 432 / 1e6
    assert six_windows <= own["sampler"].needs["computing"] < 1.05 * six_windows
    assert own["captioner"] == size(load)["captioner"]


def test_only_what_was_measured_is_called_so() -> None:
    assert networks("tiny", "cpu").measured
    for bundle in ("tiny", "base"):
        for kind in HARDWARE[1:]:
            assert not networks(bundle, kind).measured
            assert "estimate" in table([kind])
    for group, source in load_costs().sources.items():
        assert source.startswith(("measured", "assumed", "estimated, never measured")), group


def test_figures_of_settings_are_theirs() -> None:
    costs = load_costs()
    assert costs.store["keep_days"] == StoreSettings.model_fields["results_days"].default
    assert costs.registry["poll_s"] == WeightsSettings.model_fields["poll_s"].default
    assert StoreSettings.model_fields["tensors_above"].default == 32 << 20
    assert [evaluations("tiny", quality) for quality in QUALITIES] == [1, 4, 20]
    assert [evaluations("base", quality) for quality in QUALITIES] == [8, 32, 20]


@pytest.mark.parametrize(
    "wrong",
    [
        {"images_per_s": 0},
        {"images_per_s": -1},
        {"megapixels": math.nan},
        {"utilisation": 1.1},
        {"s_per_megapixel": -2.0},
    ],
)
def test_a_load_that_is_none_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="positive"):
        Load(**{"images_per_s": 1.0, **wrong})


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--images-per-s", "10000", "--hardware", "h100"]) == 0
    said = capsys.readouterr().out
    assert "H100 (estimate)" in said and "PUT/s" in said and "full first" in said
    assert main(["--images-per-s", "10", "--hardware", "h100", "--ms-per-megapixel", "3"]) == 0
    assert "H100 (yours)" in capsys.readouterr().out
    assert main(["--images-per-s", "-1"]) == 2
    assert "positive" in capsys.readouterr().err
    assert main(["--sources"]) == 0
    assert "never measured" in capsys.readouterr().out


def test_the_table_of_the_book_is_what_the_command_prints() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "deploy.sizing"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == table() + "\n"
    between = re.search(
        r"<!-- sizing -->\n(.*)<!-- /sizing -->", BOOK.read_text("utf-8"), re.DOTALL
    )
    assert between and between[1] == done.stdout, "put the output of python -m deploy.sizing there"
