"""What a server tells its operators: metrics, traces and log lines."""

__all__: list[str] = []
