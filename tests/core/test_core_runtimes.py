"""One contract for every runtime."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

pytest.importorskip("torch")

from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.graph import export_onnx, largest_difference
from atlas_edge.models import LoadedModel, load_model
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.openvino import OpenVinoEncoder
from atlas_edge.runtimes.torch import TorchEncoder

Make = Callable[[LoadedModel, Path, Path], Encoder]

RUNTIMES: dict[str, Make] = {
    "torch": lambda model, dynamic, static: TorchEncoder(model.module, model.spec),
    "onnx": lambda model, dynamic, static: OnnxEncoder(dynamic, model.spec),
    "onnx, batch 4": lambda model, dynamic, static: OnnxEncoder(static, model.spec),
    "openvino": lambda model, dynamic, static: OpenVinoEncoder(dynamic, model.spec),
    "openvino, batch 4": lambda model, dynamic, static: OpenVinoEncoder(dynamic, model.spec, batch=4),
    "openvino, two streams": lambda model, dynamic, static: OpenVinoEncoder(dynamic, model.spec, batch=4, streams=2),
    "openvino, one thread": lambda model, dynamic, static: OpenVinoEncoder(dynamic, model.spec, threads=1),
}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def graphs(model: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("graphs")
    dynamic = export_onnx(model.module, model.spec, folder / "dynamic.onnx")
    return dynamic, export_onnx(model.module, model.spec, folder / "static.onnx", batch=4)


@pytest.fixture(params=list(RUNTIMES))
def encoder(request: pytest.FixtureRequest, model: LoadedModel, graphs: tuple[Path, Path]) -> Encoder:
    return RUNTIMES[request.param](model, *graphs)


@pytest.mark.parametrize("count", [1, 4, 7, 16])
def test_agrees_with_pytorch(encoder: Encoder, model: LoadedModel, tiny_tiles: NDArray[np.uint8], count: int) -> None:
    import torch

    with torch.inference_mode():
        expected = model.module(torch.from_numpy(tiny_tiles[:count])).numpy()
    embedding = encoder.encode(tiny_tiles[:count])
    assert embedding.shape == (count, 64)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, expected, atol=2e-5)


def test_result_is_not_overwritten_by_the_next_call(encoder: Encoder, tiny_tiles: NDArray[np.uint8]) -> None:
    first = encoder.encode(tiny_tiles[:4])
    kept = first.copy()
    encoder.encode(tiny_tiles[4:8])
    np.testing.assert_array_equal(first, kept)


def test_takes_a_view(encoder: Encoder, tiny_tiles: NDArray[np.uint8]) -> None:
    flipped = tiny_tiles[:2, ::-1]
    np.testing.assert_array_equal(encoder.encode(flipped), encoder.encode(np.ascontiguousarray(flipped)))


@pytest.mark.parametrize("shape", [(2, 32, 32, 4), (2, 31, 32, 3), (32, 32, 3), (0, 32, 32, 3)])
def test_refuses_other_shapes(encoder: Encoder, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"expected \(B, 32, 32, 3\) uint8"):
        encoder.encode(np.zeros(shape, dtype=np.uint8))


def test_follows_the_protocol(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    assert encoder.runtime
    encoder.close()
    encoder.close()


def test_graph_casts_before_it_transposes(graphs: tuple[Path, Path]) -> None:
    import onnx

    graph = onnx.load(graphs[0])
    onnx.checker.check_model(graph, full_check=True)
    first = {node.op_type for node in graph.graph.node if "tiles" in node.input}
    assert first - {"Shape"} == {"Cast"}
    assert [(x.name, x.type.tensor_type.elem_type) for x in graph.graph.input] == [("tiles", onnx.TensorProto.UINT8)]
    assert [x.name for x in graph.graph.output] == ["embedding"]
    assert sum(node.op_type == "LayerNormalization" for node in graph.graph.node) == 5


def test_graph_names_no_file_of_this_machine(graphs: tuple[Path, Path]) -> None:
    for path in graphs:
        assert b"site-packages" not in path.read_bytes()
        assert str(Path.home()).encode() not in path.read_bytes()


def test_difference_is_measured(
    model: LoadedModel, graphs: tuple[Path, Path], tiny_tiles: NDArray[np.uint8], tmp_path: Path
) -> None:
    import onnx

    assert largest_difference(model.module, graphs[0], tiny_tiles[:4]) < 1e-9
    graph = onnx.load(graphs[0])
    weight = max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = (np.frombuffer(weight.raw_data, np.float32) * np.float32(1.5)).tobytes()
    onnx.save(graph, tmp_path / "broken.onnx")
    assert largest_difference(model.module, tmp_path / "broken.onnx", tiny_tiles[:4]) > 1e-5


@pytest.mark.parametrize("runtime", [OnnxEncoder, OpenVinoEncoder])
def test_file_that_is_no_model(runtime: type[OnnxEncoder], model: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"not a model")
    with pytest.raises(InputError, match="export the bundle again"):
        runtime(path, model.spec)
