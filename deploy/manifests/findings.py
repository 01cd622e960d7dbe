"""What is wrong with manifests."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Finding"]


@dataclass(frozen=True, order=True)
class Finding:
    """One fault."""

    rule: str
    """Name of the rule that is broken."""
    where: str
    """Kind and name of the object."""
    what: str
    """What is wrong, in a sentence."""

    def __str__(self) -> str:
        """In one line."""
        return f"{self.where}: {self.what} [{self.rule}]"
