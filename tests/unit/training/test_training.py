"""What stage 2 trains on: the pool, the crops, their conditions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.small import small_preset
from tests.unit.training.pictures import scene, write_captioned
from training.cache import fingerprint
from training.config import Phase, load_config
from training.data.conditions import PoolConditions, no_conditions
from training.data.crops import CropLoader
from training.data.pool import Pool, build_pool, read_pairs, transplant
from training.data.views import DamageData, prepare_damage
from training.engine.checkpoints import Checkpoints
from training.engine.compute import Compute
from training.engine.loop import Run, fit
from training.export import export
from training.stage2 import SamplerTask
from vlmir.degradations import LABELS
from vlmir.errors import OptionError
from vlmir.nn import UNet

PRESET = small_preset()
STAGE2 = load_config("tiny", ["stage2.size=32", "stage2.loop.batch=2", "stage2.phases=[]"]).stage2
T = PRESET.sampler.schedule.T


def loader_of(
    pool: Pool, conditions: PoolConditions | None = None, *, blind: bool = False, **changes: object
) -> CropLoader:
    config = replace(STAGE2, **changes)
    conditions = conditions or no_conditions(pool, PRESET)
    return CropLoader(pool, conditions, LABELS, config, T=T, blind=blind)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    gt = scene(9)
    lq = np.clip(gt.astype(np.int16) + 40, 0, 255).astype(np.uint8)
    folder = tmp_path_factory.mktemp("pool")
    return build_pool(folder, [scene(i) for i in range(2)], [("rainy", lq, gt)])


@pytest.mark.parametrize("limit", [5, 20, 40])
def test_part_of_a_pool_knows_its_real_pairs(pool: Pool, limit: int) -> None:
    part = Pool(pool.folder, limit=limit)
    assert len(part) == limit
    assert [part.is_real(e) for e in part.entries] == [e.photo == 2 for e in part.entries]


def test_another_seed_damages_other_pictures_for_the_first_phase(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for size in ("DAMAGE_PER_LABEL", "DAMAGE_CAPTIONED"):
        monkeypatch.setattr(f"training.data.views.{size}", 2)
    write_captioned(tmp_path / "captioned", 8)

    def made(seed: int) -> DamageData:
        return prepare_damage(small_preset(), pool, tmp_path / "captioned", tmp_path, seed=seed)

    first, other = made(0), made(1)
    assert torch.equal(first.labels, other.labels)
    assert first.views.shape == other.views.shape and not torch.equal(first.views, other.views)
    monkeypatch.setattr("training.data.views.degrade_bytes", lambda *_: pytest.fail("made anew"))
    assert torch.equal(made(0).views, first.views) and torch.equal(made(1).views, other.views)


def test_pool_has_every_label_and_the_pair(pool: Pool) -> None:
    assert {entry.label for entry in pool.entries} == set(LABELS)
    pairs = [i for i, entry in enumerate(pool.entries) if entry.photo == 2]
    assert pairs and np.array_equal(pool.gt(pairs[0]), scene(9))
    clean = next(i for i, entry in enumerate(pool.entries) if entry.label == "clean")
    assert np.array_equal(pool.lq(clean), pool.gt(clean))


def test_pairs_of_one_scene_are_held_out_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.pool.HELD_OUT", 3)
    hazy = [("hazy", scene(i), scene(9)) for i in (5, 6)]
    rainy = ("rainy", np.clip(scene(8) + np.int16(90), 0, 255).astype(np.uint8), scene(8))
    pool = build_pool(tmp_path, [scene(0), scene(1)], [*hazy, rainy])
    real = {e.label: e.photo for e in pool.entries if pool.is_real(e)}
    assert real == {"hazy": 2, "rainy": 3}
    assert {pool.entries[i].photo for i in pool.held_out} == {2}
    hazes = {e.lq for e in pool.entries if e.label == "hazy" and pool.is_real(e)}
    assert len(hazes) == 16  # two pairs, each in eight hazes


def test_streaks_of_held_out_pairs_fall_on_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.data.pool.HELD_OUT", 2)
    pair = ("rainy", np.clip(scene(8) + np.int16(90), 0, 255).astype(np.uint8), scene(8))
    pool = build_pool(tmp_path, [scene(0)], [pair])
    synthetic = [e for e in pool.entries if e.label == "rainy" and not pool.is_real(e)]
    assert synthetic and all(entry.strength for entry in synthetic)


def test_a_pool_is_built_once_and_the_same(pool: Pool, tmp_path: Path) -> None:
    gt = scene(9)
    lq = np.clip(gt.astype(np.int16) + 40, 0, 255).astype(np.uint8)
    photos, pairs = [scene(i) for i in range(2)], [("rainy", lq, gt)]
    assert len(build_pool(pool.folder, photos, pairs)) == len(pool)
    again = build_pool(tmp_path / "again", photos, pairs)
    assert all(np.array_equal(again.lq(i), pool.lq(i)) for i in range(len(pool)))


def test_a_pool_of_other_pictures_is_not_taken_for_this_one(pool: Pool) -> None:
    with pytest.raises(ValueError, match="delete it or name another"):
        build_pool(pool.folder, [scene(3)], [])


def test_pictures_smaller_than_the_crops_are_left_out(tmp_path: Path) -> None:
    pool = build_pool(tmp_path, [scene(0, 72, 96), scene(1, 40, 60)], [])
    crops = loader_of(pool, size=32, phases=(Phase(begin=9, size=64, batch=1),))(0, 64, range(8))
    assert crops.lq.shape == (8, 3, 64, 64)
    with pytest.raises(ValueError, match="pictures of 80×80 or more"):
        loader_of(pool, size=80)


def test_a_preset_of_fewer_labels_is_trained_on_those(pool: Pool) -> None:
    fewer = tuple(label for label in LABELS if label != "clean")
    mix = {label: 1.0 for label in fewer}
    config = replace(STAGE2, mix=mix)
    conditions = no_conditions(pool, replace(PRESET, labels=fewer))
    loader = CropLoader(pool, conditions, fewer, config, T=T)
    crops = loader(0, 32, range(40))
    assert not (crops.lq == crops.gt).flatten(1).all(1).any()


@pytest.mark.parametrize("names", [("lq", "gt"), ("LQ", "GT")])
def test_pairs_are_read_by_name(tmp_path: Path, names: tuple[str, str]) -> None:
    for side, number in zip(names, (1, 2), strict=True):
        (tmp_path / "rainy" / side).mkdir(parents=True)
        suffix = "jpg" if side.lower() == "lq" else "png"
        cv2.imwrite(str(tmp_path / "rainy" / side / f"a.{suffix}"), scene(number))
    ((label, lq, gt),) = read_pairs(tmp_path)
    assert label == "rainy" and lq.shape == gt.shape
    assert np.array_equal(gt[..., ::-1], scene(2))
    (tmp_path / "rainy" / names[1] / "a.png").rename(tmp_path / "rainy" / names[1] / "b.png")
    with pytest.raises(FileNotFoundError, match="same name"):
        list(read_pairs(tmp_path))
    (tmp_path / "rainy" / names[1]).rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="GT"):
        list(read_pairs(tmp_path))


def test_fingerprints_tell_inputs_apart() -> None:
    torch.manual_seed(0)
    picture, linear = scene(0), torch.nn.Linear(2, 2)
    parts = [picture, picture[:, ::-1], linear, torch.nn.Linear(2, 2), b"x", "x", [1], [1, 2], {}]
    prints = [fingerprint(part) for part in parts]
    assert len(set(prints)) == len(parts)
    assert prints == [fingerprint(part) for part in parts]
    assert fingerprint(["ab", "c"]) != fingerprint(["a", "bc"])


def test_a_blind_sampler_is_not_exported(
    pool: Pool, small_bundle_folder: Path, tmp_path: Path
) -> None:
    stage2(pool, tmp_path / "two", 1)
    with pytest.raises(ValueError, match="trained blind"):
        export(
            tmp_path / "b",
            preset=PRESET,
            pretrained=None,
            stage1=small_bundle_folder,
            stage2=tmp_path / "two",
            release="b",
        )
    assert not (tmp_path / "b").exists()


def test_transplanted_rain_only_adds_the_pairs_streaks() -> None:
    rng = np.random.default_rng(0)
    streaks = rng.integers(0, 60, (50, 70, 3)).astype(np.int16)
    photo = np.full((90, 60, 3), 100, np.uint8)
    rainy = transplant(photo, streaks, rng)
    assert rainy.shape == photo.shape
    assert rainy.min() >= 100 and rainy.max() <= 160 and rainy.std() > 0


def test_batches_depend_on_the_step_alone(pool: Pool) -> None:
    loader = loader_of(pool)
    first, again, other = (loader(step, 32, range(4)) for step in (3, 3, 4))
    assert torch.equal(first.lq, again.lq) and torch.equal(first.withheld, again.withheld)
    assert torch.equal(first.noise, again.noise) and torch.equal(first.t, again.t)
    assert not torch.equal(first.lq, other.lq)
    assert first.lq.shape == first.gt.shape == first.noise.shape == (4, 3, 32, 32)
    assert loader_of(pool, blind=True)(0, 32, range(4)).withheld.all()


def test_workers_see_together_what_one_sees(pool: Pool) -> None:
    loader = loader_of(pool)
    whole = loader(5, 32, range(4))
    parts = [loader(5, 32, range(rank, 4, 2)) for rank in range(2)]
    for rank, part in enumerate(parts):
        for name, value in vars(part).items():
            own = getattr(whole, name)
            assert torch.equal(value, own[:, rank::2] if name == "withheld" else own[rank::2])


def test_held_out_photos_are_never_trained_on(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.data.pool.HELD_OUT", 2)
    part = Pool(pool.folder)
    assert {part.entries[i].photo for i in part.held_out} == {1}
    assert {part.entries[i].photo for i in part.training} == {0, 2}
    crops = loader_of(part).held_out(64, count=1)
    assert set(crops) == set(LABELS)
    photo = scene(1)[4:68, 16:80].transpose(2, 0, 1) / np.float32(255)
    assert all(np.allclose(c.gt[0], photo) and c.t[0] == T for c in crops.values())


def test_a_mix_without_pictures_is_refused(pool: Pool) -> None:
    part = Pool(pool.folder)
    part.training = [i for i in part.training if part.entries[i].label != "snowy"]
    with pytest.raises(ValueError, match="no snowy pictures"):
        loader_of(part)


def test_noise_is_fresh_at_every_draw_and_as_strong_as_the_pictures(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = [entry for entry in pool.entries if entry.label == "noisy"]
    assert {entry.strength for entry in noisy} > {0.5}
    loader = loader_of(pool, mix={"noisy": 1.0})
    monkeypatch.setattr(pool, "lq", pool.gt)  # whatever noise there is was made here
    batches = [loader(step, 64, range(16)) for step in range(2)]
    first, other = ((crops.lq - crops.gt).std((1, 2, 3)) for crops in batches)
    assert first.min() > 10 / 255 and first.max() < 90 / 255  # less than sigma where it clips
    assert not torch.equal(first, other)


def test_real_streaks_fall_anew_at_every_draw(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = loader_of(pool, mix={"rainy": 1.0}, real_share=0.0)
    entries = [pool.entries[i] for i in loader._synthetic["rainy"]]
    assert {bool(entry.strength) for entry in entries} == {True, False}
    loader._synthetic["rainy"] = [
        i for i in pool.training if pool.entries[i] in entries and not pool.entries[i].strength
    ]
    monkeypatch.setattr(
        pool, "lq", lambda i: np.clip(pool.gt(i) + np.int16(40), 0, 255).astype(np.uint8)
    )
    crops = loader(0, 32, range(16))
    added = (crops.lq - crops.gt)[crops.gt < 0.8] * 255
    assert (
        added.max() < 40.01 and (added > 39.99).float().mean() > 0.9
    )  # less where the pair's own photo is bright


def test_real_haze_is_in_the_pool_at_other_densities(tmp_path: Path) -> None:
    """In the pool and not in crops alone: what f_D says of the haze must be true of the crop."""
    gt = scene(1)
    hazy = np.rint(gt * 0.6 + 255 * 0.4).astype(np.uint8)
    own = build_pool(tmp_path, [scene(0)], [("hazy", hazy, gt)])
    real = [i for i, entry in enumerate(own.entries) if own.is_real(entry)]
    levels = {round(float((255.0 - own.lq(i)).mean() / (255.0 - gt).mean()), 2) for i in real}
    assert all(np.array_equal(own.gt(i), gt) for i in real)
    assert len(levels) > 4 and 0.6 in levels and min(levels) < 0.55 and max(levels) > 0.65


def test_some_hazy_crops_show_more_of_the_picture(tmp_path: Path) -> None:
    ramp = np.broadcast_to(np.arange(96, dtype=np.uint8)[None, :, None] * 2, (72, 96, 3))
    own = build_pool(tmp_path, [np.ascontiguousarray(ramp)], [])
    for label, widest in (("hazy", 71), ("noisy", 31)):
        gt = loader_of(own, mix={label: 1.0})(0, 32, range(32)).gt * 255 / 2
        spans = (gt.amax((1, 2, 3)) - gt.amin((1, 2, 3))).tolist()
        assert min(spans) == pytest.approx(31, abs=0.1), label
        assert max(spans) == pytest.approx(widest, abs=12), label


def test_some_clean_crops_come_with_anothers_damage(pool: Pool) -> None:
    number = torch.arange(len(pool)).float()[:, None].expand(-1, 32)
    zeros = torch.zeros_like(number)
    conditions = PoolConditions(zeros, number, zeros, torch.full((len(LABELS), 32), -1.0))
    loader = loader_of(pool, conditions, prototype_share=0.15)
    own = [pool.entries[int(i)].label == "clean" for i in range(len(pool))]
    right = wrong = 0
    for step in range(60):
        crops = loader(step, 32, range(16))
        untouched = (crops.lq == crops.gt).flatten(1).all(1)
        for i in torch.nonzero(untouched).flatten():
            judged = int(crops.f_D[i, 0])
            right += judged >= 0 and own[judged]
            wrong += judged >= 0 and not own[judged]
    assert right > 5 and wrong > 5


def test_a_wrong_judgement_has_the_prototype_of_its_label(pool: Pool) -> None:
    zeros = torch.zeros(len(pool), 32)
    label = torch.arange(len(LABELS)).float()[:, None].expand(-1, 32)
    loader = loader_of(pool, PoolConditions(zeros, zeros, zeros, label), mix={"clean": 1.0})
    judged = {LABELS[int(n)] for step in range(10) for n in loader(step, 32, range(16)).f_D[:, 0]}
    assert "clean" in judged and len(judged) > 3
    loader = loader_of(pool, PoolConditions(zeros, zeros, zeros, label), mix={"snowy": 1.0})
    assert {LABELS[int(n)] for n in loader(0, 32, range(16)).f_D[:, 0]} == {"snowy"}


def stage2(pool: Pool, out: Path, steps: int, **changes: object) -> dict[str, torch.Tensor]:
    """Train the small sampler for a few steps; returns its weights."""
    torch.manual_seed(0)
    config = replace(STAGE2.loop, steps=steps, warmup=0, validate_every=0)
    run = Run(out=out, compute=Compute("fp32"))
    task = SamplerTask(
        PRESET,
        replace(STAGE2, **changes),
        loader_of(pool, blind=True),
        run,
        UNet(PRESET.sampler.unet),
    )
    fit(task, config, run)
    state = Checkpoints(out / "sampler").latest()
    assert state is not None and state["step"] == steps
    return dict(state["model"])


def test_the_objective_must_be_the_presets(pool: Pool, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match=r"'ml' makes a network predict 'noise'"):
        stage2(pool, tmp_path, 1, objective="ml")
