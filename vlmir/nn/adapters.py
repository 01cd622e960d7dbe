"""Changes of the network's weights for one kind of damage each.

One network for every damage shares among them what it can hold. An adapter says by how much the weights should differ
for one of them, in an eighth of the bytes of a network: in eight bits a number at the levels of highest resolution, by
the sign alone at the others (BitDelta, Liu et al. 2024, arXiv 2402.10193), each with a scale for every output channel.
Like everything that steers the network it is chosen by f_D: where that is nearer to what is typical of this damage than
to what is typical of any other.

In a file of weights an adapter's tensors are named ``adapters.LABEL.f_D``, ``adapters.LABEL.others``, and, for what an
:class:`Adapter` holds of a parameter, such as ``adapters.LABEL.codes.PARAMETER``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmir.errors import BundleError
from vlmir.nn.unet import UNet

__all__ = ["Adapter", "Damage", "adapted", "join_adapters", "split_adapters"]

_PREFIX = "adapters."
_KINDS = ("whole", "codes", "signs", "scales")


class Damage(NamedTuple):
    """One kind of damage among others."""

    f_D: Tensor
    """Its typical embedding, D."""
    others: Tensor
    """Those of the other kinds, (K - 1)×D."""

    @classmethod
    def of(cls, typical_KD: Tensor, number: int) -> Damage:
        """The kind of that number, of the typical embeddings of all."""
        return cls(typical_KD[number], torch.cat([typical_KD[:number], typical_KD[number + 1 :]]))

    def includes(self, f_D: Tensor) -> bool:
        """Whether a picture's damage (D) is nearer, by the cosine, to this kind than to any other."""
        typical = torch.cat([self.f_D[None], self.others]).to(f_D)
        likeness = F.cosine_similarity(typical, f_D[None])
        return bool(likeness[0] > likeness[1:].max())


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """What the weights for one kind of damage have more than those for all."""

    damage: Damage
    whole: Mapping[str, Tensor]
    """Parameter → what is added to it, in its own shape; so it is of vectors."""
    codes: Mapping[str, Tensor]
    """Parameter → the same as whole numbers (int8, in its own shape), to be multiplied by its scales."""
    signs: Mapping[str, Tensor]
    """Parameter → the same as signs, eight in a byte (uint8), 1 for plus."""
    scales: Mapping[str, Tensor]
    """Parameter of codes or signs → a factor for each output channel."""

    @property
    def changed(self) -> set[str]:
        """The parameters that it changes."""
        return {*self.whole, *self.codes, *self.signs}

    def change(self, name: str, shape: torch.Size) -> Tensor | None:
        """What is added to a parameter of that shape, float32; None: nothing.

        Raises:
            BundleError: It has another shape.
        """
        if name not in self.changed:
            return None
        try:
            if name in self.whole:
                return self.whole[name].float().reshape(shape)
            scale = self.scales[name].float().reshape(shape[0], 1)
            if name in self.codes:
                steps = self.codes[name].float().reshape(shape[0], -1)
            else:
                bits = np.unpackbits(self.signs[name].numpy())[: shape.numel()]
                steps = 2 * torch.from_numpy(bits).float().reshape(shape[0], -1) - 1
            return (scale * steps).reshape(shape)
        except (RuntimeError, ValueError) as error:
            raise BundleError(f"The adapter's change of {name} does not fit {[*shape]}.") from error


def split_adapters(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Adapter]]:
    """The network's own tensors in a file of weights, and label → adapter.

    Raises:
        BundleError: An adapter lacks its embeddings or scales.
    """
    own = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
    told = dict[str, dict[str, dict[str, Tensor]]]()
    for name in state.keys() - own.keys():
        label, kind, parameter = (*name.removeprefix(_PREFIX).split(".", 2), "", "")[:3]
        told.setdefault(label, {}).setdefault(kind, {})[parameter] = state[name]
    return own, {label: _adapter(label, parts) for label, parts in sorted(told.items())}


def _adapter(label: str, parts: dict[str, dict[str, Tensor]]) -> Adapter:
    f_D, others = (parts.get(kind, {}).get("") for kind in Damage._fields)
    held = {kind: parts.get(kind, {}) for kind in _KINDS}
    scaled = held["codes"].keys() | held["signs"].keys()
    unknown = parts.keys() - {*_KINDS, *Damage._fields}
    if f_D is None or others is None or unknown or held["scales"].keys() != scaled:
        raise BundleError(f"The adapter for {label} is incomplete, or of another version.")
    return Adapter(damage=Damage(f_D, others), **held)


def join_adapters(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Adapters by label → the tensors of a file of weights; the reverse of :func:`split_adapters`."""
    tensors = dict[str, Tensor]()
    for label, adapter in adapters.items():
        prefix = f"{_PREFIX}{label}."
        tensors |= {f"{prefix}{name}": own for name, own in adapter.damage._asdict().items()}
        for kind in _KINDS:
            held = getattr(adapter, kind)
            tensors |= {f"{prefix}{kind}.{name}": tensor for name, tensor in held.items()}
    return tensors


def adapted(unet: UNet, own: Mapping[str, Tensor], adapter: Adapter) -> UNet:
    """A network with an adapter's changes made, which shares all other weights with ``unet``.

    Args:
        unet: The network for all kinds of damage, wherever it runs and in whichever type.
        own: Its weights before they were rounded to that type.
        adapter: The changes.

    Raises:
        BundleError: The adapter changes parameters that are not there, or by another shape.
    """
    parameters = dict(unet.named_parameters())
    unknown = sorted(adapter.changed - {*parameters})
    if unknown:
        raise BundleError(f"An adapter changes what the network has not: {', '.join(unknown[:3])}.")
    changed = {name: old for name, old in parameters.items() if name in adapter.changed}
    known = {id(old): old for old in parameters.values()}
    places = _side_by_side(list(changed.values()))
    for (name, old), place in zip(changed.items(), places, strict=True):
        change = adapter.change(name, old.shape)
        assert change is not None
        place.copy_(own[name].float() + change)
        known[id(old)] = nn.Parameter(place, requires_grad=old.requires_grad)
    return copy.deepcopy(unet, known)  # told its parameters, it copies none


def _side_by_side(like: Sequence[Tensor]) -> list[Tensor]:
    """New tensors of the shapes and strides of others, in one block of memory: many small ones would leave holes."""
    if not like:
        return []
    lengths = [-(-tensor.numel() // _ALIGNED) * _ALIGNED for tensor in like]
    block = like[0].new_empty(sum(lengths), requires_grad=False)
    parts = torch.split(block, lengths)
    return [
        part.as_strided(tensor.shape, tensor.stride(), part.storage_offset())
        for part, tensor in zip(parts, like, strict=True)
    ]


_ALIGNED = 32
"""Numbers of at least two bytes: where each begins is a multiple of 64 bytes, as kernels like it."""
