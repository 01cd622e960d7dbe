"""The gRPC services: transport around the library, nothing computed here."""

__all__: list[str] = []
