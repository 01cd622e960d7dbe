"""How close a restored picture is to the true one."""

from __future__ import annotations

from vlmir.metrics.fidelity import Fidelity, fidelity, psnr, psnr_y, ssim, ssim_y

__all__ = ["Fidelity", "fidelity", "psnr", "psnr_y", "ssim", "ssim_y"]
