"""What the sensor adds: Gaussian noise, and the darkness and grain of a low-light exposure."""

from __future__ import annotations

import numpy as np

from vlmir.degradations.fields import Pixels, lerp, quantise, to_display, to_linear

__all__ = ["gaussian_noise", "low_light", "noisy"]


def gaussian_noise(pixels: Pixels, sigma: float, rng: np.random.Generator) -> Pixels:
    """Add white Gaussian noise, then clip and round as an 8-bit file would.

    Args:
        pixels: H×W×3, RGB, 0…1, display-encoded.
        sigma: Standard deviation on the 0…255 scale.
        rng: Source of the noise.

    Returns:
        H×W×3, 0…1, on the 256 levels of an 8-bit file.
    """
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return quantise(pixels + noise * np.float32(sigma / 255.0))


def noisy(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Gaussian noise of sigma 15 (strength 0) over 50 (0.5) to 85 (1), on the 0…255 scale."""
    return gaussian_noise(pixels, 15.0 + 70.0 * strength, rng)


def low_light(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Short exposure in linear light with signal-dependent noise, then display encoding.

    The noise is Poissonian-Gaussian with variance a·x + b (Foi et al. 2008): photon noise of a full
    well of `electrons`, plus read noise.
    """
    brightest = rng.uniform(0.8, 1.25)
    exposure = 0.35 * (0.015 / 0.35) ** strength * brightest
    gamma = rng.uniform(1.0, 1.25)  # a camera's darker tone curve
    electrons = rng.uniform(4000.0, 12000.0)
    read_noise = lerp(0.0005, 0.0025, strength)
    light = to_linear(pixels) ** np.float32(gamma) * np.float32(exposure)
    deviation = np.sqrt(light / np.float32(electrons) + np.float32(read_noise**2))
    noise = rng.standard_normal(pixels.shape, dtype=np.float32)
    return to_display(light + noise * deviation)
