"""Training: pretraining of ``tiny``'s language models, then the paper's two stages."""

__all__: list[str] = []
