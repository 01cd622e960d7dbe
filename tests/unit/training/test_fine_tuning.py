"""Training goes on from DA-CLIP's imported weights: no captioner, no LoRA updates, ten labels."""

from __future__ import annotations

import json
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from tests.foreign import small_daclip
from tests.small import small_preset
from tests.unit.training.pictures import scene, write_captioned, write_pairs, write_photos
from training import stage1, stage2
from training.data.conditions import embed_pool
from training.data.pool import Pool, build_pool
from training.data.views import prepare_stage1
from training.engine.checkpoints import Checkpoints
from training.pretrain import contrastive_loss
from training.pretrained import load_embedder
from vlmir.bundle import load_bundle
from vlmir.parts import build_embedder, build_unet
from vlmir.pipeline import Restorer

README = (Path(__file__).parents[3] / "README.md").read_text("utf-8")

LOOP = "steps = 2\nbatch = 2\nrate = 1e-3\n"
CONFIG = f"""
preset = "small.json"
[stage1.stem]
{LOOP}
[stage1.joint]
{LOOP}
[stage2]
objective = "noise"
norm = "l1"
size = 32
null_share = 0
mix = {{ noisy = 1, rainy = 1 }}
[stage2.loop]
{LOOP}
"""
FAST = ["--untracked", "--precision", "fp32"]


@pytest.fixture
def work(tmp_path: Path, imported_bundle_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with pictures, the imported bundle as `daclip`, and a small config."""
    monkeypatch.chdir(tmp_path)
    write_photos(tmp_path / "photos", 2)
    write_pairs(tmp_path / "pairs", "rainy", 1)
    (tmp_path / "daclip").symlink_to(imported_bundle_folder)
    (tmp_path / "small.json").write_text(json.dumps(small_daclip().to_dict()))
    (tmp_path / "small.toml").write_text(CONFIG)
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, module: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    import_module(module).main()


def test_the_readmes_commands_train_the_imported_sampler_further(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = re.findall(r"`python -m (training\.\w+) ([^`]* --preset daclip [^`]*)`", README)
    commands += re.findall(r"`python -m (training\.\w+) (--preset daclip [^`]*)`", README)
    assert {module for module, _ in commands} == {"training.stage2", "training.export"}
    for module, text in sorted(commands, reverse=True):
        more = [*FAST, "--no-compile"] if module == "training.stage2" else []
        text = text.replace("--preset daclip", "--config small.toml")
        run(monkeypatch, module, *shlex.split(text), *more)
    before, after = load_bundle("daclip"), load_bundle("my-daclip")
    assert after.digests.keys() == {"embedder", "sampler"} and after.release == "my-1"
    assert after.preset == small_daclip()
    with safe_open(after.file("embedder", "model.safetensors"), framework="pt") as file:
        assert not any(name.startswith("lora.") for name in file.keys())  # noqa: SIM118
    old, new = build_unet(before).state_dict(), build_unet(after).state_dict()
    drift = max((new[name] - old[name]).abs().max().item() for name in old)
    assert 1e-4 < drift < 0.02
    state = Checkpoints(Path("runs/stage2/sampler")).latest()
    assert state is not None
    embedder = build_embedder(after)
    assert torch.allclose(embedder.network.prototypes, state["prototypes"], rtol=1e-2, atol=1e-3)
    views = torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    for ours, theirs in zip(embedder.see(views), build_embedder(before).see(views), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-2, atol=1e-2)
    result = Restorer.load("my-daclip").restore(scene(0))
    assert np.isfinite(result.image.pixels).all() and result.report.caption is None


def test_without_captions_f_T_is_zero_and_unknown_labels_have_no_prototype(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", "small.toml", "--data", "photos", "--stage1", "daclip", "--no-compile"]
    run(monkeypatch, "training.stage2", *arguments, *FAST)
    pool = Pool(work / "runs" / "pool")
    pool.entries = [entry for entry in pool.entries if entry.label in ("clean", "noisy")]
    parts, embedder = load_embedder(small_daclip(), None, work / "daclip")
    assert parts.captioner is None and parts.words is None
    own = embedder.network.prototypes.clone()
    conditions = embed_pool(pool, None, embedder, work)
    assert not conditions.f_T.any() and conditions.f_D.abs().max() > 0
    noisy = [i for i, entry in enumerate(pool.entries) if entry.label == "noisy"]
    number = embedder.labels.index("noisy")
    assert torch.allclose(conditions.prototypes[number], conditions.f_D[noisy].mean(0))
    others = [k for k in range(len(embedder.labels)) if k != number]
    assert torch.equal(conditions.prototypes[others], own[others])


@pytest.mark.parametrize("module", [stage1, stage2])
def test_a_network_that_reads_captions_needs_a_captioner(
    work: Path,
    module: object,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_captioned(work / "captioned", 8)
    preset = small_daclip().to_dict()
    preset["sampler"]["unet"]["semantic"] = True
    (work / "small.json").write_text(json.dumps(preset))
    of = ["--init"] if module is stage1 else ["--stage1"]
    arguments = ["--config", "small.toml", "--data", "photos", "captioned", *of, "daclip", *FAST]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, module.__name__, *arguments)  # type: ignore[attr-defined]
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and "daclip has no captioner" in error
    assert error.count("\n") == 1


def test_conditions_are_written_whole_or_not_at_all(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["--config", "small.toml", "--data", "photos", "--stage1", "daclip", "--no-compile"]
    run(monkeypatch, "training.stage2", *arguments, *FAST)
    pool = Pool(work / "runs" / "pool", limit=2)
    _, embedder = load_embedder(small_daclip(), None, work / "daclip")

    def crash(tensors: dict[str, torch.Tensor], file: Path) -> None:
        file.write_bytes(b"the first half")
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("training.data.conditions.save_file", crash)
        with pytest.raises(OSError, match="disk full"):
            embed_pool(pool, None, embedder, work)
    whole = embed_pool(pool, None, embedder, work)
    again = embed_pool(pool, None, embedder, work)
    assert torch.equal(whole.f_D, again.f_D) and not list(work.glob("*.part"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_gives_the_same(small_bundle_folder: Path, tmp_path: Path) -> None:
    pool = build_pool(tmp_path / "pool", [scene(0)], [])
    found = []
    for name in ("cpu", "cuda"):
        parts, embedder = load_embedder(small_preset(), None, small_bundle_folder)
        folder = tmp_path / name
        folder.mkdir()
        conditions = embed_pool(pool, parts.captioner, embedder, folder, torch.device(name))
        assert conditions.f_D.device.type == conditions.f_T.device.type == "cpu"
        found.append(conditions)
    assert torch.allclose(found[0].f_D, found[1].f_D, atol=1e-3)
    vectors = [getattr(found[0], name) for name in ("f_I", "f_T")]
    losses = [
        contrastive_loss(*(v.to(name) for v in vectors), torch.tensor(10.0, device=name)).item()
        for name in ("cpu", "cuda")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    folder = tmp_path / "captioned"
    write_captioned(folder, 8)
    parts, _ = load_embedder(small_preset(), None, small_bundle_folder)
    data = prepare_stage1(small_preset(), parts, pool, folder, tmp_path, torch.device("cuda"))
    assert data.f_GT.device.type == data.lq_ids.device.type == "cpu"
