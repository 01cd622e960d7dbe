"""libvips, the imaging library: set up once, at first use."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

__all__ = ["DEFAULT_DPI", "MM_PER_INCH", "libvips"]

MM_PER_INCH = 25.4
"""libvips counts resolution in pixels per millimetre."""

DEFAULT_DPI = 72.0
"""Written where a picture says nothing of its resolution."""


@cache
def libvips() -> Any:
    """The binding, told to keep nothing: a server must not hold on to pictures it has served."""
    import pyvips

    # What libvips warns of is raised here as an error; without a handler it would reach stderr too.
    logging.getLogger("pyvips").addHandler(logging.NullHandler())
    pyvips.cache_set_max(0)
    return pyvips
