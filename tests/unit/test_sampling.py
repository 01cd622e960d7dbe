"""The sampler: batches, tiles, seeds, realism, cancellation."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.adapters import with_adapter
from vlmir.bundle import load_bundle
from vlmir.errors import OptionError, VlmirError
from vlmir.parts import build_sampler, build_unet
from vlmir.sampling import Conditions, DiffusionSampler, Plan

NOTHING = Conditions(None, None, None)


@pytest.fixture(scope="module")
def sampler(small_bundle_folder: Path) -> DiffusionSampler:
    bundle = load_bundle(small_bundle_folder)
    return DiffusionSampler(build_unet(bundle), bundle.preset.sampler)


def plan(**changes: object) -> Plan:
    chosen = {"steps": 6, "solver": "posterior", "realism": 1.0, "tile": 0} | changes
    return Plan(**chosen)  # type: ignore[arg-type]


def run(sampler: DiffusionSampler, pictures, conditions, seeds, chosen: Plan):  # type: ignore[no-untyped-def]
    generator = sampler.sample(pictures, conditions, seeds, chosen)
    steps = []
    while True:
        try:
            steps.append(next(generator))
        except StopIteration as end:
            whole = [step.step for step in steps if step.x0 is not None]
            assert whole == list(range(1, chosen.evaluations + 1))
            assert steps[-1].share == 1
            return end.value


def pictures(count: int, height: int = 40, width: int = 56) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.random((height, width, 3), np.float32) for _ in range(count)]


@pytest.mark.parametrize("solver", ["posterior", "ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_alone_or_in_a_batch_of_four_the_pixels_are_the_same(
    sampler: DiffusionSampler, solver: str
) -> None:
    lq = pictures(4)
    f = torch.randn(4, 32, generator=torch.Generator().manual_seed(0))
    conditions = [Conditions(f[0], f[1], f[2]), NOTHING, Conditions(None, f[3], f[0]), NOTHING]
    chosen = plan(solver=solver)
    together = run(sampler, lq, conditions, [5, 6, 7, 8], chosen)
    for i in range(4):
        alone = run(sampler, [lq[i]], [conditions[i]], [5 + i], chosen)[0]
        assert np.abs(alone - together[i]).max() < 1e-4


def test_in_one_batch_each_damage_has_its_own_network(
    small_bundle_folder: Path, tmp_path: Path
) -> None:
    sampler = build_sampler(with_adapter(small_bundle_folder, tmp_path / "b", label="noisy"))
    (noisy,) = sampler.adapted
    lq, chosen = pictures(3), plan(realism=0.0)
    conditions = [
        Conditions(None, None, f_D) for f_D in (None, noisy.damage.f_D, -noisy.damage.f_D)
    ]
    together = run(sampler, lq, conditions, [1, 2, 3], chosen)
    for i in range(3):
        alone = run(sampler, [lq[i]], [conditions[i]], [1 + i], chosen)[0]
        assert np.abs(alone - together[i]).max() < 1e-4
    plain = DiffusionSampler(sampler.unet, sampler.config)
    without = run(plain, lq, conditions, [1, 2, 3], chosen)
    assert [np.array_equal(a, b) for a, b in zip(together, without, strict=True)][::2] == [True] * 2
    inside = (without[1] > 0) & (together[1] < 1)
    assert np.allclose((together[1] - without[1])[inside], 0.1, atol=1e-4)


def test_the_seed_decides(sampler: DiffusionSampler) -> None:
    lq = pictures(1)
    first, again, other = (run(sampler, lq, [NOTHING], [seed], plan())[0] for seed in (1, 1, 2))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_tiles_agree_with_the_whole(sampler: DiffusionSampler) -> None:
    lq = pictures(1, 240, 270)
    whole, tiled = (run(sampler, lq, [NOTHING], [3], plan(tile=tile))[0] for tile in (0, 160))
    assert len(sampler.tile_plan(240, 270, 160).windows) >= 4
    assert -10 * np.log10(np.mean((whole - tiled) ** 2)) > 45


def test_progress_is_told_after_each_window(sampler: DiffusionSampler) -> None:
    windows = len(sampler.tile_plan(240, 270, 160).windows)
    chosen = plan(steps=2, tile=160)
    steps = list(sampler.sample(pictures(1, 240, 270), [NOTHING], [3], chosen))
    assert [s.step for s in steps] == [0] * (windows - 1) + [1] * windows + [2]
    assert [s.share for s in steps] == pytest.approx(
        [n / (2 * windows) for n in range(1, 2 * windows + 1)]
    )
    assert [n for n, s in enumerate(steps, 1) if s.x0 is not None] == [windows, 2 * windows]


def test_closing_between_windows_stops_the_network(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    forward = sampler.unet.forward
    monkeypatch.setattr(sampler.unet, "forward", lambda *a: calls.append(1) or forward(*a))
    run = sampler.sample(pictures(1, 240, 270), [NOTHING], [3], plan(steps=1, tile=160))
    next(run)
    run.close()
    assert len(calls) == 1


def test_realism_is_a_line_from_the_mean_to_a_sample(sampler: DiffusionSampler) -> None:
    lq = pictures(1)
    mean, half, sample = (
        run(sampler, lq, [NOTHING], [1], plan(realism=realism))[0] for realism in (0, 0.5, 1)
    )
    assert [plan(realism=r).evaluations for r in (0, 0.5, 1)] == [1, 6, 6]
    inside = (half > 0) & (half < 1) & (mean > 0) & (mean < 1) & (sample > 0) & (sample < 1)
    assert np.abs(half - (mean + sample) / 2)[inside].max() < 1e-5


@pytest.mark.parametrize("axis", [0, 1])
def test_an_ensemble_turns_a_mirrored_picture_into_the_mirrored_result(
    sampler: DiffusionSampler, axis: int
) -> None:
    lq = pictures(1, 40, 64)[
        0
    ]  # multiples of the network's: padding at one side is no mirror image

    def off(ensemble: bool) -> float:
        chosen = plan(realism=0, ensemble=ensemble)
        straight, mirrored = (
            run(sampler, [picture], [NOTHING], [1], chosen)[0]
            for picture in (lq, np.flip(lq, axis).copy())
        )
        return float(np.abs(straight - np.flip(mirrored, axis)).max())

    assert off(ensemble=True) < 1e-5 < off(ensemble=False)


@pytest.mark.parametrize("realism", [0.0, 1.0])
def test_wide_damage_is_judged_at_half_the_size_too(
    sampler: DiffusionSampler, realism: float
) -> None:
    lq = pictures(1, 41, 56)
    wide = plan(realism=realism, steps=1, wide=True)
    fine, coarse = seen(sampler, lq, wide)
    assert np.array_equal(fine, seen(sampler, lq, plan(realism=0))[0])
    assert np.abs(coarse - seen(sampler, [half(lq[0])], plan(realism=0))[0]).max() < 1e-6
    difference = cv2.resize(coarse - half(fine), (56, 41), interpolation=cv2.INTER_LINEAR)
    assert np.abs(difference).max() > 0.01
    restored = run(sampler, lq, [NOTHING], [1], wide)[0]
    assert np.abs(restored - np.clip(fine + difference / 2, 0, 1)).max() < 1e-4


def seen(sampler: DiffusionSampler, lq: list[np.ndarray], chosen: Plan) -> list[np.ndarray]:
    """What each evaluation of one picture finds, H×W×3, not clipped."""
    steps = sampler.sample(lq, [NOTHING], [1], chosen)
    found = [step.x0[0].permute(1, 2, 0).numpy().copy() for step in steps if step.x0 is not None]
    assert len(found) == chosen.evaluations
    return found


def half(picture: np.ndarray) -> np.ndarray:
    height, width = picture.shape[0] // 2, picture.shape[1] // 2
    whole = torch.from_numpy(picture).permute(2, 0, 1)
    return torch.nn.functional.adaptive_avg_pool2d(whole, (height, width)).permute(1, 2, 0).numpy()


def test_a_wide_look_is_a_quarter_of_the_work(sampler: DiffusionSampler) -> None:
    costs = [sampler.cost(256, 320, plan(realism=0, wide=wide)) for wide in (False, True)]
    assert costs[1] == 1.25 * costs[0]


def test_wide_damage_is_not_judged_upside_down(sampler: DiffusionSampler) -> None:
    lq = pictures(1, 40, 64)
    mirrored = [np.flip(lq[0], 1).copy()]
    alone = [seen(sampler, one, plan(realism=0))[0] for one in (lq, mirrored)]
    wide = plan(realism=0, ensemble=True, wide=True)
    fine, _ = seen(sampler, lq, wide)
    assert np.abs(fine - (alone[0] + np.flip(alone[1], 1)) / 2).max() < 1e-5
    assert sampler.cost(40, 64, wide) == 2 * sampler.cost(40, 64, plan(realism=0, wide=True))


def test_the_mean_needs_no_seed(sampler: DiffusionSampler) -> None:
    lq = pictures(1)
    first, other = (run(sampler, lq, [NOTHING], [seed], plan(realism=0))[0] for seed in (1, 2))
    assert np.array_equal(first, other)


def test_a_network_that_predicts_noise_is_shown_some(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[torch.Tensor] = []

    def record(x: torch.Tensor, mu: torch.Tensor, *rest: object) -> torch.Tensor:
        shown.append(x - mu)
        return torch.zeros_like(x)

    monkeypatch.setattr(sampler.unet, "forward", record)
    for prediction in ("x0", "noise"):
        config = dataclasses.replace(sampler.config, prediction=prediction)
        run(DiffusionSampler(sampler.unet, config), pictures(1), [NOTHING], [1], plan(realism=0))
    assert shown[0].abs().max() == 0
    assert shown[1].std() == pytest.approx(config.schedule.max_sigma, rel=0.05)


def times_asked(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch, chosen: Plan, **config: object
) -> list[int]:
    """The time indices at which the network is evaluated."""
    other = DiffusionSampler(sampler.unet, dataclasses.replace(sampler.config, **config))  # type: ignore[arg-type]
    asked: list[int] = []
    predict = other._predict
    monkeypatch.setattr(other, "_predict", lambda x, t, w: asked.append(t) or predict(x, t, w))
    run(other, pictures(1), [NOTHING], [0], chosen)
    return asked


def test_a_sample_ends_where_the_preset_says(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert times_asked(sampler, monkeypatch, plan(steps=5), last=20) == [100, 80, 60, 40, 20]
    assert times_asked(sampler, monkeypatch, plan(steps=5)) == [100, 80, 60, 40, 20]
    assert times_asked(sampler, monkeypatch, plan(steps=4), last=40) == [100, 80, 60, 40]
    every = times_asked(sampler, monkeypatch, plan(steps=100), last=40)
    assert every == list(range(100, 0, -1))
    assert times_asked(sampler, monkeypatch, plan(realism=0.0), last=40) == [100]
    ends = times_asked(sampler, monkeypatch, plan(steps=4, solver="euler_maruyama"), last=40)
    assert ends == [100, 75, 50, 25]


def test_one_step_of_a_network_that_predicts_noise_starts_where_some_picture_is_left(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    (only,) = times_asked(sampler, monkeypatch, plan(steps=1), prediction="noise")
    assert sampler.schedule.a(only) >= 0.05 > sampler.schedule.a(only + 1)
    for realism in (0.5, 1.0):
        few = plan(steps=4, realism=realism)
        assert times_asked(sampler, monkeypatch, few, prediction="noise") == [100, 75, 50, 25]
    whole = times_asked(sampler, monkeypatch, plan(steps=100, realism=0.5), prediction="noise")
    assert whole == list(range(100, 0, -1))


@pytest.mark.parametrize("solver", ["posterior", "ddim", "dpmpp_2m", "dpmpp_2m_sde"])
def test_the_mean_of_such_a_network_is_what_it_sees_where_half_of_the_picture_is_left(
    sampler: DiffusionSampler, monkeypatch: pytest.MonkeyPatch, solver: str
) -> None:
    chosen = plan(realism=0.0, steps=20, solver=solver, mean_states=4)
    first, *_, last = times = times_asked(sampler, monkeypatch, chosen, prediction="noise")
    assert len(times) == 4 and times == sorted(times, reverse=True) and first == 100
    assert sampler.schedule.a(last) >= 0.5 > sampler.schedule.a(last + 1)
    config = dataclasses.replace(sampler.config, prediction="noise")
    noisy, lq = DiffusionSampler(sampler.unet, config), pictures(1)
    steps = list(noisy.sample(lq, [NOTHING], [0], chosen))
    (restored,) = run(noisy, lq, [NOTHING], [0], chosen)
    assert steps[-1].x0 is not None and len(steps) == 4
    seen = steps[-1].x0[0].clamp(0, 1).permute(1, 2, 0).numpy()
    assert np.abs(restored - seen).max() < 1e-6


def test_an_ensemble_is_chosen_by_the_plan(sampler: DiffusionSampler) -> None:
    lq = pictures(1)
    alone, ensemble = (
        run(sampler, lq, [NOTHING], [1], plan(ensemble=chosen))[0] for chosen in (False, True)
    )
    assert np.abs(alone - ensemble).max() > 1e-4


@pytest.mark.parametrize("size", [(1, 1), (1, 70), (33, 2)])
def test_odd_sizes(sampler: DiffusionSampler, size: tuple[int, int]) -> None:
    chosen = plan(steps=2, tile=None, wide=True)
    restored = run(sampler, pictures(1, *size), [NOTHING], [0], chosen)[0]
    assert restored.shape == (*size, 3)


def test_bad_steps_and_solver(sampler: DiffusionSampler) -> None:
    for change in ({"steps": 101}, {"solver": "magic"}):
        with pytest.raises(OptionError):
            next(sampler.sample(pictures(1), [NOTHING], [0], plan(**change)))


def test_weights_gone_wrong_are_said_not_shown(sampler: DiffusionSampler) -> None:
    bias = sampler.unet.head.bias
    assert bias is not None
    with torch.no_grad():
        kept = bias.clone()
        bias.fill_(float("nan"))
    try:
        with pytest.raises(VlmirError, match="no numbers"):
            run(sampler, pictures(1), [NOTHING], [0], plan(steps=1))
    finally:
        with torch.no_grad():
            bias.copy_(kept)
