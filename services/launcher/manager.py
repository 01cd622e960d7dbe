"""honcho with more patience: ``python -m services.launcher.manager -f PROCFILE start PART…``."""

from __future__ import annotations

from honcho import manager  # type: ignore[import-untyped]
from honcho.command import main  # type: ignore[import-untyped]

__all__: list[str] = []

# Seconds between SIGTERM and SIGKILL. Its five are few where all services end at once on two processors.
manager.KILL_WAIT = 40

if __name__ == "__main__":
    main()
