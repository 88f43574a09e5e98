"""The names of TensorRT's Python API that our code uses, against the names that each library has.

`tensorrt` cannot be installed where it has no GPU; `tensorrt_api/*.json` record the names that its bindings define,
with their source. TensorRT-RTX is asked itself.
"""

import ast
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from atlas_edge.export.engine import child as tensorrt_child
from atlas_edge.runtimes import tensorrt, tensorrt_engine

RECORDS = sorted((Path(__file__).parent / "tensorrt_api").glob("*.json"))

# Expressions in our code -> the class of TensorRT that they hold ("" is the module).
HOLDS: dict[ModuleType, dict[str, str]] = {
    tensorrt_child: {
        "trt": "",
        "builder": "Builder",
        "network": "INetworkDefinition",
        "parser": "OnnxParser",
        "error": "ParserError",
        "config": "IBuilderConfig",
        "flag": "BuilderFlag",
        "trt.BuilderFlag": "BuilderFlag",
        "trt.HardwareCompatibilityLevel": "HardwareCompatibilityLevel",
        "trt.NetworkDefinitionCreationFlag": "NetworkDefinitionCreationFlag",
        "trt.ILogger": "ILogger",
        "profile": "IOptimizationProfile",
        "tiles": "ITensor",
        "config.get_timing_cache()": "ITimingCache",
    },
    tensorrt_engine: {
        "trt": "",
        "self._trt": "",
        "trt.TensorIOMode": "TensorIOMode",
        "trt.ILogger": "ILogger",
        "self._runtime": "Runtime",
        "self._engine": "ICudaEngine",
        "engine": "ICudaEngine",
        "refitter": "Refitter",
        "parser": "OnnxParserRefitter",
    },
    tensorrt: {"self._context": "IExecutionContext"},
}
# Only reached for a library whose `TensorRTLibrary` has the field that guards them.
RTX_ONLY = {("", "ComputeCapability"), ("", "CudaGraphStrategy"), ("ICudaEngine", "create_runtime_config")}
RTX_ONLY |= {("IBuilderConfig", "num_compute_capabilities"), ("IBuilderConfig", "set_compute_capability")}
RTX_CONFIG = {"create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"}
# Removed in 11 (NVIDIA's "Removed Python APIs and Replacements" for 10.x to 11.x) or in 10.
REMOVED = {
    "FP16",
    "BF16",
    "INT8",
    "FP8",
    "INT4",
    "FP4",
    "OBEY_PRECISION_CONSTRAINTS",
    "PREFER_PRECISION_CONSTRAINTS",
    "DIRECT_IO",
    "EXPLICIT_BATCH",
    "int8_calibrator",
    "set_calibration_profile",
    "get_calibration_profile",
    "set_quantization_flag",
    "quantization_flags",
    "device_memory_size",
    "build_engine",
    "max_workspace_size",
    "execute_async_v2",
    "get_binding_index",
    "get_binding_shape",
    "set_binding_shape",
    "platform_has_fast_fp16",
    "platform_has_fast_int8",
    "add_plugin_v2",
}


def used_names() -> set[tuple[str, str]]:
    """(class, name) of every attribute that our code reads of a TensorRT object."""
    found = set()
    for module, holds in HOLDS.items():
        for node in ast.walk(ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute):
                kind = holds.get(ast.unparse(node.value))
                if kind is not None and not node.attr.startswith("__"):
                    found.add((kind, node.attr))
    return found


def test_the_walk_sees_what_is_there() -> None:
    used = used_names()
    assert {
        ("Builder", "build_serialized_network"),
        ("BuilderFlag", "STRIP_PLAN"),
        ("IBuilderConfig", "hardware_compatibility_level"),
        ("IExecutionContext", "execute_async_v3"),
        ("ICudaEngine", "get_tensor_profile_shape"),
        ("OnnxParserRefitter", "refit_from_file"),
    } <= used
    assert len(used) > 50
    assert used >= RTX_ONLY


@pytest.mark.parametrize("record", RECORDS, ids=[path.stem for path in RECORDS])
def test_every_name_exists_in_enterprise_tensorrt(record: Path) -> None:
    recorded: dict[str, Any] = json.loads(record.read_text())
    names = recorded["names"]
    assert "NVIDIA/TensorRT commit" in recorded["source"]
    assert sorted((k, n) for k, n in used_names() - RTX_ONLY if n not in names[k]) == []


def test_every_name_exists_in_tensorrt_rtx() -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    missing = [(k, n) for k, n in used_names() if not hasattr(getattr(trt, k) if k else trt, n)]
    assert missing == []
    assert [name for name in RTX_CONFIG if not hasattr(trt.IRuntimeConfig, name)] == []


@pytest.mark.parametrize("module", list(HOLDS), ids=lambda module: module.__name__)
def test_no_removed_name_is_used(module: ModuleType) -> None:
    tree = ast.parse(Path(str(module.__file__)).read_text(encoding="utf-8"))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert names & REMOVED == set()
