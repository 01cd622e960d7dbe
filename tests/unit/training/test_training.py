"""The training loops on a small network and synthetic photos: they learn, and they resume exactly."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from tests.small import CAPTIONS, small_preset
from training.cache import fingerprint
from training.captioned import CaptionedPhotos
from training.conditions import PoolConditions, embed_pool, no_conditions
from training.crops import CropLoader
from training.export import export
from training.loop import cosine_rate, load_checkpoint, save_checkpoint
from training.pool import Pool, build_pool, read_pairs, transplant
from training.pretrain import train_blip, train_clip
from training.stage1 import train as train_stage1
from training.stage1 import train_stem
from training.stage2 import train as train_stage2
from training.views import load_pretrained, prepare_damage, prepare_stage1
from vlmir.bundle import load_bundle
from vlmir.degradations import LABELS
from vlmir.parts import build_embedder, build_frozen_clip, build_unet, fill_embedder
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.embedder import ClipEmbedder
from vlmir.vlm.tokenizer import CaptionTokenizer

PRESET = small_preset()


def scene(seed: int, height: int = 72, width: int = 96) -> np.ndarray:
    """A synthetic photo: smooth colour with a few shapes."""
    rng = np.random.default_rng(seed)
    small = rng.integers(40, 220, (4, 5, 3), np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(4):
        centre = (int(rng.integers(width)), int(rng.integers(height)))
        cv2.circle(picture, centre, int(rng.integers(4, 15)), rng.integers(0, 255, 3).tolist(), -1)
    return picture


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Pool:
    gt = scene(9)
    lq = np.clip(gt.astype(np.int16) + 40, 0, 255).astype(np.uint8)
    folder = tmp_path_factory.mktemp("pool")
    return build_pool(folder, [scene(i) for i in range(2)], [("rainy", lq, gt)])


@pytest.fixture(scope="module")
def captioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("captioned")
    (folder / "images").mkdir()
    names = [f"{i}.png" for i in range(8)]
    for i, name in enumerate(names):
        cv2.imwrite(str(folder / "images" / name), scene(i, 64, 64))
    captions = {name: CAPTIONS for name in names}
    (folder / "captions.json").write_text(json.dumps(captions))
    split = {"train": names[:5], "val": names[5:6], "test": names[6:]}
    (folder / "split.json").write_text(json.dumps(split))
    return folder


@pytest.mark.parametrize("limit", [5, 20, 40])
def test_part_of_a_pool_knows_its_real_pairs(pool: Pool, limit: int) -> None:
    part = Pool(pool.folder, limit=limit)
    assert len(part) == limit
    assert [part.is_real(e) for e in part.entries] == [e.photo == 2 for e in part.entries]


def test_pool_has_every_label_and_the_pair(pool: Pool) -> None:
    assert {entry.label for entry in pool.entries} == set(LABELS)
    pairs = [i for i, entry in enumerate(pool.entries) if entry.photo == 2]
    assert pairs and np.array_equal(pool.gt(pairs[0]), scene(9))
    clean = next(i for i, entry in enumerate(pool.entries) if entry.label == "clean")
    assert np.array_equal(pool.lq(clean), pool.gt(clean))


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


def test_the_first_phases_pictures_are_not_made_for_nothing(tmp_path: Path) -> None:
    network = DegradationCLIP(PRESET.embedder, len(LABELS))
    train_stem(network, lambda: pytest.fail("pictures were read"), tmp_path, 0)


def test_a_blind_sampler_is_not_exported(
    pool: Pool, small_bundle_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage2(pool, tmp_path / "two", 1)
    network = DegradationCLIP(PRESET.embedder, len(LABELS))
    save_checkpoint(tmp_path / "one" / "embedder.pt", {"model": network.state_dict()})
    monkeypatch.setattr("training.export.load_preset", lambda name: PRESET)
    folders = {"pretrained": small_bundle_folder, "stage1": tmp_path / "one"}
    with pytest.raises(ValueError, match="trained blind"):
        export(tmp_path / "b", **folders, stage2=tmp_path / "two", release="b")


def test_transplanted_rain_only_adds_the_pairs_streaks() -> None:
    rng = np.random.default_rng(0)
    streaks = rng.integers(0, 60, (50, 70, 3)).astype(np.int16)
    photo = np.full((90, 60, 3), 100, np.uint8)
    rainy = transplant(photo, streaks, rng)
    assert rainy.shape == photo.shape
    assert rainy.min() >= 100 and rainy.max() <= 160 and rainy.std() > 0


def test_batches_depend_on_the_step_alone(pool: Pool) -> None:
    loader = CropLoader(pool, no_conditions(pool, PRESET), PRESET.labels, seed=0)
    first, again, other = loader(3, 4, 32), loader(3, 4, 32), loader(4, 4, 32)
    assert torch.equal(first.lq, again.lq) and torch.equal(first.withheld, again.withheld)
    assert not torch.equal(first.lq, other.lq)
    assert first.lq.shape == first.gt.shape == (4, 3, 32, 32)
    blind = CropLoader(pool, no_conditions(pool, PRESET), PRESET.labels, seed=0, blind=True)
    assert blind(0, 4, 32).withheld.all()


def test_noise_is_fresh_at_every_draw_and_as_strong_as_the_pictures(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.crops.MIX", {label: label == "noisy" for label in LABELS})
    noisy = [entry for entry in pool.entries if entry.label == "noisy"]
    assert {entry.strength for entry in noisy} > {0.5}
    loader = CropLoader(pool, no_conditions(pool, PRESET), PRESET.labels, seed=0)
    monkeypatch.setattr(pool, "lq", pool.gt)  # whatever noise there is was made here
    batches = [loader(step, 16, 64) for step in range(2)]
    first, other = ((crops.lq - crops.gt).std((1, 2, 3)) for crops in batches)
    assert first.min() > 10 / 255 and first.max() < 90 / 255  # less than sigma where it clips
    assert not torch.equal(first, other)


def test_some_clean_crops_come_with_anothers_damage(pool: Pool) -> None:
    number = torch.arange(len(pool)).float()[:, None].expand(-1, 32)
    zeros = torch.zeros_like(number)
    conditions = PoolConditions(zeros, number, zeros, torch.full((len(LABELS), 32), -1.0))
    loader = CropLoader(pool, conditions, PRESET.labels, seed=0)
    own = [pool.entries[int(i)].label == "clean" for i in range(len(pool))]
    right = wrong = 0
    for step in range(60):
        crops = loader(step, 16, 32)
        untouched = (crops.lq == crops.gt).flatten(1).all(1)
        for i in torch.nonzero(untouched).flatten():
            judged = int(crops.f_D[i, 0])
            right += judged >= 0 and own[judged]
            wrong += judged >= 0 and not own[judged]
    assert right > 5 and wrong > 5


def stage2(pool: Pool, out: Path, steps: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    loader = CropLoader(pool, no_conditions(pool, PRESET), PRESET.labels, seed=0, blind=True)
    train_stage2(PRESET, loader, out, steps=steps, batch=2, size=32, compiled=False)
    state = load_checkpoint(out / "sampler.pt")
    assert state is not None and state["step"] == steps
    return dict(state["model"])


def test_stage2_resumes_to_the_last_bit(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.stage2.cosine_rate", lambda step, **_: 1e-3)
    whole = stage2(pool, tmp_path / "whole", 6)
    stage2(pool, tmp_path / "parts", 3)
    resumed = stage2(pool, tmp_path / "parts", 6)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_all_stages_from_photos_to_a_bundle(
    pool: Pool, captioned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("pretrain", "stage1"):
        monkeypatch.setattr(f"training.{module}.BATCH", 4)
    monkeypatch.setattr("training.stage1.STEM_BATCH", 4)
    for size in ("PER_LABEL", "DAMAGE_PER_LABEL", "DAMAGE_CAPTIONED"):
        monkeypatch.setattr(f"training.views.{size}", 2)
    monkeypatch.setattr("training.views.CAPTIONED", 4)
    torch.manual_seed(0)
    photos = CaptionedPhotos(captioned)
    pretrained, one, two = (tmp_path / name for name in ("pretrain", "stage1", "stage2"))
    tokenizer = CaptionTokenizer.train(CAPTIONS, 200, pretrained / "tokenizer.json")
    train_clip(PRESET, photos, tokenizer, pretrained, steps=2)
    train_blip(PRESET, photos, tokenizer, pretrained, steps=2)
    parts = load_pretrained(PRESET, pretrained)
    network = DegradationCLIP(PRESET.embedder, len(LABELS), parts.clip)
    network.set_labels(tokenizer(LABELS, 12))
    train_stem(network, lambda: prepare_damage(PRESET, pool, captioned, one), one, 3)
    stem = load_checkpoint(one / "stem.pt")
    data = prepare_stage1(PRESET, parts, pool, captioned, one)
    train_stage1(network, data, one, 2)
    joined = load_checkpoint(one / "embedder.pt")
    assert stem is not None and joined is not None
    assert all(
        torch.equal(joined["model"][f"controller.stem.{n}"], kept)
        for n, kept in stem["model"].items()
    )
    embedder = ClipEmbedder(network, tokenizer, LABELS)
    conditions = embed_pool(pool, parts.captioner, embedder, one)
    assert conditions.f_T.shape == (len(pool), 32)
    with torch.no_grad():
        network.controller.stem.head[1].bias += 1
    other = embed_pool(pool, parts.captioner, embedder, one)
    assert not torch.allclose(other.f_D, conditions.f_D)  # not the other network's file
    with torch.no_grad():
        network.controller.stem.head[1].bias -= 1
    loader = CropLoader(pool, conditions, LABELS, seed=0)
    train_stage2(PRESET, loader, two, steps=2, batch=2, size=32, compiled=False)
    monkeypatch.setattr("training.export.load_preset", lambda name: PRESET)
    folders = {"pretrained": pretrained, "stage1": one, "stage2": two}
    export(tmp_path / "bundle", **folders, release="test-1")
    bundle = load_bundle(tmp_path / "bundle")
    assert bundle.release == "test-1"
    shipped = build_embedder(bundle).network.prototypes
    assert torch.allclose(shipped, conditions.prototypes, rtol=1e-2, atol=1e-3)
    again = DegradationCLIP(PRESET.embedder, len(LABELS), build_frozen_clip(bundle))
    fill_embedder(again, bundle)
    ids = tokenizer(CAPTIONS, 12)
    taught, kept = (n.eval().encode_caption(ids) for n in (network, again))
    assert torch.allclose(taught, kept, rtol=1e-2, atol=1e-2)


def test_checkpoints_are_atomic_and_plain(tmp_path: Path) -> None:
    file = tmp_path / "deep" / "state.pt"
    assert load_checkpoint(file) is None
    save_checkpoint(file, {"step": 3, "w": torch.ones(2)})
    state = load_checkpoint(file)
    assert state is not None and state["step"] == 3
    assert [path.name for path in file.parent.iterdir()] == ["state.pt"]


def test_learning_rate_rises_then_falls() -> None:
    rates = [cosine_rate(step, total=100, warmup=10, peak=1.0) for step in range(101)]
    assert rates[:10] == sorted(rates[:10]) and rates[10:] == sorted(rates[10:], reverse=True)
    assert max(rates) == 1.0 and rates[-1] == pytest.approx(0.01)


def test_training_goes_on_from_a_bundle(
    pool: Pool, small_bundle_folder: Path, tmp_path: Path
) -> None:
    parts = load_pretrained(PRESET, small_bundle_folder)
    assert parts.captioner.config == PRESET.captioner
    loader = CropLoader(pool, no_conditions(pool, PRESET), LABELS, seed=0, blind=True)
    sizes = {"steps": 1, "batch": 2, "size": 32, "compiled": False}
    train_stage2(PRESET, loader, tmp_path, **sizes, init=small_bundle_folder)
    state = load_checkpoint(tmp_path / "sampler.pt")
    shipped = build_unet(load_bundle(small_bundle_folder)).state_dict()
    assert state is not None
    drift = [(state["model"][n] - shipped[n]).abs().max().item() for n in shipped]
    assert 0 < max(drift) < 0.01
