"""The restorer: the service that callers talk to."""

__all__: list[str] = []
