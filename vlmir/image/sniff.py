"""Which file format do these bytes begin with."""

from __future__ import annotations

from vlmir.errors import ImageError

__all__ = ["sniff_format"]

_READABLE = {
    "png": (b"\x89PNG\r\n\x1a\n",),
    "jpeg": (b"\xff\xd8\xff",),
    "tiff": (b"II*\0", b"MM\0*", b"II+\0\x08\0\0\0", b"MM\0+\0\x08\0\0"),
}

# Only so that the message can say what the caller sent instead.
_FOREIGN = {
    "a GIF": (b"GIF87a", b"GIF89a"),
    "a BMP": (b"BM",),
    "a PDF": (b"%PDF",),
    "a ZIP archive": (b"PK\x03\x04", b"PK\x05\x06"),
    "a gzip archive": (b"\x1f\x8b",),
    "a Photoshop file": (b"8BPS",),
    "a JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "a JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "an OpenEXR": (b"\x76\x2f\x31\x01",),
    "a RIFF file other than WebP": (b"RIFF",),
}


def sniff_format(data: bytes) -> str:
    """Name of the format, one of `FORMATS`, judged by the first bytes and never by a file name.

    Raises:
        ImageError: There are no bytes, or they begin no readable format.
    """
    if not data:
        raise ImageError("The image is empty (0 bytes).")
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    for name, starts in _READABLE.items():
        if data.startswith(starts):
            return name
    raise ImageError(f"This is {_describe(data[:512])}, not a PNG, JPEG, WebP or TIFF image.")


def _describe(head: bytes) -> str:
    for name, starts in _FOREIGN.items():
        if head.startswith(starts):
            return name
    if head[4:8] == b"ftyp":
        return "a HEIF, AVIF or video file"
    if b"<svg" in head:
        return "an SVG"
    # A cut multi-byte character at the end must not turn text into binary data.
    text = head.decode("utf-8", errors="ignore")
    if len(text.encode()) >= len(head) - 3 and (text.isprintable() or "\n" in text):
        return "a text file"
    return "unknown binary data"
