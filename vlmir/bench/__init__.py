"""How fast this machine, or a server, is: ``vlmir bench``.

Candidates are timed in turns within one run, so that other load hits all alike; times are medians, and ratios are
medians of the turns' ratios.
"""

from __future__ import annotations

from vlmir.bench.network import load_networks, measure_batches, measure_evaluation
from vlmir.bench.restoring import measure_growth, measure_reference, measure_restoring
from vlmir.bench.service import measure_service
from vlmir.bench.starting import measure_start

__all__ = [
    "load_networks",
    "measure_batches",
    "measure_evaluation",
    "measure_growth",
    "measure_reference",
    "measure_restoring",
    "measure_service",
    "measure_start",
]
