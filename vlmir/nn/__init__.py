"""The restoring network."""

from vlmir.nn.unet import Conditioning, UNet, pad_to_multiple

__all__ = ["Conditioning", "UNet", "pad_to_multiple"]
