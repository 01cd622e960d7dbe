"""Architectures as data: one JSON file each, read by :func:`vlmir.config.load_preset`."""

__all__: list[str] = []
