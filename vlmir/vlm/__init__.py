"""The vision-language models: BLIP, which captions, and CLIP, which embeds content, caption and damage."""

__all__: list[str] = []
