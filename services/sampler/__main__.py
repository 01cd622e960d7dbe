"""Run ``python -m services.sampler --port 50063``; a flag can also be a variable such as VLMIR_PORT."""

from __future__ import annotations

import sys

from services.common.main import run_service
from services.sampler.server import serve
from services.sampler.settings import SamplerSettings

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run_service(SamplerSettings, serve))
