"""Which way a network was quantized, and why not the better one."""

from typing import Any

LAYER_WISE = "layer by layer"
NNCF = "through NNCF"
FITTED = "with ModelOpt, block by block"
NEAREST = "with ModelOpt, to the nearest"
FLOAT = "floating point"
TRAINED = "in the ranges that the model was trained with"
_BETTER = {
    NNCF: "not layer by layer, which is faster and closer (docs/quantization.md)",
    NEAREST: "not block by block, which is closer",
}


def path_sentence(quantization: dict[str, Any] | None) -> str | None:
    """One line on the way that was taken, from what goes into the manifest; None where nothing was quantized."""
    path = (quantization or {}).get("path")
    if path is None:
        return None
    assert quantization is not None
    reason = quantization.get("path_reason")
    why = "" if reason is None else f" ({_BETTER[path]}: {reason})"
    factor = quantization["recipe"].get("merge_tokens", 1)
    merged = "" if factor == 1 else f", tokens merged for {factor:g} times less work in its blocks"
    return f"quantized {path}{why}, recipe {quantization['recipe']['name']}{merged}"
