"""Restore degraded photos with a diffusion model guided by a vision-language model.

::

    from vlmir import Restorer, RestoreOptions

    restorer = Restorer.load()
    restored = restorer.restore(Path("photo.jpg"), RestoreOptions(seed=1))
    restored.save(Path("restored.jpg"))

The names below are imported at first use: ``import vlmir`` itself loads neither PyTorch nor NumPy.
"""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vlmir.errors import VlmirError
    from vlmir.image import Image, Limits
    from vlmir.pipeline import (
        Inspection,
        Progress,
        Report,
        Restoration,
        RestoreOptions,
        Restorer,
    )

__all__ = [
    "Image",
    "Inspection",
    "Limits",
    "Progress",
    "Report",
    "Restoration",
    "RestoreOptions",
    "Restorer",
    "VlmirError",
    "__version__",
]

__version__ = "0.1.0"

_HOME = MappingProxyType(
    {
        "Image": "vlmir.image",
        "Inspection": "vlmir.pipeline",
        "Limits": "vlmir.image",
        "Progress": "vlmir.pipeline",
        "Report": "vlmir.pipeline",
        "Restoration": "vlmir.pipeline",
        "RestoreOptions": "vlmir.pipeline",
        "Restorer": "vlmir.pipeline",
        "VlmirError": "vlmir.errors",
    }
)

if not TYPE_CHECKING:  # a type checker would take any name for granted

    def __getattr__(name: str) -> object:
        """Import a public name at first use (PEP 562)."""
        if name not in _HOME:
            raise AttributeError(f"module 'vlmir' has no attribute {name!r}")
        value = getattr(import_module(_HOME[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
