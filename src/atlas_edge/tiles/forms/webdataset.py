"""WebDataset: tar shards, a sample's files side by side under one key; read at any place, and told by arrays alone."""

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.errors import InputError
from atlas_edge.system.paths import printable
from atlas_edge.tiles.decode import MAX_TILE_BYTES, SUFFIXES, decode_tile
from atlas_edge.tiles.listing import Listing
from atlas_edge.tiles.source import TileRecord, TileSource

ABOUT = "pack.json"
"""What `atlas-distill pack` says of a folder: `tile_px`, `quality`, `mpp_range`."""

_INDEX = ".npz"
_MOST_JSON_BYTES = 2**20
_KINDS = {"keys": "S", "offsets": "i", "sizes": "i", "slides": "U", "slide": "i", "mpp": "f"}
# More than the end of a tar is padded with.
_LOOKED_AT = 16 * 2**10


@dataclass(frozen=True, slots=True)
class _Shard:
    """Samples of one tar, by number.

    Attributes:
        path: The file.
        keys: `(N,)` bytes.
        offsets: `(N,)` int64, where an image begins.
        sizes: `(N,)` int64, its bytes.
        slides: Names of slides; empty for those not stated.
        slide: `(N,)` int32, numbers of them.
        mpp: `(N,)` float32, µm per pixel; NaN where not stated.
    """

    path: Path
    keys: NDArray[np.bytes_]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    slides: tuple[str, ...]
    slide: NDArray[np.int32]
    mpp: NDArray[np.float32]


class TarTiles(TileSource):
    """A folder of `.tar` shards: of each key an image, and beside it what is known of it as `.json`: `slide`, `mpp`.

    A shard's index lies beside it (`NAME.npz`, as `tar_shard` makes it) or is read from the tar. A tile takes some 60
    bytes of memory.

    Args:
        path: See `fits`.
        split: There is none.

    Raises:
        InputError: A shard cannot be read.
    """

    kind = "webdataset"

    def __init__(self, path: Path, *, split: str | None = None) -> None:
        self.name, self.split = printable(path.resolve().name), split
        self.mpp_range = _mpp_range(path / ABOUT)
        self._shards = [_shard(file) for file in _tars(path)]
        self._ends = np.cumsum([len(shard.keys) for shard in self._shards], dtype=np.int64)

    @staticmethod
    def fits(path: Path) -> bool:
        """Whether there are tars."""
        return bool(_tars(path))

    def records(self) -> Iterator[TileRecord]:
        """Shard by shard, by name."""
        return iter(self.listing())

    def listing(self) -> Sequence[TileRecord]:
        """See `TileSource.listing`."""
        return Listing(self._record, int(self._ends[-1]))

    def read(self, record: TileRecord) -> NDArray[np.uint8]:
        """See `TileSource.read`."""
        number, offset, size = (int(part) for part in record.locator)
        path = self._shards[number].path
        try:
            with path.open("rb") as file:
                file.seek(offset)
                data = file.read(size)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}", hint="copy it again") from error
        return decode_tile(data, name=record.id)

    def place(self, record: TileRecord) -> tuple[str, str]:
        """The shard, and where in it."""
        return str(self._shards[int(record.locator[0])].path), str(record.locator[1])

    def splits(self) -> frozenset[str]:
        """There are none."""
        return frozenset()

    def fingerprint(self) -> str:
        """SHA-256 over the shards' sizes, and keys, offsets, slides and µm per pixel of all tiles."""
        digest = hashlib.sha256()
        for shard in self._shards:
            digest.update(json.dumps([shard.path.stat().st_size, *shard.slides]).encode())
            for array in (shard.keys, shard.offsets, shard.sizes, shard.slide, shard.mpp):
                digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()

    def _record(self, number: int) -> TileRecord:
        of = int(np.searchsorted(self._ends, number, side="right"))
        shard = self._shards[of]
        place = number - int(self._ends[of]) + len(shard.keys)
        mpp = float(shard.mpp[place])
        return TileRecord(
            id=f"{shard.path.stem}/{shard.keys[place].decode(errors='replace')}",
            group=shard.slides[shard.slide[place]] or None,
            mpp=mpp if mpp == mpp else None,
            locator=(of, int(shard.offsets[place]), int(shard.sizes[place])),
        )


def tar_shard(samples: Iterable[tuple[str, bytes, Mapping[str, Any]]]) -> tuple[bytes, bytes]:
    """A shard and its index.

    Args:
        samples: Key, image (JPEG) and facts of each; `slide` and `mpp` go into the index, too.
    """
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for key, image, facts in samples:
            for suffix, data in ((".jpg", image), (".json", json.dumps(dict(facts)).encode())):
                member = tarfile.TarInfo(key + suffix)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    made.seek(0)
    arrays: dict[str, Any] = {**_scanned(made, "the shard that was made"), "of": np.str_(_identity(made))}
    index = io.BytesIO()
    np.savez(index, **arrays)
    return made.getvalue(), index.getvalue()


def _tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar")) if folder.is_dir() else []


def _mpp_range(about: Path) -> tuple[float, float] | None:
    try:
        finest, coarsest = (float(mpp) for mpp in json.loads(about.read_bytes())["mpp_range"])
    except (OSError, ValueError, KeyError, TypeError):  # a folder of somebody else's, or tiles at single scales
        return None
    return (finest, coarsest) if 0 < finest < coarsest < float("inf") else None


def _shard(path: Path) -> _Shard:
    index = path.with_suffix(_INDEX)
    with path.open("rb") as file:
        found = _stored(index, file) if index.is_file() else None
        if found is None:
            file.seek(0)
            found = _scanned(file, str(path))
    slides = tuple(str(name) for name in found["slides"])
    return _Shard(path, found["keys"], found["offsets"], found["sizes"], slides, found["slide"], found["mpp"])


def _identity(tar: Any) -> str:
    """Hash of a tar's size, beginning and end: tars are padded, so that many are of one size."""
    size = tar.seek(0, io.SEEK_END)
    digest = hashlib.sha256(str(size).encode())
    for start in (0, max(size - _LOOKED_AT, 0)):
        tar.seek(start)
        digest.update(tar.read(_LOOKED_AT))
    return digest.hexdigest()


def _stored(index: Path, tar: Any) -> dict[str, NDArray[Any]] | None:
    """A shard's index as it lies beside it; None where it is of another one, or damaged."""
    try:
        with np.load(io.BytesIO(index.read_bytes()), allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
            size, count = tar.seek(0, io.SEEK_END), len(found["keys"])
            ends = found["offsets"] + found["sizes"]
            whole = all(len(found[name]) == count for name in ("offsets", "sizes", "slide", "mpp"))
            inside = found["offsets"].min(initial=0) >= 0 and ends.max(initial=0) <= size
            known = found["slide"].min(initial=0) >= 0 and found["slide"].max(initial=-1) < len(found["slides"])
            whole &= {name: found[name].dtype.kind for name in _KINDS} == _KINDS
            return found if str(found["of"]) == _identity(tar) and whole and inside and known else None
    except Exception:  # of a damaged file NumPy raises almost anything; the tar itself is read then
        return None


def _scanned(file: Any, name: str) -> dict[str, NDArray[Any]]:
    """Index of a tar: of each key the image, and what its `.json` says."""
    images: dict[str, tuple[int, int]] = {}
    facts: dict[str, tuple[str, float]] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                key, dot, suffix = member.name.rpartition(".")
                if not member.isfile() or not dot:
                    continue
                if "." + suffix.lower() in SUFFIXES and member.size <= MAX_TILE_BYTES:
                    images[key] = member.offset_data, member.size
                elif suffix == "json" and member.size <= _MOST_JSON_BYTES:
                    facts[key] = _facts(tar.extractfile(member))
    except Exception as error:  # of a damaged header tarfile raises what its numbers and names raise
        raise InputError(f"{name} is no whole tar: {error}", hint="copy it again, or make it again") from error
    slides = sorted({facts.get(key, ("", 0.0))[0] for key in images})
    numbers = {slide: number for number, slide in enumerate(slides)}
    found = [facts.get(key, ("", float("nan"))) for key in images]
    places = np.array(list(images.values()), dtype=np.int64).reshape(-1, 2)
    return {
        "keys": np.array([key.encode() for key in images], dtype=np.bytes_),
        "offsets": places[:, 0],
        "sizes": places[:, 1],
        "slides": np.array(slides, dtype=np.str_),
        "slide": np.array([numbers[slide] for slide, _ in found], dtype=np.int32),
        "mpp": np.array([mpp for _, mpp in found], dtype=np.float32),
    }


def _facts(file: Any) -> tuple[str, float]:
    try:
        said = json.loads(file.read())
        slide, mpp = said.get("slide"), said.get("mpp")
    except (ValueError, AttributeError):  # a .json of somebody else's
        return "", float("nan")
    known = isinstance(mpp, int | float) and not isinstance(mpp, bool) and 0 < mpp < float("inf")
    return (slide if isinstance(slide, str) else ""), float(mpp) if known else float("nan")
