import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from atlas_edge.errors import InputError
from atlas_edge.tiles.decode import decode_tile


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


def test_keeps_rgb_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert np.array_equal(decode_tile(encoded(Image.fromarray(pixels)), name="a"), pixels)


@pytest.mark.parametrize("mode", ["L", "1", "P", "RGBA"])
def test_converts_what_means_the_same(mode: str) -> None:
    grey = Image.fromarray(np.where(np.arange(48).reshape(6, 8) % 2, 255, 0).astype(np.uint8))
    tile = decode_tile(encoded(grey.convert(mode)), name="a")
    assert np.array_equal(tile, np.asarray(grey.convert("RGB")))


def test_refuses_what_would_be_a_guess() -> None:
    with pytest.raises(InputError, match="stored as CMYK"):
        decode_tile(encoded(Image.new("CMYK", (8, 8)), "JPEG"), name="a")
    with pytest.raises(InputError, match="stored as I;16"):
        decode_tile(encoded(Image.fromarray(np.zeros((8, 8), np.uint16))), name="a")
    with pytest.raises(InputError, match="transparent"):
        decode_tile(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 9))), name="a")


@pytest.mark.parametrize("side", [5_000, 30_000])
def test_refuses_a_bomb_before_decoding_it(side: int) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(10))) + chunk(b"IEND", b"")
    )
    with pytest.raises(InputError, match="expected at most"):
        decode_tile(bomb, name="a")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@settings(max_examples=60, deadline=None)
@given(cut=st.integers(0, 200), flip=st.integers(0, 199), form=st.sampled_from(["PNG", "JPEG", "TIFF", "BMP"]))
def test_damage_is_an_input_error_or_a_tile(cut: int, flip: int, form: str) -> None:
    data = bytearray(encoded(Image.new("RGB", (8, 8), (200, 100, 150)), form))
    data[flip % len(data)] ^= 0x55
    try:
        tile = decode_tile(bytes(data[: max(len(data) - cut, 0)]), name="damaged")
    except InputError as error:
        assert "damaged" in str(error)
    else:
        assert tile.dtype == np.uint8
        assert tile.shape[2] == 3
