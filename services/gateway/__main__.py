"""Run ``python -m services.gateway --port 50050 --upstream HOST:PORT``.

Every flag can also be an environment variable, such as ``VLMIR_UPSTREAM``.
"""

from __future__ import annotations

import sys

from services.common.main import run_service
from services.gateway.server import GatewaySettings, serve

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run_service(GatewaySettings, serve))
