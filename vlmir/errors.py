"""The exceptions of the library, one tree.

::

    VlmirError
    ├── InputError               the caller's input is at fault
    │   ├── ImageError           bytes that are no readable image
    │   ├── LimitError           more bytes or pixels than allowed
    │   └── OptionError          an option unknown or out of range
    ├── BundleError              weights missing, corrupt, foreign or mismatched
    ├── UnavailableError         a stage, hub or service cannot be reached
    │   └── ReleaseError         a service does not hold the weights asked for
    ├── OverloadedError          no room now; try again later
    ├── DeadlineError            the time budget ran out
    └── RestorationCancelled     the caller cancelled

Every message is one sentence that names the fault and, where the caller can mend it, says how.
"""

from __future__ import annotations

__all__ = [
    "BundleError",
    "DeadlineError",
    "ImageError",
    "InputError",
    "LimitError",
    "OptionError",
    "OverloadedError",
    "ReleaseError",
    "RestorationCancelled",
    "UnavailableError",
    "VlmirError",
]


class VlmirError(Exception):
    """Root of every error this library raises on purpose."""


class InputError(VlmirError):
    """The caller's input is at fault; the same call will fail again."""


class ImageError(InputError):
    """The bytes are no readable image: empty, truncated, of another type, or unsupported."""


class LimitError(InputError):
    """The image has more bytes or pixels than the limits allow."""


class OptionError(InputError):
    """An option is unknown, out of range, or contradicts another."""


class BundleError(VlmirError):
    """A weights folder is missing, corrupt, foreign, or does not match its digests."""


class UnavailableError(VlmirError):
    """A stage, model hub or service cannot be reached at present."""


class ReleaseError(UnavailableError):
    """A service does not hold the release of the weights that a call asks for, or not any more."""


class OverloadedError(VlmirError):
    """There is no room for the request now.

    Args:
        message: What is full.
        retry_after_s: Seconds after which a new try is sensible, at least 0.
    """

    def __init__(self, message: str, *, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineError(VlmirError):
    """The caller's time budget ran out before the picture was restored."""


class RestorationCancelled(VlmirError):
    """The caller cancelled the restoration."""
