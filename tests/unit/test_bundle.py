"""Bundles: written, read back, and refused when they are not what they say."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from vlmir.bundle import PARTS, load_bundle
from vlmir.daclip import read_state_dict
from vlmir.errors import BundleError
from vlmir.parts import build_captioner, build_embedder, build_unet, save_bundle
from vlmir.vlm.tokenizer import CaptionTokenizer


@pytest.fixture
def copy(small_bundle_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_bundle_folder, tmp_path / "copy"))


def test_round_trip(small_bundle_folder: Path) -> None:
    bundle = load_bundle(small_bundle_folder)
    assert bundle.release == "small-1"
    assert set(bundle.digests) == set(PARTS)
    assert build_unet(bundle).training is False
    assert build_captioner(bundle).config == bundle.preset.captioner
    embedder = build_embedder(bundle)
    labels = embedder.network.label_embeddings
    assert torch.allclose(labels @ labels.T, torch.eye(len(labels)), atol=1e-2)


@pytest.mark.parametrize("part", PARTS)
def test_a_changed_file_is_refused(copy: Path, part: str) -> None:
    file = copy / part / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(BundleError, match=f"{part}.*digest"):
        load_bundle(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "sampler" / "model.safetensors").unlink()
    with pytest.raises(BundleError, match="sampler/model"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.update(format=99), "format 99"),
        (lambda data: data.pop("release"), "damaged"),
        (lambda data: data["preset"].update(colour=1), "colour"),
        (lambda data: data["digests"].pop("sampler"), r"missing \['sampler'\]"),
        (lambda data: data["digests"].update(extra="00"), r"unknown \['extra'\]"),
    ],
)
def test_a_strange_description_is_refused(copy: Path, change, named: str) -> None:  # type: ignore[no-untyped-def]
    file = copy / "bundle.json"
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match=named):
        load_bundle(copy)


def test_a_part_that_is_not_named_is_not_read(copy: Path) -> None:
    file = copy / "bundle.json"
    data = json.loads(file.read_text())
    del data["digests"]["captioner"]
    file.write_text(json.dumps(data))
    bundle = load_bundle(copy)
    for build in (build_captioner, build_embedder):  # the latter would read its words there
        with pytest.raises(BundleError, match="has no captioner"):
            build(bundle)


def test_a_captioner_is_saved_with_its_tokenizer(small_bundle_folder: Path, tmp_path: Path) -> None:
    bundle = load_bundle(small_bundle_folder)
    with pytest.raises(BundleError, match="tokenizer"):
        save_bundle(
            tmp_path / "out",
            preset=bundle.preset,
            release="half-1",
            tokenizer=CaptionTokenizer(bundle.file("captioner", "tokenizer.json")),
            embedder=build_embedder(bundle).network,
            unet=build_unet(bundle),
            metrics={},
        )
    assert not (tmp_path / "out").exists()


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="nowhere"):
        load_bundle(tmp_path / "nowhere")


def test_weights_that_do_not_fit_are_named(copy: Path) -> None:
    file = copy / "bundle.json"
    data = json.loads(file.read_text())
    data["preset"]["sampler"]["unet"]["width"] = 64
    file.write_text(json.dumps(data))
    with pytest.raises(BundleError, match="wrong shape"):
        build_unet(load_bundle(copy))


class Payload:
    """Unpickling this would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("content", ["payload", "list", "garbage"])
def test_a_foreign_checkpoint_is_refused_and_not_run(tmp_path: Path, content: str) -> None:
    file, trap = tmp_path / "weights.pt", tmp_path / "trap"
    if content == "garbage":
        file.write_bytes(b"no weights at all")
    else:
        torch.save(Payload(trap) if content == "payload" else [1, 2], file)
    with pytest.raises(BundleError, match=r"weights\.pt"):
        read_state_dict(file)
    assert not trap.exists()


def test_a_plain_checkpoint_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {"module.a": torch.ones(2)}}, tmp_path / "weights.pt")
    assert list(read_state_dict(tmp_path / "weights.pt")) == ["a"]
