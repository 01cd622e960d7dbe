"""Adapters: other weights for one kind of damage, told as small changes, in one file with those for all."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.adapters import with_adapter
from vlmir.bundle import load_bundle
from vlmir.compute import Compute
from vlmir.errors import BundleError
from vlmir.nn import Adapter, Damage, UNet, adapted, join_adapters, split_adapters
from vlmir.parts import build_embedder, build_sampler, build_unet, count_parameters, save_adapters
from vlmir.sampling import Adapted, DiffusionSampler

CONV, LARGE, VECTOR = "stem.weight", "middle1.conv1.weight", "head.bias"


@pytest.fixture
def unet(small_bundle_folder: Path) -> UNet:
    return build_unet(load_bundle(small_bundle_folder))


def adapter(unet: UNet, *names: str) -> Adapter:
    """Random changes: of vectors whole, of the last kernel as signs, of the other ones as codes."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    shapes = {name: unet.get_parameter(name).shape for name in names}
    whole = {name: draw(*shape) for name, shape in shapes.items() if len(shape) == 1}
    codes = {
        name: (1000 * draw(*shape)).to(torch.int8)
        for name, shape in shapes.items()
        if len(shape) > 1
    }
    scales = {name: draw(len(code)).abs() / 100 for name, code in codes.items()}
    signs = dict[str, Tensor]()
    if len(codes) > 1:
        last, code = codes.popitem()
        signs[last] = torch.from_numpy(np.packbits((code > 0).numpy()))
    damage = Damage(draw(32), draw(10, 32))
    return Adapter(damage=damage, whole=whole, codes=codes, signs=signs, scales=scales)


def test_only_the_changed_weights_are_new(unet: UNet) -> None:
    own = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    changes = adapter(unet, CONV, LARGE, VECTOR)
    other = adapted(unet, own, changes)
    before, after = dict(unet.named_parameters()), dict(other.named_parameters())
    changed = {name for name in before if after[name] is not before[name]}
    assert changed == changes.changed == {CONV, LARGE, VECTOR}
    added = changes.scales[CONV][:, None, None, None] * changes.codes[CONV]
    assert torch.allclose(after[CONV], own[CONV] + added)
    sizes = (after[LARGE] - own[LARGE]).abs().flatten(1)
    assert torch.allclose(sizes, changes.scales[LARGE][:, None].expand_as(sizes), atol=1e-6)
    bits = np.unpackbits(changes.signs[LARGE].numpy(), count=own[LARGE].numel())
    assert np.array_equal((after[LARGE] > own[LARGE]).flatten().numpy(), bits.astype(bool))
    assert torch.equal(after[VECTOR], own[VECTOR] + changes.whole[VECTOR])
    assert all(torch.equal(before[name], own[name]) for name in before)
    assert not other.training and other.config == unet.config
    # Side by side: many small blocks between those that a picture takes would leave holes.
    assert len({after[name].untyped_storage().data_ptr() for name in changed}) == 1
    assert all(after[name].data_ptr() % 64 == 0 for name in changed)


def test_the_sum_is_rounded_once(small_bundle_folder: Path) -> None:
    """Not the weights, and then their sum with the change."""
    bundle = load_bundle(small_bundle_folder)
    exact = build_unet(bundle)
    rounded = build_unet(bundle, Compute(torch.device("cpu"), torch.bfloat16))
    changes, own = adapter(exact, CONV), exact.state_dict()
    network = adapted(rounded, own, changes)
    change = changes.change(CONV, own[CONV].shape)
    assert change is not None
    found = network.get_parameter(CONV)
    assert torch.equal(found, (own[CONV] + change).to(torch.bfloat16))
    assert found.stride() == rounded.get_parameter(CONV).stride()


def test_a_file_of_weights_holds_adapters_beside_the_network(unet: UNet) -> None:
    given = {"noisy": adapter(unet, CONV, LARGE, VECTOR), "low-light": adapter(unet, "stem.weight")}
    own, found = split_adapters({**unet.state_dict(), **join_adapters(given)})
    assert own.keys() == unet.state_dict().keys() and found.keys() == given.keys()
    for label, one in given.items():
        assert all(map(torch.equal, found[label].damage, one.damage))
        for kind in ("whole", "codes", "signs", "scales"):
            held, given_ = getattr(found[label], kind), getattr(one, kind)
            assert held.keys() == given_.keys()
            assert all(torch.equal(held[name], tensor) for name, tensor in given_.items())


@pytest.mark.parametrize(
    ("drop", "put"),
    [
        ("f_D", None),
        ("others", None),
        (f"codes.{CONV}", None),
        (f"scales.{CONV}", None),
        (None, "scales.x"),
        (None, "up.x"),
        (None, ""),
    ],
)
def test_half_an_adapter_is_refused(unet: UNet, drop: str | None, put: str | None) -> None:
    tensors = join_adapters({"noisy": adapter(unet, CONV)})
    if drop is not None:
        del tensors[f"adapters.noisy.{drop}"]
    if put is not None:
        tensors[f"adapters.noisy.{put}"] = torch.zeros(1)
    with pytest.raises(BundleError, match="adapter for noisy is incomplete"):
        split_adapters(tensors)


def test_an_adapter_of_another_network_is_refused(unet: UNet) -> None:
    own = unet.state_dict()
    right = adapter(unet, CONV, LARGE, VECTOR)
    code, bits = right.codes[CONV], right.signs[LARGE]
    cases = {
        "has not: nowhere.weight": replace(right, whole={"nowhere.weight": torch.zeros(1)}),
        f"change of {CONV} does not fit": replace(right, codes={CONV: code[:-1]}),
        f"change of {LARGE} does not fit": replace(right, signs={LARGE: bits[:-9]}),
        f"change of {VECTOR} does not fit": replace(right, whole={VECTOR: torch.zeros(5)}),
    }
    for message, wrong in cases.items():
        with pytest.raises(BundleError, match=message):
            adapted(unet, own, wrong)


def test_a_bundle_with_an_adapter_restores_that_damage_by_it(
    small_bundle_folder: Path, tmp_path: Path
) -> None:
    bundle = with_adapter(small_bundle_folder, tmp_path / "bundle", label="noisy")
    sampler = build_sampler(bundle)
    (one,) = sampler.adapted
    assert one.label == "noisy"
    embedder = build_embedder(bundle)
    for label in bundle.preset.labels:
        found = sampler.unet_for(embedder.embed_label(label))
        assert found is (one.unet if label == "noisy" else sampler.unet), label
    for unknown in (None, torch.zeros(32)):
        assert sampler.unet_for(unknown) is sampler.unet
    plain = build_unet(load_bundle(small_bundle_folder)).state_dict()
    assert all(torch.equal(plain[n], t) for n, t in build_unet(bundle).state_dict().items())


def test_a_picture_has_the_damage_that_is_nearest() -> None:
    near, others = torch.tensor([1.0, 0.2, 0.0]), torch.tensor([[0.0, 1.0, 0.0], [0.8, 0.6, 0.0]])
    one = Damage(near, others)
    for f_D in (near, 3 * near, torch.tensor([1.0, 0.3, 0.5])):
        assert one.includes(f_D)
    for f_D in (*others, torch.tensor([0.9, 0.5, 0.0]), -near):
        assert not one.includes(f_D)


def test_adapters_that_are_there_stay(small_bundle_folder: Path, tmp_path: Path) -> None:
    bundle = with_adapter(small_bundle_folder, tmp_path / "bundle", label="noisy")
    before = count_parameters(bundle)["sampler"]
    unet = build_unet(bundle)
    save_adapters(bundle.folder, {"rainy": adapter(unet, CONV, VECTOR)}, release="small-3")
    both = load_bundle(bundle.folder)
    assert both.release == "small-3" and both.metrics == {}
    assert [one.label for one in build_sampler(both).adapted] == ["noisy", "rainy"]
    assert count_parameters(both)["sampler"] > before


def test_one_that_does_not_fit_spoils_nothing(small_bundle_folder: Path, tmp_path: Path) -> None:
    bundle = with_adapter(small_bundle_folder, tmp_path / "bundle", label="noisy")
    wrong = replace(adapter(build_unet(bundle)), whole={VECTOR: torch.ones(1)})
    with pytest.raises(BundleError, match="does not fit"):
        save_adapters(bundle.folder, {"rainy": wrong}, release="small-3")
    assert load_bundle(bundle.folder).release == bundle.release


def test_a_sampler_names_the_networks_it_was_given(unet: UNet, small_bundle_folder: Path) -> None:
    config = load_bundle(small_bundle_folder).preset.sampler
    assert DiffusionSampler(unet, config).adapted == ()
    one = Adapted("noisy", adapter(unet).damage, unet)
    assert DiffusionSampler(unet, config, [one]).adapted == (one,)
