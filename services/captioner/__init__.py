"""The captioner: says in words what a picture shows."""

__all__: list[str] = []
