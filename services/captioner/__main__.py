"""Run ``python -m services.captioner --port 50061``.

Every flag can also be an environment variable, such as ``VLMIR_PORT``.
"""

from __future__ import annotations

import sys

from services.captioner.server import CaptionerSettings, serve
from services.common.main import run_service

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run_service(CaptionerSettings, serve))
