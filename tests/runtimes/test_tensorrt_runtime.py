"""TensorRT's runtime against a stand-in for CUDA and the library: what a GPU adds to that was not run here."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_gpu import DIM, PX, Cudart, FakeTensorRT, embed, patch_tokens
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from atlas_edge.errors import InputError, RuntimeMissing
from atlas_edge.runtimes.cuda import Cuda, DeviceFault
from atlas_edge.runtimes.tensorrt import TensorRTEncoder
from atlas_edge.runtimes.tensorrt_engine import TensorRTEngine
from atlas_edge.runtimes.tensorrt_library import ENTERPRISE, RTX
from atlas_edge.spec import EncoderSpec, TokenGrid

SPEC = EncoderSpec(
    name="fake",
    architecture="fake",
    embed_dim=DIM,
    tile_px=PX,
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    pooling="cls",
)


def tiles(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, PX, PX, 3), dtype=np.uint8)


def encoder(
    trt: FakeTensorRT, library: Any = ENTERPRISE, *, device: int = 0, spec: EncoderSpec = SPEC, **options: Any
) -> TensorRTEncoder:
    cuda = Cuda(trt.cudart, device)
    engine = TensorRTEngine(trt, library, b"engine", **options)
    return TensorRTEncoder(engine, cuda, spec, runtime="fake", own_graphs=not library.runtime_cache)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    profile=st.sampled_from([(1, 4, 8), (2, 4, 8), (4, 4, 4), (1, 1, 1)]),
)
def test_every_batch_comes_back_in_order(counts: list[int], profile: tuple[int, int, int]) -> None:
    cudart = Cudart()
    under_test = encoder(FakeTensorRT(cudart, profile))
    for seed, count in enumerate(counts):
        batch = tiles(count, seed)
        np.testing.assert_array_equal(under_test.encode(batch), embed(batch))
    under_test.close()
    under_test.close()
    assert cudart.leaks == {}


@pytest.mark.parametrize("profile", [(1, 4, 8), (4, 4, 4)])
def test_patch_tokens_come_beside_the_embedding(profile: tuple[int, int, int]) -> None:
    cudart = Cudart()
    trt = FakeTensorRT(cudart, profile)
    trt.tokens = True
    with_tokens = SPEC.model_copy(update={"tokens": TokenGrid(rows=2, columns=3, channels=4)})
    under_test = encoder(trt, spec=with_tokens)
    for count, seed in ((3, 0), (21, 1), (3, 2), (4, 3)):
        batch = tiles(count, seed)
        found = under_test.encode_tokens(batch)
        np.testing.assert_array_equal(found[0], embed(batch))
        np.testing.assert_array_equal(found[1], patch_tokens(batch))
        np.testing.assert_array_equal(under_test.encode(batch), embed(batch))
    cudart.calls.clear()
    under_test.encode(tiles(4))
    # Tokens that nobody asked for are not copied.
    assert cudart.calls.count("cudaMemcpyAsync") == (0 if profile == (4, 4, 4) else 2)
    under_test.close()
    assert cudart.leaks == {}
    with pytest.raises(InputError, match=r"gives \('B', 5\) and \('B', 6, 4\), the manifest says \('B', 5\)"):
        encoder(trt)


def test_results_stay_when_the_next_batch_runs() -> None:
    under_test = encoder(FakeTensorRT(Cudart()))
    first = under_test.encode(tiles(3))
    under_test.encode(tiles(3, seed=1))
    np.testing.assert_array_equal(first, embed(tiles(3)))


def test_a_long_batch_takes_two_streams_and_a_short_one_only_one() -> None:
    trt = FakeTensorRT(Cudart())
    under_test = encoder(trt)
    under_test.encode(tiles(8))
    assert len(trt.cudart.streams) == trt.contexts == 1
    trt.cudart.calls.clear()
    under_test.encode(tiles(12))
    assert len(trt.cudart.streams) == trt.contexts == 2
    # Both pieces are queued before the first is waited for.
    queued = [name for name in trt.cudart.calls if name in {"cudaMemcpyAsync", "cudaStreamSynchronize"}]
    assert queued[:5] == ["cudaMemcpyAsync"] * 4 + ["cudaStreamSynchronize"]
    under_test.close()
    assert trt.contexts == 0


def test_a_fixed_batch_runs_from_a_graph_after_its_first_run() -> None:
    trt = FakeTensorRT(Cudart(), (4, 4, 4))
    under_test = encoder(trt)
    for seed in range(4):
        np.testing.assert_array_equal(under_test.encode(tiles(3, seed)), embed(tiles(3, seed)))
    assert trt.cudart.calls.count("cudaGraphLaunch") == 3
    assert trt.cudart.calls.count("cudaStreamBeginCapture") == 1
    under_test.close()
    assert trt.cudart.leaks == {}


def test_an_engine_that_cannot_be_captured_runs_without_a_graph() -> None:
    trt = FakeTensorRT(Cudart(), (4, 4, 4))
    trt.capturable = False
    under_test = encoder(trt)
    for seed in range(3):
        np.testing.assert_array_equal(under_test.encode(tiles(4, seed)), embed(tiles(4, seed)))
    assert trt.cudart.calls.count("cudaStreamBeginCapture") == 1
    assert "cudaGraphLaunch" not in trt.cudart.calls


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaStreamCreateWithFlags", "cudaMemcpyAsync"])
def test_a_failing_call_frees_the_device_and_closes_the_encoder(call: str) -> None:
    cudart = Cudart()
    trt = FakeTensorRT(cudart)
    under_test = encoder(trt)
    cudart.fail[call] = 700
    with pytest.raises(DeviceFault, match=f"the GPU failed in {call}: an illegal memory access"):
        under_test.encode(tiles(12))
    assert cudart.leaks == {}
    assert trt.contexts == 0
    with pytest.raises(RuntimeMissing, match="the encoder is closed"):
        under_test.encode(tiles(1))


@pytest.mark.parametrize("at_wait", [1, 2, 3])
def test_a_fault_of_the_device_frees_all_that_can_be_freed(at_wait: int) -> None:
    cudart = Cudart()
    under_test = encoder(FakeTensorRT(cudart))
    cudart.break_at_wait = at_wait
    with pytest.raises(DeviceFault, match=r"CUDA error 700") as fault:
        under_test.encode(tiles(30))
    assert fault.value.exit_code == 4
    assert cudart.leaks == {}


def test_out_of_memory_names_the_remedy() -> None:
    cudart = Cudart(memory_bytes=1000)
    under_test = encoder(FakeTensorRT(cudart))
    with pytest.raises(DeviceFault, match="the GPU is out of memory") as fault:
        under_test.encode(tiles(1))
    assert fault.value.hint is not None
    assert "smaller batch" in fault.value.hint
    assert cudart.leaks == {}
    assert cudart.free_bytes == 1000


def test_a_context_without_room_says_what_the_library_said() -> None:
    buffers = 8 * PX * PX * 3 + 8 * DIM * 4
    cudart = Cudart(memory_bytes=2 * buffers + 50)
    with pytest.raises(DeviceFault, match=r"no execution context: OutOfMemory \(Requested size was 99 bytes"):
        encoder(FakeTensorRT(cudart)).encode(tiles(1))
    assert cudart.leaks == {}


def test_an_engine_that_refuses_to_run_says_why() -> None:
    trt = FakeTensorRT(Cudart())
    trt.refuse_to_run = True
    with pytest.raises(DeviceFault, match="execute_async_v3: no kernel image is available"):
        encoder(trt).encode(tiles(1))
    assert trt.cudart.leaks == {}


def test_an_interrupt_frees_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    cudart = Cudart()
    under_test = encoder(FakeTensorRT(cudart))
    waits = cudart.cudaStreamSynchronize

    def interrupted(stream: Any) -> Any:
        monkeypatch.setattr(cudart, "cudaStreamSynchronize", waits)
        raise KeyboardInterrupt

    monkeypatch.setattr(cudart, "cudaStreamSynchronize", interrupted)
    with pytest.raises(KeyboardInterrupt):
        under_test.encode(tiles(30))
    assert cudart.leaks == {}


def test_a_file_that_is_no_engine_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="cannot load the engine: Magic tag does not match"):
        TensorRTEngine(FakeTensorRT(Cudart()), RTX, b"something else")


def test_stripped_weights_come_from_the_graph_beside_the_engine(tmp_path: Path) -> None:
    trt = FakeTensorRT(Cudart())
    TensorRTEngine(trt, ENTERPRISE, b"engine", weights=tmp_path / "model.onnx")
    assert trt.refitted_from == str(tmp_path / "model.onnx")
    with pytest.raises(InputError, match=r"weights cannot be read from wrong\.onnx"):
        TensorRTEngine(trt, ENTERPRISE, b"engine", weights=tmp_path / "wrong.onnx")


def test_compiled_kernels_are_kept_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "cache" / "kernels"
    trt = FakeTensorRT(Cudart())
    encoder(trt, RTX, runtime_cache=path).close()
    assert path.read_bytes() == b"kernels of this GPU"
    encoder(trt, RTX, runtime_cache=path).close()
    assert trt.kernels == b"kernels of this GPU"
    # Enterprise TensorRT compiles when it builds: it gets no such file.
    encoder(trt, ENTERPRISE, runtime_cache=tmp_path / "none").close()
    assert not (tmp_path / "none").exists()


def test_kernels_that_cannot_be_kept_leave_nothing_on_the_device(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    trt = FakeTensorRT(Cudart())
    under_test = encoder(trt, RTX, runtime_cache=tmp_path / "file" / "kernels")
    under_test.encode(tiles(12))
    under_test.close()
    assert trt.cudart.leaks == {}
    assert "cannot be kept" in caplog.text


def test_threads_take_turns_on_the_device_of_the_encoder() -> None:
    cudart = Cudart(devices=2)
    under_test = encoder(FakeTensorRT(cudart), device=1)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: under_test.encode(tiles(12, seed)), range(24)))
    for seed, embeddings in enumerate(found):
        np.testing.assert_array_equal(embeddings, embed(tiles(12, seed)))
    thread = threading.Thread(target=under_test.close)
    thread.start()
    thread.join()
    assert cudart.leaks == {}


def test_a_device_that_is_not_there_is_a_fault() -> None:
    with pytest.raises(DeviceFault, match="CUDA error 101"):
        Cuda(Cudart(devices=1), 1)


def test_an_engine_of_another_shape_than_the_manifest_says_is_refused() -> None:
    with pytest.raises(InputError, match=r"gives \('B', 5\), the manifest says \('B', 7\)"):
        encoder(FakeTensorRT(Cudart()), spec=SPEC.model_copy(update={"embed_dim": 7}))


def test_wrong_tiles_leave_the_encoder_open() -> None:
    under_test = encoder(FakeTensorRT(Cudart()))
    with pytest.raises(InputError):
        under_test.encode(tiles(1).astype(np.float32))  # type: ignore[arg-type]
    assert under_test.encode(tiles(1)).shape == (1, DIM)


def test_the_fake_has_no_call_that_the_libraries_lack() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    trt = pytest.importorskip("tensorrt_rtx")
    assert [name for name in vars(Cudart) if name.startswith("cuda") and not hasattr(runtime, name)] == []
    for kind in ("cudaStreamCaptureMode", "cudaMemcpyKind"):
        assert [m.name for m in getattr(Cudart, kind) if int(getattr(getattr(runtime, kind), m.name)) != m] == []
    used = {
        "Runtime": ["deserialize_cuda_engine"],
        "ICudaEngine": [
            "num_io_tensors",
            "get_tensor_name",
            "get_tensor_mode",
            "get_tensor_profile_shape",
            "get_tensor_shape",
            "create_runtime_config",
            "create_execution_context",
        ],
        "IExecutionContext": ["set_tensor_address", "set_input_shape", "execute_async_v3"],
        "IRuntimeConfig": ["create_runtime_cache", "set_runtime_cache", "cuda_graph_strategy"],
        "IRuntimeCache": ["deserialize", "serialize"],
        "Refitter": ["refit_cuda_engine"],
        "OnnxParserRefitter": ["refit_from_file"],
    }
    assert [(k, n) for k, names in used.items() for n in names if not hasattr(getattr(trt, k), n)] == []
