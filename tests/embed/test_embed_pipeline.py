"""Decoding ahead: threads are added where the encoder waits, the order stays, and nobody is waited for at the end."""

import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_embed import MeanEncoder

from atlas_edge.embed import crew as crews
from atlas_edge.embed.crew import Crew
from atlas_edge.embed.pipeline import StageClock, embedded, whole_batch
from atlas_edge.embed.workers import open_encoder
from atlas_edge.encoder import Capabilities
from atlas_edge.slides import TileReader, open_slide, plan_grid

tifffile = pytest.importorskip("tifffile")


class Share:
    """A slide on a share: each piece takes its time, however many are asked for at once."""

    def __init__(self, path: Path, seconds: float) -> None:
        self.slide = open_slide(path)
        self.reader = TileReader(self.slide, plan_grid(self.slide, None, tile_px=32, mpp=0.5))
        self.most, self._at_once, self._lock = 0, 0, threading.Lock()
        self._seconds, self._read = seconds, self.reader.read
        self.reader.read = self.slow  # type: ignore[method-assign]

    def slow(self, coords: Any) -> Any:
        with self._lock:
            self._at_once += 1
            self.most = max(self.most, self._at_once)
        time.sleep(self._seconds)
        try:
            return self._read(coords)
        finally:
            with self._lock:
                self._at_once -= 1

    def embed(self, threads: int | None, encoder: Any = None) -> Any:
        batches = embedded(self.reader, [encoder or MeanEncoder()], StageClock(), firsts=[0], threads=threads, batch=4)
        return np.concatenate([batch.features for batch in batches])


def test_threads_are_added_where_the_encoder_waits_and_change_nothing(scan: Path) -> None:
    slow, one = Share(scan, 0.04), Share(scan, 0.0)
    found, expected = slow.embed(None), one.embed(1)
    assert slow.most > 4 and one.most == 1
    assert np.array_equal(found, expected)
    slow.slide.close()
    one.slide.close()


def test_no_thread_is_added_where_the_encoder_is_slower(scan: Path) -> None:
    class Slow(MeanEncoder):
        def encode(self, tiles: Any) -> Any:
            time.sleep(0.01)
            return super().encode(tiles)

    fast = Share(scan, 0.0)
    fast.embed(None, Slow())
    assert fast.most <= 2
    fast.slide.close()


def test_an_end_in_the_middle_waits_for_no_more_than_is_being_read(scan: Path) -> None:
    share = Share(scan, 0.01)
    batches = embedded(share.reader, [MeanEncoder()], StageClock(), firsts=[0], threads=None, batch=4)
    next(batches)
    batches.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decode")]
    share.slide.close()


@pytest.mark.skipif(not hasattr(os, "pread"), reason="this system reads a file at one place at a time")
def test_pieces_of_a_file_are_read_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine, meeting, met = os.pread, threading.Barrier(2, timeout=20), list[int]()

    def pread(*arguments: Any) -> bytes:
        met.append(meeting.wait())
        return genuine(*arguments)

    pixels = np.full((128, 128, 3), 120, dtype=np.uint8)
    tifffile.imwrite(
        tmp_path / "scan.ome.tif", pixels, tile=(64, 64), photometric="rgb",
        metadata={"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5},
    )  # fmt: skip
    slide = open_slide(tmp_path / "scan.ome.tif")
    monkeypatch.setattr("os.pread", pread)
    readers = [threading.Thread(target=slide.read, args=(0, 64 * place, 0, 64, 64)) for place in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    # One that waited for the other would have broken the barrier.
    assert sorted(met) == [0, 1]
    slide.close()


def test_threads_whose_gain_was_hidden_are_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(crews.time, "perf_counter", lambda: clock[0])
    # Half of the processor is at work.
    monkeypatch.setattr(crews.time, "process_time", lambda: 2 * clock[0])
    monkeypatch.setattr(crews.hardware, "usable_cores", lambda: 4)
    crew = Crew[int, int](int, None)
    sizes: list[int] = []

    class Batch:
        def result(self) -> None:
            # Another program has the other cores at first; later four of them help.
            clock[0] += 1.0 if len(sizes) < 8 else 1.0 / min(crew.size, 4)

    for _ in range(300):
        crew.result(Batch())  # type: ignore[arg-type]
        sizes.append(crew.size)
    assert 2 in sizes[7:10], "the first try brought nothing"
    assert sizes[-100:] == [4] * 100, "what brings nothing is not tried for ever"


def test_no_thread_is_added_where_the_processor_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, computed, cores = [0.0], [0.0], 4
    monkeypatch.setattr(crews.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(crews.time, "process_time", lambda: computed[0])
    monkeypatch.setattr(crews.hardware, "usable_cores", lambda: cores)
    crew = Crew[int, int](int, None)

    class Batch:
        def result(self) -> None:
            # A second of one core for each batch.
            clock[0] += 1.0 / min(crew.size, cores)
            computed[0] += 1.0

    for _ in range(200):
        crew.result(Batch())  # type: ignore[arg-type]
        assert crew.size <= cores
    assert crew.size == cores


def test_what_is_asked_first_is_begun_first() -> None:
    begun: list[int] = []
    lock = threading.Lock()

    def work(number: int) -> int:
        with lock:
            begun.append(number)
        time.sleep(0.001)
        return -number

    crew = Crew(work, 3)
    futures = [crew.submit(number) for number in range(60)]
    assert [future.result() for future in futures] == [-number for number in range(60)]
    crew.close()
    assert all(abs(number - place) < 3 for place, number in enumerate(begun))


def test_a_crew_becomes_larger_and_smaller() -> None:
    at_once, most, lock = [0], [0], threading.Lock()

    def work(_: int) -> None:
        with lock:
            at_once[0] += 1
            most[0] = max(most[0], at_once[0])
        time.sleep(0.002)
        with lock:
            at_once[0] -= 1

    crew = Crew(work, None)
    for size in (2, 8, 1, 4):
        crew.size = size
        for future in [crew.submit(number) for number in range(2 * size + 10)]:
            future.result()
        # Those that are too many go when they have done what they were doing.
        most[0] = 0
        for future in [crew.submit(number) for number in range(30)]:
            future.result()
        assert most[0] <= size
    crew.close()


def test_a_fault_is_told_to_whoever_asked() -> None:
    def work(number: int) -> int:
        return 1 // number

    crew = Crew(work, 1)
    futures = [crew.submit(number) for number in (1, 0, 1)]
    assert futures[0].result() == 1
    with pytest.raises(ZeroDivisionError):
        futures[1].result()
    assert futures[2].result() == 1
    crew.close()


def test_threads_that_wait_for_a_share_become_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sizes = [0.0], list[int]()
    monkeypatch.setattr(crews.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(crews.time, "process_time", lambda: 0.01 * clock[0])
    crew = Crew[int, int](int, None)

    class Batch:
        def result(self) -> None:
            clock[0] += 1.0 / crew.size

    for _ in range(12):
        crew.result(Batch())  # type: ignore[arg-type]
        sizes.append(crew.size)
    assert sorted(set(sizes)) == [2, 8, 16] and sizes[-1] == 16


class Streams(MeanEncoder):
    """An encoder of several streams that notes how many tiles each call brings."""

    def __init__(self, streams: int, piece: int | None = 4) -> None:
        self.capabilities = Capabilities(batch=piece, streams=streams)
        self.calls: list[int] = []

    def encode(self, tiles: Any) -> Any:
        self.calls.append(len(tiles))
        return super().encode(tiles)


@pytest.mark.parametrize(
    ("streams", "piece", "wanted", "batch"),
    [
        (2, 4, 64, 64), (6, 4, 64, 72), (12, 4, 64, 96), (14, 4, 64, 112), (16, 4, 64, 64), (1, 48, 64, 96),
        (1, None, 64, 64), (16, 4, 8, 8), (1, 100, 64, 64), (3, 4, 1, 1),
    ],
)  # fmt: skip
def test_no_stream_is_left_without_tiles(streams: int, piece: int | None, wanted: int, batch: int) -> None:
    assert whole_batch(wanted, [Streams(streams, piece)]) == batch
    # Of several encoders the largest.
    assert whole_batch(wanted, [Streams(1, 4), Streams(streams, piece)]) == max(
        batch, -(-wanted // 4) * 4 * (wanted > 3)
    )


def test_batches_are_those_and_the_embeddings_the_same(scan: Path) -> None:
    share, encoder = Share(scan, 0.0), Streams(3)
    found = share.embed(1, encoder)
    assert set(encoder.calls) == {4}  # a batch of four fills no three streams
    many = Streams(3)
    batches = embedded(share.reader, [many], StageClock(), firsts=[0], threads=1, batch=20)
    assert np.array_equal(np.concatenate([one.features for one in batches]), found)
    assert many.calls == [24] * 25
    share.slide.close()


def test_cores_are_shared_out_evenly(mean_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Four tiles a call: a batch of 64 is 16 calls.
    for cores, streams in ((1, 1), (2, 2), (12, 12), (16, 16), (17, 8), (24, 12), (32, 16), (40, 13), (96, 16)):
        monkeypatch.setattr("atlas_edge.embed.workers.usable_cores", lambda cores=cores: cores)
        encoder, _ = open_encoder(str(mean_bundle), batch=64)
        assert encoder.capabilities.streams == streams, cores
        encoder.close()
