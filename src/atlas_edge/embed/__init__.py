"""From a slide to the embeddings of its tissue tiles."""

from atlas_edge.embed.slide import EmbedConfig, SlideResult, embed_slide

__all__ = ["EmbedConfig", "SlideResult", "embed_slide"]
