"""Small slides of each form that we read, written by hand: nobody's slide, and no writer for most forms exists.

All show the same 640 x 512 px at 0.5 µm per pixel, with a level of half the size.
"""

import io
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

WIDTH, HEIGHT, MPP = 640, 512, 0.5

_DICOM_TILE_PX, _MRXS_TILE_PX = 128, 64


def scene(step: int = 1) -> NDArray[np.uint8]:
    """Stripes of tissue on glass, every `step`-th pixel."""
    image = np.full((HEIGHT, WIDTH, 3), 244, dtype=np.uint8)
    image[100:400, 150:500] = (200, 110, 170)
    image[100:400:8, 150:500] = (90, 60, 140)
    return image[::step, ::step].copy()


def write_tiff(path: Path, *, ome: bool = False, tiled: bool = True, big: bool = False) -> Path:
    """Generic TIFF of JPEG, or OME-TIFF with a SubIFD."""
    segments = {"tile": (128, 128)} if tiled else {"rowsperstrip": 64}
    options: dict[str, Any] = {"photometric": "rgb", "compression": "zlib" if ome else "jpeg", **segments}
    size = {"axes": "YXS", "PhysicalSizeX": MPP, "PhysicalSizeY": MPP}
    with tifffile.TiffWriter(path, ome=ome, bigtiff=big) as file:
        file.write(
            scene(), subifds=int(ome), metadata=size if ome else None, resolution=(1e4 / MPP, 1e4 / MPP),
            resolutionunit="CENTIMETER", **options,
        )  # fmt: skip
        file.write(scene(2), subfiletype=1, metadata=None, **options)
    return path


def write_mrxs(path: Path) -> Path:
    """3DHISTECH's MIRAX: an empty-looking index, and a folder with `Slidedat.ini`, `Index.dat` and the pixels.

    Each camera position is cut into 2 x 2 images; a position buffer says where it lies.
    """
    folder, side = path.with_suffix(""), _MRXS_TILE_PX
    folder.mkdir()
    path.write_bytes(_jpeg(scene(8)))
    across, down = WIDTH // side, HEIGHT // side
    places = [(2 * side * x, 2 * side * y) for y in range(down // 2) for x in range(across // 2)]
    data = b"".join(struct.pack("<Bii", 1, *place) for place in places)
    positions, pages = (0, len(data)), []
    for level in range(2):
        step, records = 2**level, []
        for number, tile in enumerate(_tiles(scene(step), side)):
            row, column = divmod(number, across // step)
            records.append((step * (row * across + column), len(data), len(tile), 0))
            data += tile
        pages.append(records)
    (folder / "Data0000.dat").write_bytes(data)
    (folder / "Index.dat").write_bytes(_mrxs_index("FEED", pages, positions))
    sections = {
        "GENERAL": {"SLIDE_VERSION": "01.02", "SLIDE_ID": "FEED", "IMAGENUMBER_X": across, "IMAGENUMBER_Y": down}
        | {"OBJECTIVE_MAGNIFICATION": 20, "CameraImageDivisionsPerSide": 2},
        "HIERARCHICAL": {"HIER_COUNT": 1, "NONHIER_COUNT": 1, "INDEXFILE": "Index.dat"}
        | {"HIER_0_NAME": "Slide zoom level", "HIER_0_COUNT": 2}
        | {f"HIER_0_VAL_{level}_SECTION": f"LEVEL_{level}" for level in range(2)}
        | {"NONHIER_0_NAME": "VIMSLIDE_POSITION_BUFFER", "NONHIER_0_COUNT": 1},
        "DATAFILE": {"FILE_COUNT": 1, "FILE_0": "Data0000.dat"},
    }
    for level in range(2):
        sections[f"LEVEL_{level}"] = {
            "OVERLAP_X": 0, "OVERLAP_Y": 0, "MICROMETER_PER_PIXEL_X": MPP * 2**level,
            "MICROMETER_PER_PIXEL_Y": MPP * 2**level, "IMAGE_FORMAT": "JPEG", "IMAGE_FILL_COLOR_BGR": 16777215,
            "DIGITIZER_WIDTH": side, "DIGITIZER_HEIGHT": side, "IMAGE_CONCAT_FACTOR": level,
        }  # fmt: skip
    (folder / "Slidedat.ini").write_text(_ini(sections))
    return path


def write_vms(path: Path) -> Path:
    """Hamamatsu's VMS: an index, four JPEGs with restart markers side by side, and one of the whole."""
    image, keys = scene(), {}
    halves = [(y, x) for y in range(2) for x in range(2)]
    for y, x in halves:
        name = f"{path.stem}-{x}-{y}.jpg"
        half = image[y * HEIGHT // 2 : (y + 1) * HEIGHT // 2, x * WIDTH // 2 : (x + 1) * WIDTH // 2]
        (path.parent / name).write_bytes(_jpeg(half, subsampling="4:2:2", restart_marker_blocks=4))
        keys["ImageFile" + (f"({x},{y})" if (x, y) != (0, 0) else "")] = name
    (path.parent / f"{path.stem}-map.jpg").write_bytes(_jpeg(scene(2), subsampling="4:2:2", restart_marker_blocks=4))
    nm = {"PhysicalWidth": int(WIDTH * MPP * 1000), "PhysicalHeight": int(HEIGHT * MPP * 1000)}
    keys |= {"NoLayers": 1, "NoJpegColumns": 2, "NoJpegRows": 2, "MapFile": f"{path.stem}-map.jpg", "SourceLens": 20}
    path.write_text(_ini({"Virtual Microscope Specimen": keys | nm}))
    return path


def write_ndpi(path: Path) -> Path:
    """Hamamatsu's NDPI: a TIFF whose pages are whole JPEGs, and point to the next with eight bytes."""
    out = bytearray(struct.pack("<2sHQ", b"II", 42, 0))
    link = 4
    for level in range(2):
        image = scene(2**level)
        jpeg = _jpeg(image, subsampling="4:2:2", restart_marker_blocks=4)
        begin = len(out)
        out += jpeg
        starts = [place + 2 for place in range(len(jpeg) - 1) if jpeg[place] == 255 and 0xD0 <= jpeg[place + 1] <= 0xD7]
        starts.insert(0, _scan_start(jpeg))
        places = [len(out), len(out) + 8]
        out += struct.pack("<2I", 20_000 // 2**level, 1) + struct.pack(f"<{len(starts)}I", *starts)
        tags = [
            (256, 4, 1, image.shape[1]), (257, 4, 1, image.shape[0]), (259, 3, 1, 7), (262, 3, 1, 6),
            (273, 4, 1, begin), (277, 3, 1, 3), (278, 4, 1, image.shape[0]), (279, 4, 1, len(jpeg)),
            (282, 5, 1, places[0]), (283, 5, 1, places[0]), (296, 3, 1, 3), (65420, 4, 1, 1),
            (65421, 11, 1, struct.unpack("<I", struct.pack("<f", 20 / 2**level))[0]), (65424, 9, 1, 0),
            (65426, 4, len(starts), places[1]),
        ]  # fmt: skip
        out[link : link + 8] = struct.pack("<Q", len(out))
        out += struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
        link = len(out)
        out += bytes(8 + 4 * len(tags))  # the upper halves of the values follow
    path.write_bytes(out)
    return path


def write_dicom(folder: Path) -> Path:
    """A DICOM series of two instances, one a level, of JPEG tiles; returns the larger one."""
    folder.mkdir(exist_ok=True)
    for level in range(2):
        _write_instance(folder / f"{level}.dcm", level)
    return folder / "0.dcm"


def _mrxs_index(slide_id: str, pages: list[list[tuple[int, int, int, int]]], positions: tuple[int, int]) -> bytes:
    """`Index.dat`: tables of pointers to pages, by zoom level and for the position buffer."""
    head = b"01.02" + slide_id.encode()
    tables = len(head) + 8
    body = tables + 4 * len(pages) + 4
    blocks: list[bytes] = []
    pointers: list[int] = []
    for content in [_mrxs_page(records) for records in pages] + [struct.pack("<7i", 1, 0, 0, 0, *positions, 0)]:
        start = body + sum(map(len, blocks))
        pointers.append(start)
        blocks.append(struct.pack("<2i", 0, start + 8) + content)
    roots = struct.pack("<2i", tables, tables + 4 * len(pages))
    return head + roots + struct.pack(f"<{len(pointers)}i", *pointers) + b"".join(blocks)


def _mrxs_page(records: list[tuple[int, int, int, int]]) -> bytes:
    return struct.pack("<2i", len(records), 0) + b"".join(struct.pack("<4i", *record) for record in records)


def _write_instance(path: Path, level: int) -> None:
    """One instance, explicit little-endian, its tiles encapsulated."""
    image, side = scene(2**level), _DICOM_TILE_PX
    tiles = list(_tiles(image, side))
    storage, instance = "1.2.840.10008.5.1.4.1.1.77.1.6", f"1.2.3.4.{level}"
    spacing = _element(0x0028, 0x0030, "DS", "\\".join([f"{MPP * 2**level / 1000:g}"] * 2))
    meta = b"".join(
        [
            _element(0x0002, 0x0001, "OB", b"\0\1"),
            _element(0x0002, 0x0002, "UI", storage),
            _element(0x0002, 0x0003, "UI", instance),
            _element(0x0002, 0x0010, "UI", "1.2.840.10008.1.2.4.50"),
            _element(0x0002, 0x0012, "UI", "1.2.3.4"),
        ]
    )
    body = [
        _element(0x0008, 0x0008, "CS", "ORIGINAL\\PRIMARY\\VOLUME\\NONE"),
        _element(0x0008, 0x0016, "UI", storage),
        _element(0x0008, 0x0018, "UI", instance),
        _element(0x0020, 0x000D, "UI", "1.2.3"),
        _element(0x0020, 0x000E, "UI", "1.2.3.4"),
        _element(0x0020, 0x9311, "CS", "TILED_FULL"),
        _element(0x0028, 0x0002, "US", 3),
        _element(0x0028, 0x0004, "CS", "YBR_FULL_422"),
        _element(0x0028, 0x0006, "US", 0),
        _element(0x0028, 0x0008, "IS", str(len(tiles))),
        _element(0x0028, 0x0010, "US", side),
        _element(0x0028, 0x0011, "US", side),
        *(_element(0x0028, 0x0100 + number, "US", value) for number, value in enumerate((8, 8, 7, 0))),
        _element(0x0048, 0x0006, "UL", image.shape[1]),
        _element(0x0048, 0x0007, "UL", image.shape[0]),
        _element(0x5200, 0x9229, "SQ", _item(_element(0x0028, 0x9110, "SQ", _item(spacing)))),
        struct.pack("<HH2sHI", 0x7FE0, 0x0010, b"OB", 0, 0xFFFFFFFF),
        _item(b""),
        *(_item(_even(tile, b"\0")) for tile in tiles),
        struct.pack("<HHI", 0xFFFE, 0xE0DD, 0),
    ]
    length = _element(0x0002, 0x0000, "UL", len(meta))
    path.write_bytes(bytes(128) + b"DICM" + length + meta + b"".join(body))


def _element(group: int, number: int, kind: str, value: str | int | bytes) -> bytes:
    if isinstance(value, int):
        value = value.to_bytes({"US": 2, "UL": 4}[kind], "little")
    elif isinstance(value, str):
        value = _even(value.encode(), b"\0" if kind == "UI" else b" ")
    length = struct.pack("<HI", 0, len(value)) if kind in ("OB", "SQ") else struct.pack("<H", len(value))
    return struct.pack("<HH", group, number) + kind.encode() + length + value


def _item(value: bytes) -> bytes:
    return struct.pack("<HHI", 0xFFFE, 0xE000, len(value)) + value


def _even(value: bytes, pad: bytes) -> bytes:
    return value + pad * (len(value) % 2)


def _tiles(image: NDArray[np.uint8], side: int) -> Iterator[bytes]:
    """As JPEG, row by row; white beyond the rim."""
    height, width = (-(-length // side) * side for length in image.shape[:2])
    padded = np.full((height, width, 3), 255, dtype=np.uint8)
    padded[: image.shape[0], : image.shape[1]] = image
    for top in range(0, height, side):
        for left in range(0, width, side):
            yield _jpeg(padded[top : top + side, left : left + side])


def _jpeg(image: NDArray[np.uint8], **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "jpeg", quality=90, **options)
    return file.getvalue()


def _scan_start(jpeg: bytes) -> int:
    """Where the compressed data begins, behind the header of the scan."""
    place = jpeg.index(b"\xff\xda") + 2
    return place + int.from_bytes(jpeg[place : place + 2], "big")


def _ini(sections: dict[str, dict[str, Any]]) -> str:
    lines = (
        f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in keys.items()) for name, keys in sections.items()
    )
    return "".join(lines)


WRITERS: dict[str, Callable[[Path], Path]] = {
    "mirax": lambda folder: write_mrxs(folder / "a.mrxs"),
    "hamamatsu": lambda folder: write_vms(folder / "a.vms"),
    "ndpi": lambda folder: write_ndpi(folder / "a.ndpi"),
    "dicom": lambda folder: write_dicom(folder / "a"),
    "generic-tiff": lambda folder: write_tiff(folder / "a.tif"),
    "ome-tiff": lambda folder: write_tiff(folder / "a.ome.tif", ome=True),
}
"""By what their reader calls them."""
