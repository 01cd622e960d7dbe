"""The restoring network."""

from vlmir.nn.unet import Conditioning, UNet

__all__ = ["Conditioning", "UNet"]
