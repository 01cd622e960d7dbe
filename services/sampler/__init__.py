"""The sampler: draws the restored picture, many requests in each network call."""

__all__: list[str] = []
