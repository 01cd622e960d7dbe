"""What a file format takes away: JPEG compression."""

from __future__ import annotations

import cv2
import numpy as np

from vlmir.degradations.fields import Pixels

__all__ = ["jpeg_compressed"]


def jpeg_compressed(pixels: Pixels, strength: float, rng: np.random.Generator) -> Pixels:
    """Encode and decode with a real JPEG codec, quality 40 (strength 0) over 14 (0.5) to 5 (1).

    Half of the pictures have their colour stored at half resolution (4:2:0), as most cameras do.
    """
    quality = round(40.0 * (5.0 / 40.0) ** strength)
    halved = rng.random() < 0.5
    sampling = (
        cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if halved else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    )
    levels = np.rint(pixels * np.float32(255.0)).astype(np.uint8)
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    _, data = cv2.imencode(".jpg", cv2.cvtColor(levels, cv2.COLOR_RGB2BGR), options)
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR))[..., ::-1]
    return np.asarray(decoded / np.float32(255.0), dtype=np.float32)
