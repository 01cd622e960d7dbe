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
from training.adapt import _depth, compressed
from training.engine.checkpoints import Checkpoints
from vlmir.bundle import digest_of, load_bundle
from vlmir.nn import Adapter, Damage, UNet
from vlmir.parts import build_sampler, build_unet
from vlmir.pipeline import RestoreOptions, Restorer

README = (Path(__file__).parents[3] / "README.md").read_text("utf-8")
LOOP = "steps = 2\nbatch = 2\nrate = 1e-3\nlog_every = 1\nsave_every = 1\n"


FIRST, STILL, BELOW = (
    "downs.0.block1.conv1.weight",
    "ups.1.block1.conv1.weight",
    "downs.1.leave.weight",
)
DAMAGE = Damage(torch.ones(4), torch.ones(1, 4))


def changes() -> dict[str, Tensor]:
    """Of two kernels at the first level, one whose second row did not change, of one below it, and of a vector."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.01 * torch.randn(shape, generator=generator)

    still = draw(2, 3, 3, 3)
    still[1] = 0
    kernels = {FIRST: draw(8, 4, 3, 3), STILL: still, BELOW: draw(30, 31)}
    return {**kernels, "head.bias": draw(5)}


def changed(adapter: Adapter, name: str, shape: torch.Size) -> Tensor:
    found = adapter.change(name, shape)
    assert found is not None
    return found


def test_the_first_level_is_kept_in_eight_bits_and_of_the_others_the_sign() -> None:
    wanted = changes()
    adapter = compressed(wanted, damage=DAMAGE, share=0.3)
    assert adapter.damage is DAMAGE
    assert {*adapter.whole} == {"head.bias"} and {*adapter.codes} == {FIRST, STILL}
    assert {*adapter.signs} == {BELOW} and {*adapter.scales} == {FIRST, STILL, BELOW}
    assert torch.equal(adapter.whole["head.bias"], wanted["head.bias"])
    for name in adapter.codes:
        found = changed(adapter, name, wanted[name].shape)
        limit = wanted[name].abs().flatten(1).amax(1) / 253
        assert ((found - wanted[name]).abs().flatten(1).amax(1) <= limit).all()
    found = changed(adapter, BELOW, wanted[BELOW].shape)
    assert torch.equal(found > 0, wanted[BELOW] > 0)
    assert torch.allclose(found.abs().mean(1), wanted[BELOW].abs().mean(1))
    # No other size of those signs is nearer.
    lost = (found - wanted[BELOW]).square().sum()
    assert all(lost < (f * found - wanted[BELOW]).square().sum() for f in (0.97, 1.03))


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.23, 1), (0.3, 2), (1.0, 3)])
def test_the_highest_resolution_comes_first(share: float, kept: int) -> None:
    adapter = compressed(changes(), damage=DAMAGE, share=share)
    assert {*adapter.codes} == {*[FIRST, STILL, BELOW][:kept]}


def test_every_level_is_known(small_bundle_folder: Path) -> None:
    unet = build_unet(load_bundle(small_bundle_folder))
    changes = {name: p.detach() for name, p in unet.named_parameters()}
    levels = len(unet.config.multipliers)
    found = dict[str, set[int]]()
    for name in changes:
        found.setdefault(re.sub(r"(\.\d)?\..*|\d\..*", r"\1", name), set()).add(
            _depth(name, changes)
        )
    assert all(found[f"downs.{i}"] == found[f"ups.{levels - 1 - i}"] == {i} for i in range(levels))
    assert found["middle"] == {levels} and found["stem"] == found["head"] == found["final"] == {0}


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


def refused(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: str,
    *arguments: str,
) -> str:
    """What a command that blames its user says."""
    with pytest.raises(SystemExit) as stopped:
        run(monkeypatch, module, *arguments)
    assert stopped.value.code == 2
    return capsys.readouterr().err


OUT = ["out", "--release", "x"]
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
        found, start = noisy.unet.get_parameter(name), plain[name]
        assert name == bias or (found - average).abs().max() <= 1.01 * (average - start).abs().max()
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
    found = refused(monkeypatch, capsys, "training.adapt", *OUT, *base, *arguments.split())
    assert said in found
    assert not (folder / "out").exists()


def test_a_stage_of_another_network_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    state = {"ema": {"stem.weight": torch.zeros(1)}, "prototypes": torch.zeros(11, 32)}
    Checkpoints(folder / "runs" / "odd").save(1, state)
    monkeypatch.setattr(Checkpoints, "require", lambda self, made_by: state)
    stage = ["--base", "my-bundle", "--adapter", "noisy=runs/odd"]
    found = refused(monkeypatch, capsys, adapt.__name__, *OUT, *stage)
    assert "trained another network than that of my-bundle" in found


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
    assert said in refused(monkeypatch, capsys, "training.stage2", *more, *FAST)
