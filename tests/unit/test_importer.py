"""Importing DA-CLIP's checkpoints: what comes out, and every file that is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.foreign import clip_state, daclip_files, public_shapes, small_daclip, unet_state
from tests.unit.test_bundle import Payload
from vlmir.bundle import Bundle, load_bundle
from vlmir.config import load_preset
from vlmir.daclip import load_strictly, rename
from vlmir.errors import BundleError, OptionError
from vlmir.importer import RELEASE, import_daclip
from vlmir.nn import UNet
from vlmir.options import RestoreOptions
from vlmir.parts import build_embedder, build_unet, count_parameters
from vlmir.pipeline import Restorer
from vlmir.vlm.clip import DegradationCLIP
from vlmir.vlm.tokenizer import ClipTokenizer

PRESET = small_daclip()
State = dict[str, Any]


@pytest.fixture(scope="module")
def bundle(imported_bundle_folder: Path) -> Bundle:
    return load_bundle(imported_bundle_folder)


@pytest.fixture(scope="module")
def restorer(bundle: Bundle) -> Restorer:
    return Restorer.from_bundle(bundle)


@pytest.fixture
def photo() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)


def test_the_bundle_has_no_captioner_and_ten_labels(bundle: Bundle) -> None:
    assert bundle.release == RELEASE
    assert set(bundle.digests) == {"embedder", "sampler"}
    assert len(bundle.preset.labels) == 10 and "clean" not in bundle.preset.labels
    assert sorted(path.name for path in bundle.folder.iterdir()) == [
        "bundle.json",
        "embedder",
        "sampler",
    ]


def test_every_weight_is_kept_as_it_was(bundle: Bundle) -> None:
    unet, embedder = build_unet(bundle), build_embedder(bundle).network
    for kind, network, given in (
        ("unet", unet, unet_state(PRESET)),
        ("clip", embedder, clip_state(PRESET)),
    ):
        own = network.state_dict()
        renamed = rename(given, kind, network)
        assert all(torch.equal(own[name], tensor) for name, tensor in renamed.items())


def test_the_text_tower_is_stored_once(bundle: Bundle) -> None:
    network = build_embedder(bundle).network
    own = sum(p.numel() for n, p in network.state_dict().items() if not n.startswith("caption_"))
    assert count_parameters(bundle)["embedder"] == own
    ids = ClipTokenizer()(["a dog"], 16)
    with torch.inference_mode():
        assert torch.equal(network.encode_caption(ids), network.encode_text(ids))


def test_labels_are_told_apart_as_the_reference_does(bundle: Bundle, photo: np.ndarray) -> None:
    embedder = build_embedder(bundle)
    network, pixels = embedder.network, (photo / 255).astype(np.float32)
    with torch.inference_mode():
        text = network.encode_text(ClipTokenizer()(PRESET.labels, 16))
        _, f_D = network.encode_image(embedder.view(pixels))
        cosines = F.normalize(f_D, dim=-1) @ F.normalize(text, dim=-1).T
        expected = (clip_state(PRESET)["logit_scale"].exp() * cosines).softmax(-1)[0]
    seen = embedder.embed_image(pixels)
    assert list(seen.degradations) == list(PRESET.labels)
    assert list(seen.degradations.values()) == pytest.approx(expected.tolist(), rel=1e-4)
    named = embedder.embed_label("hazy")
    assert F.cosine_similarity(named, text[1], dim=0).item() == pytest.approx(1, abs=1e-5)
    assert named.norm().item() == pytest.approx(seen.f_D.norm().item(), rel=0.5)


def test_a_picture_is_restored_without_a_caption(restorer: Restorer, photo: np.ndarray) -> None:
    result = restorer.restore(photo)
    assert np.isfinite(result.image.pixels).all()
    assert result.image.pixels.shape == (40, 60, 3)
    report = result.report
    assert report.caption is None and report.warnings == () and report.steps == 8
    assert report.degradation in PRESET.labels and set(report.degradations) == set(PRESET.labels)
    assert set(report.digests) == {"embedder", "sampler"}
    assert restorer.inspect(photo).caption is None


def test_a_users_caption_is_said_to_have_no_effect(restorer: Restorer, photo: np.ndarray) -> None:
    plain = restorer.restore(photo)
    given = restorer.restore(photo, RestoreOptions(caption="a dog"))
    assert given.report.caption is None and "no effect" in given.report.warnings[0]
    assert np.array_equal(given.image.pixels, plain.image.pixels)


def test_clean_is_no_label_of_theirs(restorer: Restorer, photo: np.ndarray) -> None:
    with pytest.raises(OptionError, match="clean"):
        restorer.restore(photo, RestoreOptions(degradation="clean"))


@pytest.mark.parametrize("kind", ["unet", "clip"])
def test_all_names_and_shapes_of_the_public_files_fit(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(UNet, "_initialise", lambda self: None)  # it looks at values
    preset = load_preset("daclip")
    with torch.device("meta"):  # shapes without memory
        state = {name: torch.empty(size) for name, size in public_shapes(kind).items()}
        if kind == "unet":
            network: torch.nn.Module = UNet(preset.sampler.unet)
        else:
            network = DegradationCLIP(preset.embedder, len(preset.labels), lora=False)
    ours = r"^(null\.|caption_encoder\.|label_embeddings$|prototypes$|logit_scale$)"
    load_strictly(network, rename(state, kind, network), may_miss=ours)


# --- refused ---


def without(name: str) -> Callable[[State], State]:
    return lambda state: {n: t for n, t in state.items() if n != name}


def replaced(**tensors: Any) -> Callable[[State], State]:
    given = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    return lambda state: state | given


NOT_A_NUMBER = torch.full((3,), torch.nan)
WIDE = torch.zeros(3, 3)


@pytest.mark.parametrize(
    ("kind", "change", "complaint"),
    [
        ("unet", without("final_conv.bias"), r"U-Net: .*missing \['head\.bias'\]"),
        ("clip", without("clip.ln_final.bias"), r"CLIP: .*missing \['clip\.ln_final\.bias'\]"),
        ("unet", replaced(final_conv__bias=WIDE), r"wrong shape \['head\.bias'\]"),
        ("clip", replaced(clip__ln_final__bias=WIDE), r"wrong shape \['clip\.ln_final\.bias'\]"),
        ("unet", replaced(extra=torch.zeros(1)), r"unknown \['extra'\]"),
        ("unet", replaced(final_conv__bias=NOT_A_NUMBER), r"values of .*final_conv"),
        (
            "unet",
            replaced(final_conv__bias=torch.zeros(3, dtype=torch.int64)),
            r"values of .*final_conv",
        ),
        ("unet", replaced(final_conv__bias=torch.zeros(3).to_sparse()), "is damaged"),
        (
            "unet",
            replaced(final_conv__bias=torch.zeros(3, device="meta")),
            r"values of .*final_conv",
        ),
        ("clip", replaced(visual__proj=torch.zeros(32, 32)), "should be the same"),
        ("clip", replaced(logit_scale=torch.tensor(1e4)), "no numbers"),
        ("unet", lambda state: {"weight": torch.zeros(1)}, "is not DA-CLIP's U-Net"),
        ("unet", lambda state: clip_state(PRESET), "is DA-CLIP's CLIP, but its U-Net"),
        ("clip", lambda state: unet_state(PRESET), "is DA-CLIP's U-Net, but its CLIP"),
        ("clip", lambda state: [1, 2], "no state dict"),
    ],
)
def test_other_weights_are_refused(
    kind: str, change: Callable[[State], Any], complaint: str, tmp_path: Path
) -> None:
    files = files_in(tmp_path)
    state = unet_state(PRESET) if kind == "unet" else clip_state(PRESET)
    torch.save(change(state), files[kind])
    refused(files, complaint, tmp_path)


@pytest.mark.parametrize("kind", ["unet", "clip"])
@pytest.mark.parametrize("fault", ["garbage", "empty", "cut", "flipped", "code", "missing"])
def test_damaged_files_are_refused_and_nothing_in_them_is_run(
    kind: str, fault: str, tmp_path: Path
) -> None:
    files, trap = files_in(tmp_path), tmp_path / "trap"
    data = bytearray(files[kind].read_bytes())
    data[len(data) // 2] ^= 1
    damaged = {"garbage": b"no weights", "empty": b"", "cut": data[:-1000], "flipped": data}
    if fault == "code":
        torch.save({"init_conv.weight": Payload(trap)}, files[kind])
    elif fault == "missing":
        files[kind].unlink()
    else:
        files[kind].write_bytes(damaged[fault])
    complaint = "does not exist" if fault == "missing" else "damaged or no plain file"
    refused(files, complaint, tmp_path)
    assert not trap.exists()


@pytest.mark.parametrize("taken", ["file", "folder"])
def test_what_is_there_is_not_overwritten(taken: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if taken == "folder":
        out.mkdir()
    kept = out if taken == "file" else out / "mine.txt"
    kept.write_text("mine")
    with pytest.raises(OptionError, match="already there"):
        import_daclip(out, **files_in(tmp_path), preset=PRESET)
    assert kept.read_text() == "mine"


def test_an_empty_folder_is_filled_and_a_place_that_cannot_be_is_named(tmp_path: Path) -> None:
    files = files_in(tmp_path)
    (tmp_path / "out").mkdir()
    import_daclip(tmp_path / "out", **files, preset=PRESET)
    assert load_bundle(tmp_path / "out").release == RELEASE
    inside_a_file = files["unet"] / "out"
    with pytest.raises(BundleError, match="Cannot write"):
        import_daclip(inside_a_file, **files, preset=PRESET)


def files_in(folder: Path) -> dict[str, Path]:
    unet, clip = daclip_files(folder, PRESET)
    return {"unet": unet, "clip": clip}


def refused(files: dict[str, Path], complaint: str, folder: Path) -> None:
    """One clear error, in which a file may be named, and nothing is left behind."""
    before = set(folder.iterdir())
    with pytest.raises(BundleError, match=complaint) as error:
        import_daclip(folder / "new" / "out", **files, preset=PRESET)
    assert "\n" not in str(error.value)
    assert set(folder.iterdir()) == before
