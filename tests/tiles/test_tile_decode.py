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
    with pytest.raises(InputError, match="stored as 16-bit"):
        decode_tile(encoded(Image.fromarray(np.zeros((8, 8), np.uint16))), name="a")
    with pytest.raises(InputError, match="transparent"):
        decode_tile(encoded(Image.new("RGBA", (8, 8), (0, 0, 0, 9))), name="a")


@pytest.mark.parametrize("side", [5_000, 30_000])
def test_refuses_a_bomb_before_decoding_it(side: int) -> None:
    with pytest.raises(InputError, match="expected at most"):
        decode_tile(_png(side, bit_depth=8, colour_type=2, rows=bytes(10)), name="a")


@pytest.mark.parametrize(("colour_type", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bit_png_is_not_cut_to_8(colour_type: int, channels: int) -> None:
    """Opaque white: 8-bit, every one of these forms is a tile."""
    for bit_depth in (8, 16):
        row = b"\0" + bytes([255]) * (8 * channels * bit_depth // 8)
        data = _png(8, bit_depth=bit_depth, colour_type=colour_type, rows=row * 8)
        if bit_depth == 8:
            assert (decode_tile(data, name="a") == 255).all()
            continue
        with pytest.raises(InputError, match="stored as 16-bit, expected 8-bit"):
            decode_tile(data, name="a")


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_16_bit_tiff_is_not_cut_to_8(compression: str | None, planar: bool) -> None:
    tifffile = pytest.importorskip("tifffile")
    buffer = io.BytesIO()
    pixels = np.zeros((3, 8, 8) if planar else (8, 8, 3), np.uint16)
    tifffile.imwrite(
        buffer,
        pixels,
        photometric="rgb",
        compression=compression,
        planarconfig="separate" if planar else "contig",
    )
    with pytest.raises(InputError, match="stored as 16-bit, expected 8-bit"):
        decode_tile(buffer.getvalue(), name="a")


def _png(side: int, *, bit_depth: int, colour_type: int, rows: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bit_depth, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


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
