"""Pictures made by other libraries, so that the codec is not tested against itself."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from PIL import ExifTags
from PIL import Image as Pil

Levels = npt.NDArray[Any]


def levels(*shape: int, dtype: Any = np.uint8, seed: int = 0) -> Levels:
    """Random samples over the whole range."""
    top = np.iinfo(dtype).max
    return np.random.default_rng(seed).integers(0, top, shape, dtype=dtype, endpoint=True)


def pil(picture: Pil.Image, format: str, **options: Any) -> bytes:
    """Encoded by Pillow."""
    out = io.BytesIO()
    picture.save(out, format, **options)
    return out.getvalue()


def tiff(array: Levels, **options: Any) -> bytes:
    """Encoded by tifffile."""
    out = io.BytesIO()
    tifffile.imwrite(out, array, **options)
    return out.getvalue()


def photo_exif(orientation: int = 1) -> Pil.Exif:
    """A camera's tags, with date, maker note and place."""
    exif = Pil.Exif()
    exif[ExifTags.Base.Make] = "Camera & Sons"
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.DateTime] = "2020:01:02 03:04:05"
    exif[ExifTags.Base.Copyright] = "Somebody"
    exif[ExifTags.IFD.Exif] = {
        ExifTags.Base.DateTimeOriginal: "2020:01:02 03:04:05",
        ExifTags.Base.ExposureTime: 0.004,
        ExifTags.Base.MakerNote: b"secret\0\x01\x02" * 5,
    }
    exif[ExifTags.IFD.GPSInfo] = {
        ExifTags.GPS.GPSLatitudeRef: "N",
        ExifTags.GPS.GPSLatitude: (48.0, 1.0, 2.5),
    }
    # Pillow's TIFF writer takes nested directories only from a block that was read.
    loaded = Pil.Exif()
    loaded.load(exif.tobytes())
    return loaded


def read_tags(encoded: bytes) -> dict[str, Any]:
    """What a viewer sees of `photo_exif` in an encoded file, by name."""
    exif = Pil.open(io.BytesIO(encoded)).getexif()
    camera, place = exif.get_ifd(ExifTags.IFD.Exif), exif.get_ifd(ExifTags.IFD.GPSInfo)
    exposure = camera.get(ExifTags.Base.ExposureTime)
    return {
        "make": exif.get(ExifTags.Base.Make),
        "orientation": exif.get(ExifTags.Base.Orientation, 1),
        "date": exif.get(ExifTags.Base.DateTime),
        "copyright": exif.get(ExifTags.Base.Copyright),
        "taken": camera.get(ExifTags.Base.DateTimeOriginal),
        "exposure": None if exposure is None else float(exposure),
        "note": camera.get(ExifTags.Base.MakerNote),
        "latitude": tuple(map(float, place.get(ExifTags.GPS.GPSLatitude, ()))),
    }


def exif_with_thumbnail(thumbnail: bytes) -> bytes:
    """An EXIF block of an orientation tag (6) and a JPEG thumbnail."""
    first = struct.pack("<HHHIHHI", 1, 0x112, 3, 1, 6, 0, 8 + 18)
    at = 8 + 18 + 42
    entries = struct.pack("<HHIHH", 0x103, 3, 1, 6, 0)
    entries += struct.pack("<HHIIHHII", 0x201, 4, 1, at, 0x202, 4, 1, len(thumbnail))
    second = struct.pack("<H", 3) + entries + bytes(4)
    return b"Exif\0\0II*\0\x08\0\0\0" + first + second + thumbnail


def grey_profile() -> bytes:
    """A minimal ICC profile for grey of gamma 1.8."""
    white = struct.pack(">3i", 0xF6D6, 0x10000, 0xD32D)
    bodies = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"grey\0" + bytes(79),
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"kTRC": b"curv" + bytes(4) + struct.pack(">IHH", 1, round(1.8 * 256), 0),
        b"cprt": b"text" + bytes(4) + b"none" + bytes(4),
    }
    table, start = struct.pack(">I", len(bodies)), 128 + 4 + 12 * len(bodies)
    for name, body in bodies.items():
        table += name + struct.pack(">II", start, len(body))
        start += len(body)
    header = struct.pack(">I4xI", start, 0x02400000) + b"mntrGRAYXYZ "
    header += struct.pack(">6H", 2020, 1, 1, 0, 0, 0) + b"acsp" + bytes(28) + white
    return header.ljust(128, b"\0") + table + b"".join(bodies.values())


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds next to nothing: a bomb."""

    def chunk(name: bytes, body: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + body))
        return struct.pack(">I", len(body)) + name + body + checksum

    ihdr = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", ihdr) + chunk(b"IDAT", body) + chunk(b"IEND", b"")
