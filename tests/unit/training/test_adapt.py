"""Adapters: a sampler trained on for one damage, kept beside the weights for all."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.unit.training.workshop import lay_out
from training import adapt
from training.adapt import compressed
from training.engine.checkpoints import Checkpoints
from vlmir.bundle import digest_of, load_bundle
from vlmir.nn import Adapter, Damage, UNet
from vlmir.parts import build_sampler
from vlmir.pipeline import RestoreOptions, Restorer

README = (Path(__file__).parents[3] / "README.md").read_text("utf-8")
LOOP = "steps = 2\nbatch = 2\nrate = 1e-3\nlog_every = 1\nsave_every = 1\n"


def changes() -> dict[str, Tensor]:
    """Of a kernel (rank 2), of a matrix (rank 6, mostly 1) and of a vector."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    kernel = (draw(8, 2) @ draw(2, 4 * 9)).reshape(8, 4, 3, 3)
    matrix = 10 * draw(6, 1) @ draw(1, 20) + 0.1 * draw(6, 20)
    return {"kernel": kernel, "matrix": matrix, "vector": draw(5)}


def test_with_room_enough_nothing_is_lost() -> None:
    wanted = changes()
    factors, whole = compressed(wanted, numbers=1000)
    adapter = Adapter(damage=Damage(torch.ones(4), torch.ones(1, 4)), factors=factors, whole=whole)
    for name, change in wanted.items():
        found = adapter.change(name, change.shape)
        assert found is not None and torch.allclose(found, change, atol=1e-4), name
    assert {*whole} == {"vector", "matrix"}  # six products take more than the matrix
    assert factors["kernel"][0].shape == (8, 2)


def test_what_says_most_for_its_size_is_kept() -> None:
    wanted = changes()
    factors, whole = compressed(wanted, numbers=5 + (6 + 20))
    assert {*whole} == {"vector"} and {*factors} == {"matrix"}
    up, down = factors["matrix"]
    assert up.shape == (6, 1) and down.shape == (1, 20)
    lost = (up @ down - wanted["matrix"]).norm() / wanted["matrix"].norm()
    assert lost < 0.02
    assert up.abs().max() / down.abs().max() == pytest.approx(1, abs=0.9)  # neither needs range


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_bundle_folder: Path) -> Path:
    config = lay_out(tmp_path, monkeypatch, loop=LOOP)
    shutil.copytree(small_bundle_folder, tmp_path / "my-bundle")
    description = tmp_path / "my-bundle" / "bundle.json"
    data = json.loads(description.read_text())
    data["preset"]["embedder"]["typical_damage"] = True
    description.write_text(json.dumps(data))
    (tmp_path / "tiny.toml").write_text(config.read_text())
    return tmp_path


def run(monkeypatch: pytest.MonkeyPatch, module: str, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module, *arguments])
    try:
        import_module(module).main()
    except SystemExit as end:
        if end.code:
            raise


FAST = ["--config", "tiny.toml", "--untracked", "--precision", "fp32", "--no-compile"]


def test_the_readmes_commands_make_a_bundle_that_knows_one_damage_better(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = [
        (module, shlex.split(text))
        for module, text in re.findall(r"python -m (training\.\w+) (.*my-2|.*runs/noisy)\n", README)
    ]
    assert [module for module, _ in commands] == ["training.stage2", "training.adapt"]
    for module, arguments in commands:
        run(monkeypatch, module, *arguments, *(FAST if module.endswith("stage2") else []))
    assert "my-better-bundle: my-2; measure it" in capsys.readouterr().out
    before, after = load_bundle("my-bundle"), load_bundle("my-better-bundle")
    assert after.release == "my-2" and after.preset == before.preset and after.metrics == {}
    assert after.digests["embedder"] == before.digests["embedder"]
    assert after.digests["sampler"] == digest_of(after.folder, "sampler")
    sampler, plain = build_sampler(after), build_sampler(before).unet.state_dict()
    assert all(torch.equal(plain[name], t) for name, t in sampler.unet.state_dict().items())
    (noisy,) = sampler.adapted
    state = Checkpoints(Path("runs/noisy/sampler")).latest()
    assert noisy.label == "noisy" and state is not None
    bias = "degradation.text_mlp.0.bias"
    for name, average in state["ema"].items():
        found = noisy.unet.get_parameter(name)
        assert name == bias or torch.allclose(found, average, rtol=2e-3, atol=2e-5), name
    # The bundle's typical f_D does to this network what the stage's own did.
    wanted = UNet(after.preset.sampler.unet)
    wanted.load_state_dict(state["ema"])
    trained_with = state["prototypes"][list(after.preset.labels).index("noisy")]
    assert not torch.allclose(trained_with, noisy.damage.f_D, rtol=0.1)
    prompts = (
        wanted.prepare(None, None, trained_with[None], 1).prompt,
        noisy.unet.prepare(None, None, noisy.damage.f_D[None], 1).prompt,
    )
    assert torch.allclose(*prompts, rtol=1e-2, atol=1e-3)
    assert any(not torch.equal(plain[n], p) for n, p in noisy.unet.named_parameters())
    noise = torch.rand(48, 48, 3).numpy()
    picture = (noise * 255).astype("uint8")
    results = {
        (label, name): Restorer.load(name)
        .restore(picture, RestoreOptions(degradation=label, use_caption=False))
        .image.pixels
        for label in ("noisy", "rainy")
        for name in ("my-bundle", "my-better-bundle")
    }
    rainy, noisy_ = (
        abs(results[label, "my-bundle"] - results[label, "my-better-bundle"]).max()
        for label in ("rainy", "noisy")
    )
    assert rainy == 0 and noisy_ > 0

    # It can be trained on from there.
    more = ["--data", "photos", "pairs", "--stage1", "my-better-bundle", "--out", "runs/more"]
    more += ["--init", "my-better-bundle", "--adapter", "noisy", "--set", "stage2.loop.rate=1e-9"]
    run(monkeypatch, "training.stage2", *more, *FAST)
    trained = Checkpoints(Path("runs/more/sampler")).latest()
    assert trained is not None
    for name, own in noisy.unet.named_parameters():
        assert torch.allclose(trained["model"][name], own, atol=1e-6), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--adapter noisy", "is not LABEL=FOLDER"),
        ("--adapter foggy=runs/x", "knows no damage ['foggy']; choose from motion-blurry, hazy"),
        ("--adapter noisy=runs/none", "run training.stage2 first"),
        ("--adapter noisy=runs/x --base none", "No bundle at 'none'"),
    ],
)
def test_faults_of_the_user_are_told(
    folder: Path,
    arguments: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    base = [] if "--base" in arguments else ["--base", "my-bundle"]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "training.adapt", "out", "--release", "x", *base, *arguments.split())
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
    assert not (folder / "out").exists()


def test_a_stage_of_another_network_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"ema": {"stem.weight": torch.zeros(1)}, "prototypes": torch.zeros(11, 32)}
    Checkpoints(folder / "runs" / "odd").save(1, state)
    monkeypatch.setattr(Checkpoints, "require", lambda self, made_by: state)
    with pytest.raises(SystemExit):
        run(
            monkeypatch, adapt.__name__, "out", "--release", "x", "--base", "my-bundle",
            "--adapter", "noisy=runs/odd",
        )  # fmt: skip
    assert "trained another network than that of my-bundle" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--adapter noisy", "--adapter names one of the networks of --init"),
        ("--adapter noisy --init my-bundle", "has no adapter for 'noisy', but for: none"),
    ],
)
def test_an_adapter_to_begin_with_must_be_there(
    folder: Path,
    arguments: str,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = ["--data", "photos", "pairs", "--stage1", "my-bundle", *arguments.split()]
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, "training.stage2", *more, *FAST)
    assert stopped.value.code == 2
    assert said in capsys.readouterr().err
