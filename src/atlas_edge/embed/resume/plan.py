"""What embeddings depend on beside the slide. Those of two plans never lie in one folder."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.bundle import sha256_file
from atlas_edge.embed.slide_files import SlideIdentity
from atlas_edge.errors import UsageError
from atlas_edge.slides.readers.ngff import is_ngff
from atlas_edge.spec import EncoderSpec
from atlas_edge.system.paths import printable

if TYPE_CHECKING:
    from atlas_edge.embed.config import EmbedConfig

Plan = dict[str, Any]

ABOUT = "atlas_edge.json"
"""What a `.pt` holds the attributes in, beside PyTorch's own records."""

SPATIALDATA_ABOUT = "atlas_edge"
"""The attribute of a `.spatialdata` that holds the attributes."""

_SCALE = ("given_mpp", "override_mpp")
_SAME_MPP = 0.011
"""A level within 1 % of the wanted scale is embedded as it is."""


def plan_of(spec: EncoderSpec, config: "EmbedConfig", bundle_sha256: str) -> Plan:
    """The plan, by the names of the attributes that say it in an output; through JSON unchanged."""
    given = {} if config.mpp is None else {"given_mpp": config.mpp}
    override = {"override_mpp": True} if given and config.override_mpp else {}
    return {
        **given,
        **override,
        "encoder": spec.name,
        "bundle_sha256": bundle_sha256,
        "tile_px": spec.tile_px,
        "tile_mpp": config.tile_mpp or spec.mpp,
        "min_tissue": config.min_tissue,
        "tissue": config.tissue,
        "pen": config.pen,
        "overlap": config.overlap,
        "stain": config.stain or "",
        "icc": config.icc,
        "tokens": config.tokens,
        "most_tiles": config.most_tiles or 0,
        "mask_sha256": sha256_file(config.mask) if config.mask is not None else "",
    }


def differences(said: Mapping[str, Any], plan: Plan) -> list[str]:
    """In words, where what an output or a journal says of its plan is not `plan`; what it does not say is the same."""
    # Written before there were these.
    said = {"overlap": 0, "stain": "", "icc": False, "tokens": False, "most_tiles": 0, "mask_sha256": "", **said}
    found = [
        f"{name} {_short(said[name])}, now {_short(value)}"
        for name, value in plan.items()
        if name in said and name not in _SCALE and not _same(said[name], value)
    ]
    found += _scale_differences(said, plan)
    if "tile_mpp" not in said and "mpp" in said and plan["tile_mpp"]:
        # Written before attributes held what was asked for.
        mpp = float(said["mpp"])
        if not math.isclose(mpp, plan["tile_mpp"], rel_tol=_SAME_MPP):
            found.append(f"mpp {mpp:g}, now {plan['tile_mpp']:g}")
    return found


def other_plan(out: Path, different: list[str]) -> UsageError:
    """What to say where embeddings of another plan are."""
    return UsageError(
        f"{printable(out)} holds embeddings that were made otherwise: {'; '.join(different)}",
        hint="add --re-embed to embed those slides again, or choose another --out",
    )


def attributes_of(out: Path) -> dict[str, Any] | None:
    """An output's attributes; None where it is none that can be read."""
    try:
        return _READERS[out.suffix](out)
    except Exception:  # whatever lies there, each library has its own words for it
        return None


def is_of_slide(said: Mapping[str, Any], path: Path) -> bool:
    """Whether an output was made of a slide with this file name."""
    return said.get("slide") in (None, printable(path.name))


def is_current(out: Path, said: Mapping[str, Any], identity: SlideIdentity) -> bool:
    """Whether the slide's files still look as they did when they were embedded."""
    if "slide_size_bytes" in said:
        return (int(said["slide_size_bytes"]), int(said["slide_mtime_ns"])) == (identity.size_bytes, identity.mtime_ns)
    return out.stat().st_mtime_ns >= identity.mtime_ns


def _scale_differences(said: Mapping[str, Any], plan: Plan) -> list[str]:
    """What `--mpp` changes: slides that do not say their scale, and one that is named alone whatever it says."""
    given = plan.get("given_mpp")
    if "slide_mpp_source" not in said:  # a journal, which holds for many slides
        before = said.get("given_mpp")
        return [] if before is None or _same(before, given) else [f"given_mpp {before}, now {_short(given or '')}"]
    if said["slide_mpp_source"] == "slide" and not plan.get("override_mpp"):
        return []
    scales = [float(said[name]) for name in ("slide_mpp", "slide_mpp_y") if name in said]
    if given is not None and all(math.isclose(scale, given) for scale in scales):
        return []
    return [f"slide_mpp {scales[0]:g} by {said['slide_mpp_source']}, now {_short(given or 'what the slide says')}"]


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, str) and not isinstance(other, str):  # parquet keeps text
        return one == str(other)
    return bool(one == other)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text or "none"


def _hdf5(out: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(out, "r") as file:
        return dict(file.attrs)


def _zarr(out: Path) -> dict[str, Any]:
    import zarr

    if is_ngff(out):
        raise ValueError("it is a slide")
    return dict(zarr.open_group(out, mode="r").attrs)


def _parquet(out: Path) -> dict[str, Any]:
    import pyarrow.parquet

    found = pyarrow.parquet.read_schema(out).metadata or {}
    return {key.decode(): value.decode() for key, value in found.items()}


def _pt(out: Path) -> dict[str, Any]:
    with zipfile.ZipFile(out) as file:
        (name,) = (name for name in file.namelist() if name.endswith(f"/{ABOUT}"))
        found: dict[str, Any] = json.loads(file.read(name))
    return found


def _spatialdata(out: Path) -> dict[str, Any]:
    import zarr

    return dict(zarr.open_group(out, mode="r").attrs[SPATIALDATA_ABOUT])


_READERS = {
    ".h5": _hdf5, ".hdf5": _hdf5, ".h5ad": _hdf5, ".zarr": _zarr, ".spatialdata": _spatialdata, ".parquet": _parquet,
    ".pt": _pt,
}  # fmt: skip
