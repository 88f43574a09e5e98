"""One contract for every runtime: in float, in INT8, and on a stand-in for the GPU."""

import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from fake_gpu import Cudart, FakeTensorRT, embed
from numpy.typing import NDArray
from test_tensorrt_runtime import encoder as tensorrt_encoder

pytest.importorskip("torch")

from atlas_edge import open_bundle
from atlas_edge.encoder import Capabilities, Encoder
from atlas_edge.errors import InputError, RuntimeMissing, UsageError
from atlas_edge.models import graph
from atlas_edge.models.graph import export_onnx, largest_difference
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.runtimes.onnxruntime import OnnxEncoder
from atlas_edge.runtimes.openvino import DEFAULT_BATCH, OpenVinoEncoder
from atlas_edge.runtimes.torch import TorchEncoder
from atlas_edge.system.hardware import usable_cores


@dataclass(frozen=True)
class Files:
    """One model in the forms that runtimes open."""

    model: LoadedModel
    dynamic: Path
    static: Path
    int8: Path
    bundle: Path


# Each with the smallest cosine to the model itself, None for the stand-in, which has no model.
RUNTIMES: dict[str, tuple[Callable[[Files], Encoder], float | None]] = {
    "torch": (lambda files: TorchEncoder(files.model.module, files.model.spec), 1 - 1e-6),
    "onnx": (lambda files: OnnxEncoder(files.dynamic, files.model.spec), 1 - 1e-6),
    "onnx, batch 4": (lambda files: OnnxEncoder(files.static, files.model.spec), 1 - 1e-6),
    "onnx, int8": (lambda files: OnnxEncoder(files.int8, files.model.spec), 0.99),
    "openvino": (lambda files: OpenVinoEncoder(files.dynamic, files.model.spec), 1 - 1e-6),
    "openvino, batch 4": (lambda files: OpenVinoEncoder(files.dynamic, files.model.spec, batch=4), 1 - 1e-6),
    "openvino, two streams": (
        lambda files: OpenVinoEncoder(files.dynamic, files.model.spec, batch=4, streams=2),
        1 - 1e-6,
    ),
    "openvino, one thread": (lambda files: OpenVinoEncoder(files.dynamic, files.model.spec, threads=1), 1 - 1e-6),
    "openvino, int8": (lambda files: open_bundle(files.bundle), 0.99),
    "tensorrt, stand-in": (lambda files: tensorrt_encoder(FakeTensorRT(Cudart())), None),
}


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


@pytest.fixture(scope="module")
def files(model: LoadedModel, bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Files:
    from atlas_edge.quantize.onnx.qdq import quantize_onnx
    from atlas_edge.quantize.recipe import Recipe

    folder = tmp_path_factory.mktemp("graphs")
    recipe = Recipe(name="plain", smooth_alphas=(-1.0,), weights="nearest")
    quantize_onnx(model.module, model.spec, [tiles_of(model.spec.tile_px, 16)], folder / "int8.onnx", recipe=recipe)
    return Files(
        model=model,
        dynamic=export_onnx(model.module, model.spec, folder / "dynamic.onnx"),
        static=export_onnx(model.module, model.spec, folder / "static.onnx", batch=4),
        int8=folder / "int8.onnx",
        bundle=bundle,
    )


@pytest.fixture
def graphs(files: Files) -> tuple[Path, Path]:
    return files.dynamic, files.static


@pytest.fixture(params=list(RUNTIMES))
def runtime(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def encoder(runtime: str, files: Files) -> Encoder:
    return RUNTIMES[runtime][0](files)


def tiles_of(side: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


@pytest.mark.parametrize("count", [1, 4, 7, 16])
def test_agrees_with_its_model(runtime: str, encoder: Encoder, model: LoadedModel, count: int) -> None:
    import torch

    tiles, smallest = tiles_of(encoder.spec.tile_px, count), RUNTIMES[runtime][1]
    embedding = encoder.encode(tiles)
    assert embedding.shape == (count, encoder.spec.embed_dim)
    assert embedding.dtype == np.float32
    if smallest is None:
        np.testing.assert_array_equal(embedding, embed(tiles))
        return
    with torch.inference_mode():
        expected = model.module(torch.from_numpy(tiles)).numpy()
    cosine = (embedding * expected).sum(1) / np.linalg.norm(embedding, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosine.min() >= smallest
    if smallest > 0.999:
        np.testing.assert_allclose(embedding, expected, atol=2e-5)


def test_result_is_not_overwritten_by_the_next_call(encoder: Encoder) -> None:
    tiles = tiles_of(encoder.spec.tile_px, 8)
    first = encoder.encode(tiles[:4])
    kept = first.copy()
    encoder.encode(tiles[4:8])
    np.testing.assert_array_equal(first, kept)


def test_takes_a_view(encoder: Encoder) -> None:
    flipped = tiles_of(encoder.spec.tile_px, 2)[:, ::-1]
    np.testing.assert_array_equal(encoder.encode(flipped), encoder.encode(np.ascontiguousarray(flipped)))


def test_threads_share_it(encoder: Encoder) -> None:
    tiles = tiles_of(encoder.spec.tile_px, 24)
    pieces = [tiles[start : start + 6] for start in range(0, 24, 6)]
    expected = [encoder.encode(piece) for piece in pieces]
    found: list[NDArray[np.float32] | None] = [None] * 4

    def run(index: int) -> None:
        found[index] = encoder.encode(pieces[index])

    threads = [threading.Thread(target=run, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one, other in zip(found, expected, strict=True):
        assert one is not None
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("change", [(0, 0, 0, 1), (0, -1, 0, 0), (-2, 0, 0, 0)])
def test_refuses_other_shapes(encoder: Encoder, change: tuple[int, ...]) -> None:
    side = encoder.spec.tile_px
    shape = tuple(size + more for size, more in zip((2, side, side, 3), change, strict=True))
    for wrong in (shape, shape[1:]):
        with pytest.raises(InputError, match=rf"expected \(B, {side}, {side}, 3\) uint8"):
            encoder.encode(np.zeros(wrong, dtype=np.uint8))


def test_says_how_it_runs(runtime: str, encoder: Encoder) -> None:
    able = encoder.capabilities
    expected = {
        "onnx, batch 4": Capabilities(batch=4, fixed_batch=True),
        "tensorrt, stand-in": Capabilities(gpu=0),
        "openvino, batch 4": replace(able, batch=4, streams=usable_cores()),
        "openvino, two streams": replace(able, batch=4, streams=2),
        "openvino, one thread": replace(able, batch=DEFAULT_BATCH, streams=1),
    }
    assert able == expected.get(runtime, able if "openvino" in runtime else Capabilities())
    assert (able.configure is not None) == ("openvino" in runtime)
    if able.configure is not None:
        able.configure(batch=2, streams=3)
        assert encoder.capabilities == replace(able, batch=2, streams=3)
        able.configure(streams=1)
        assert encoder.capabilities == replace(able, batch=2, streams=1)
    encoder.close()
    assert encoder.capabilities.gpu == able.gpu  # what is said of a closed one


def test_a_closed_encoder_says_so(encoder: Encoder) -> None:
    assert isinstance(encoder, Encoder)
    assert encoder.runtime
    tiles = tiles_of(encoder.spec.tile_px, 1)
    encoder.encode(tiles)
    encoder.close()
    encoder.close()
    with pytest.raises(RuntimeMissing, match="the encoder is closed"):
        encoder.encode(tiles)


def test_without_patch_tokens_it_says_how_to_get_them(encoder: Encoder) -> None:
    assert encoder.spec.tokens is None
    with pytest.raises(UsageError, match="holds no patch tokens") as refused:
        encoder.encode_tokens(tiles_of(encoder.spec.tile_px, 1))
    assert refused.value.hint is not None and "--output tokens" in refused.value.hint
    encoder.close()


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("form", ["onnx", "onnx, weights beside it", "openvino", "openvino, of onnx"])
def test_no_file_is_mapped_or_open_after_close(
    form: str, files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "openvino":
        encoder = open_bundle(files.bundle)
        folder = files.bundle
    else:
        monkeypatch.setattr(graph, "_ONE_FILE_BYTES", 1000 if "beside" in form or "of" in form else 1 << 30)
        folder = tmp_path
        graph.copy_onnx(files.dynamic, folder / "model.onnx")
        kind = OpenVinoEncoder if "openvino" in form else OnnxEncoder
        encoder = kind(folder / "model.onnx", files.model.spec)
    encoder.encode(tiles_of(32, 1))
    encoder.encode(tiles_of(32, 9))
    encoder.close()
    assert str(folder) not in Path("/proc/self/maps").read_text()
    opened = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in opened if path.startswith(str(folder))]
    assert encoder.runtime  # it is still there, and holds nothing


@pytest.mark.parametrize("kind", [OnnxEncoder, OpenVinoEncoder])
@pytest.mark.parametrize("change", [{"embed_dim": 63}, {"tile_px": 40}])
def test_a_graph_that_is_not_what_the_manifest_says_is_refused(
    change: dict[str, int], kind: type[OnnxEncoder], files: Files
) -> None:
    with pytest.raises(InputError, match="the manifest says"):
        kind(files.dynamic, files.model.spec.model_copy(update=change))


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
