"""Updates of the network's weights for one kind of damage each (LoRA, Hu et al. 2021, arXiv 2106.09685).

One network for every damage shares among them what it can hold. An adapter says by how much the weights should differ
for one of them: of a matrix (a convolution's kernel counts as one, C_out × C_in·k·k) as a product of two thin ones, of
a vector as it is. Like everything that steers the network it is chosen by f_D: where that is nearer to what is typical
of this damage than to what is typical of any other.

In a file of weights an adapter's tensors are named ``adapters.LABEL.f_D``, ``adapters.LABEL.others``,
``adapters.LABEL.up.PARAMETER`` with ``adapters.LABEL.down.PARAMETER``, and ``adapters.LABEL.whole.PARAMETER``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmir.errors import BundleError
from vlmir.nn.unet import UNet

__all__ = ["Adapter", "Damage", "adapted", "join_adapters", "split_adapters"]

_PREFIX = "adapters."
_KINDS = {"f_D", "others", "up", "down", "whole"}


class Damage(NamedTuple):
    """One kind of damage among others."""

    f_D: Tensor
    """Its typical embedding, D."""
    others: Tensor
    """Those of the other kinds, (K - 1)×D."""

    def includes(self, f_D: Tensor) -> bool:
        """Whether a picture's damage (D) is nearer, by the cosine, to this kind than to any other."""
        typical = torch.cat([self.f_D[None], self.others]).to(f_D)
        likeness = F.cosine_similarity(typical, f_D[None])
        return bool(likeness[0] > likeness[1:].max())


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """What the weights for one kind of damage have more than those for all."""

    damage: Damage
    factors: Mapping[str, tuple[Tensor, Tensor]]
    """Parameter → up (C_out × r) and down (r × C_in·k·k), whose product is added to it."""
    whole: Mapping[str, Tensor]
    """Parameter → what is added to it, in its own shape."""

    def change(self, name: str, shape: torch.Size) -> Tensor | None:
        """What is added to a parameter of that shape, float32; None: nothing.

        Raises:
            BundleError: It has another shape.
        """
        if name in self.factors:
            up, down = (factor.float() for factor in self.factors[name])
            if up.ndim != 2 or down.ndim != 2 or up.shape[1] != down.shape[0]:
                raise BundleError(f"The factors of the adapter for {name} do not fit each other.")
            added = up @ down
        elif name in self.whole:
            added = self.whole[name].float()
        else:
            return None
        if added.numel() != shape.numel() or added.shape[0] != shape[0]:
            raise BundleError(
                f"The adapter changes {name} by {[*added.shape]}, which does not fit {[*shape]}."
            )
        return added.reshape(shape)


def split_adapters(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Adapter]]:
    """The network's own tensors in a file of weights, and label → adapter.

    Raises:
        BundleError: An adapter lacks its embeddings or one of two factors.
    """
    own = {name: tensor for name, tensor in state.items() if not name.startswith(_PREFIX)}
    told = dict[str, dict[str, dict[str, Tensor]]]()
    for name in state.keys() - own.keys():
        label, kind, parameter = (*name.removeprefix(_PREFIX).split(".", 2), "", "")[:3]
        told.setdefault(label, {}).setdefault(kind, {})[parameter] = state[name]
    return own, {label: _adapter(label, parts) for label, parts in sorted(told.items())}


def _adapter(label: str, parts: dict[str, dict[str, Tensor]]) -> Adapter:
    up, down, whole = (parts.get(kind, {}) for kind in ("up", "down", "whole"))
    f_D, others = (parts.get(kind, {}).get("") for kind in ("f_D", "others"))
    if f_D is None or others is None or up.keys() != down.keys() or parts.keys() - _KINDS:
        raise BundleError(f"The adapter for {label} is incomplete, or of another version.")
    factors = {name: (up[name], down[name]) for name in up}
    return Adapter(damage=Damage(f_D, others), factors=factors, whole=whole)


def join_adapters(adapters: Mapping[str, Adapter]) -> dict[str, Tensor]:
    """Adapters by label → the tensors of a file of weights; the reverse of :func:`split_adapters`."""
    tensors = dict[str, Tensor]()
    for label, adapter in adapters.items():
        prefix = f"{_PREFIX}{label}."
        tensors |= {f"{prefix}{name}": own for name, own in adapter.damage._asdict().items()}
        for name, (up, down) in adapter.factors.items():
            tensors |= {f"{prefix}up.{name}": up, f"{prefix}down.{name}": down}
        tensors |= {f"{prefix}whole.{name}": tensor for name, tensor in adapter.whole.items()}
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
    unknown = sorted({*adapter.factors, *adapter.whole} - {*parameters})
    if unknown:
        raise BundleError(f"An adapter changes what the network has not: {', '.join(unknown[:3])}.")
    known = dict[int, nn.Parameter]()
    for name, old in parameters.items():
        change = adapter.change(name, old.shape)
        if change is None:
            known[id(old)] = old
        else:
            new = torch.empty_like(old, requires_grad=False).copy_(own[name].float() + change)
            known[id(old)] = nn.Parameter(new, requires_grad=old.requires_grad)
    return copy.deepcopy(unet, known)  # told its parameters, it copies none
