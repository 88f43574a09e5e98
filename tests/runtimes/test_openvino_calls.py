"""OpenVINO requests that run side by side: what an interrupted call, or another thread, may not do to a later one."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.runtimes import openvino as runtime
from atlas_edge.spec import EncoderSpec
from support import command_environment

ov = pytest.importorskip("openvino")
SIDE, WIDTH, LAYERS = 16, 768, 60


@pytest.fixture
def slow() -> Iterator[runtime.OpenVinoEncoder]:
    """Each call takes some milliseconds, so that it is certainly under way when the next one begins."""
    from openvino import opset13 as ops

    tiles = ops.parameter([-1, SIDE, SIDE, 3], np.uint8, name="tiles")
    values = ops.reshape(ops.convert(tiles, "f32"), np.array([-1, WIDTH]), special_zero=False)
    weight = np.random.default_rng(0).normal(size=(WIDTH, WIDTH)).astype(np.float32) / WIDTH**0.5
    for _ in range(LAYERS):
        values = ops.tanh(ops.matmul(values, ops.constant(weight), False, False))
    spec = EncoderSpec(
        name="slow", architecture="slow", embed_dim=WIDTH, tile_px=SIDE, mpp=0.5, mean=(0, 0, 0), std=(1, 1, 1),
        pooling="avg",
    )  # fmt: skip
    encoder = runtime.OpenVinoEncoder(ov.Model([values], [tiles], "slow"), spec, batch=2, streams=2)
    yield encoder
    encoder.close()


def random_tiles(seed: int, count: int = 24) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 3), dtype=np.uint8)


def test_interrupted_call_writes_nothing_into_the_next(
    slow: runtime.OpenVinoEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = slow.encode(random_tiles(1))
    cut = runtime.pieces

    def interrupted(*arguments: Any, **options: Any) -> Iterator[Any]:
        for number, piece in enumerate(cut(*arguments, **options)):
            if number == 4:
                raise KeyboardInterrupt
            yield piece

    for _ in range(5):
        monkeypatch.setattr(runtime, "pieces", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slow.encode(random_tiles(2))
        monkeypatch.setattr(runtime, "pieces", cut)
        np.testing.assert_array_equal(slow.encode(random_tiles(1)), expected)


def test_no_thread_of_openvino_calls_into_python(
    slow: runtime.OpenVinoEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that does may wait for the interpreter while whoever gives its requests up waits for it: for ever."""

    def refuse(*_: Any) -> None:
        raise AssertionError("OpenVINO's queue calls back from threads of its own")

    monkeypatch.setattr(ov, "AsyncInferQueue", refuse)
    expected = np.concatenate([slow.encode(random_tiles(1)[start : start + 2]) for start in range(0, 24, 2)])
    np.testing.assert_array_equal(slow.encode(random_tiles(1)), expected)
    requests = slow._forms[runtime._SIDE_BY_SIDE]
    assert len(requests) == 4
    # No callback: what is told to a request is kept for one.
    with pytest.warns(RuntimeWarning, match="callback"):
        requests[0].start_async({0: random_tiles(1, 2)}, "told")
    requests[0].wait()


def test_threads_take_turns(slow: runtime.OpenVinoEncoder) -> None:
    expected = [slow.encode(random_tiles(seed)) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda seed: slow.encode(random_tiles(seed)), range(4)))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_closed_while_another_thread_encodes(slow: runtime.OpenVinoEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = slow.encode(random_tiles(3))
    found: list[NDArray[np.float32]] = []
    begun, cut = threading.Event(), runtime.pieces

    def watched(*arguments: Any, **options: Any) -> Iterator[Any]:
        begun.set()
        return cut(*arguments, **options)

    monkeypatch.setattr(runtime, "pieces", watched)
    thread = threading.Thread(target=lambda: found.append(slow.encode(random_tiles(3))))
    thread.start()
    assert begun.wait(20)
    slow.close()
    thread.join()
    np.testing.assert_array_equal(found[0], expected)


def test_another_setting_waits_for_the_call_under_way(slow: runtime.OpenVinoEncoder) -> None:
    expected = [slow.encode(random_tiles(seed)) for seed in range(3)]
    with ThreadPoolExecutor(2) as pool:
        for batch in (4, 3, 2):
            calls = [pool.submit(slow.encode, random_tiles(seed)) for seed in range(3)]
            slow.configure(batch=batch, streams=batch)
            for call, embeddings in zip(calls, expected, strict=True):
                np.testing.assert_allclose(call.result(), embeddings, atol=1e-6)


def test_one_compiled_copy_is_held_until_a_call_needs_one_again(slow: runtime.OpenVinoEncoder) -> None:
    one, few, many = random_tiles(4, 1), random_tiles(4, 2), random_tiles(4)
    first = [slow.encode(tiles) for tiles in (one, few, many)]
    assert len(slow._forms) == 1
    again = [slow.encode(tiles) for tiles in (one, few, many)]
    assert len(slow._forms) == 3
    for found, expected in zip(again, first, strict=True):
        np.testing.assert_array_equal(found, expected)
    slow.configure(streams=1)
    slow.encode(one)
    assert len(slow._forms) == 1


def test_a_file_that_was_changed_meanwhile_is_not_compiled(tmp_path: Path) -> None:
    from openvino import opset13 as ops

    tiles = ops.parameter([-1, SIDE, SIDE, 3], np.uint8, name="tiles")
    values = ops.reshape(ops.convert(tiles, "f32"), np.array([-1, WIDTH]), special_zero=False)
    model = ov.Model([ops.multiply(values, ops.constant(np.ones(WIDTH, np.float32)))], [tiles], "file")
    spec = EncoderSpec(
        name="file", architecture="file", embed_dim=WIDTH, tile_px=SIDE, mpp=0.5, mean=(0, 0, 0), std=(1, 1, 1),
        pooling="avg",
    )  # fmt: skip
    ov.save_model(model, str(tmp_path / "model.xml"))
    encoder = runtime.OpenVinoEncoder(tmp_path / "model.xml", spec, batch=2, streams=2)
    np.testing.assert_array_equal(encoder.encode(random_tiles(1, 1))[0], random_tiles(1, 1).ravel())
    np.testing.assert_array_equal(encoder.encode(random_tiles(1, 5))[4], random_tiles(1, 5)[4].ravel())
    encoder.configure(batch=3)
    (tmp_path / "model.bin").write_bytes((tmp_path / "model.bin").read_bytes())
    with pytest.raises(InputError, match="was changed after it was opened"):
        encoder.encode(random_tiles(1, 1))


def test_openvino_comes_without_its_converter_which_is_there_when_asked_for() -> None:
    script = (
        "import sys; from atlas_edge.runtimes.openvino_library import openvino_library; "
        "library = openvino_library(); import openvino; assert library is openvino; "
        "assert not {'openvino.tools.ovc', 'openvino_telemetry'} & set(sys.modules); "
        "assert callable(openvino.convert_model); assert 'openvino.tools.ovc' in sys.modules; "
        "assert not hasattr(openvino, 'nothing')"
    )
    done = subprocess.run([sys.executable, "-c", script], env=command_environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
