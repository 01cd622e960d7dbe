"""Run ``python -m services.embedder --port 50062``.

Every flag can also be an environment variable, such as ``VLMIR_PORT``.
"""

from __future__ import annotations

import sys

from services.common.main import run_service
from services.embedder.server import serve
from services.embedder.settings import EmbedderSettings

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(run_service(EmbedderSettings, serve))
