"""From a slide to the embeddings of its tissue tiles."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_edge.embed.config import EmbedConfig
    from atlas_edge.embed.slide import SlideResult, embed_slide

__all__ = ["EmbedConfig", "SlideResult", "embed_slide"]


def __getattr__(name: str) -> Any:
    # Imported at first use: the command's --help needs neither numpy nor pydantic.
    if name in __all__:
        return getattr(importlib.import_module(f"{__name__}.slide"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
