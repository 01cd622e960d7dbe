"""The restoring network."""

from vlmir.nn.adapters import Adapter, Damage, adapted, join_adapters, split_adapters
from vlmir.nn.unet import Conditioning, UNet, pad_to_multiple

__all__ = [
    "Adapter",
    "Conditioning",
    "Damage",
    "UNet",
    "adapted",
    "join_adapters",
    "pad_to_multiple",
    "split_adapters",
]
