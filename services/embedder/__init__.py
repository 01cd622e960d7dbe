"""The embedder: turns pictures and captions into the conditions that steer the sampler."""

__all__: list[str] = []
