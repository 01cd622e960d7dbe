"""What every service shares: server, errors, interceptors, settings, work queue, wire formats."""

__all__: list[str] = []
