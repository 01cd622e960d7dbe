"""The gateway: TLS, tokens, deadlines and limits in front of a restorer that has none, such as one on Ray Serve."""

__all__: list[str] = []
