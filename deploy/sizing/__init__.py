"""From a stated load to replicas, and where it gets tight: ``python -m deploy.sizing --images-per-s 100``."""

from deploy.sizing.model import HARDWARE, QUALITIES, Load, Part, Sizing, size

__all__ = ["HARDWARE", "QUALITIES", "Load", "Part", "Sizing", "size"]
