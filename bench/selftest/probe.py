"""A linear probe beside a bundle: so that a decision, and not only an embedding, is compared on the workstation.

It is fitted on the full-precision encoder's embeddings of labelled tiles, and lies beside the folder, which holds what
its manifest lists and no more:

```
BUNDLE.probe.safetensors           weights, and what they were fitted on
BUNDLE.probe.safetensors.sha256    the hash of that file, as sha256sum writes it
```
"""

import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.probe import LinearWeights
from atlas_edge.bundle import MANIFEST, sha256_file
from atlas_edge.errors import ChecksumError, InputError
from atlas_edge.manifest import TilesProvenance
from atlas_edge.system.atomic import write_atomic

PROBE_SUFFIX, SUM_SUFFIX = ".probe.safetensors", ".sha256"
_TENSORS = ("mean", "scale", "weights", "bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredProbe:
    """A probe that was fitted, and what it belongs to.

    Attributes:
        linear: The classifier.
        classes: What its classes are called.
        tiles: What it was fitted on.
        reference_sha256: Of the encoder whose embeddings it was fitted on; None where its weights have no file.
    """

    linear: LinearWeights
    classes: tuple[str, ...]
    tiles: TilesProvenance
    reference_sha256: str | None

    def decide(self, embeddings: NDArray[np.float32]) -> NDArray[np.int64]:
        """The class of each embedding, `(N,)` places in `classes`."""
        decided: NDArray[np.int64] = self.linear.logits(embeddings).argmax(axis=1)
        return decided


def probe_beside(bundle: Path) -> Path:
    """Where the probe of a bundle lies."""
    bundle = bundle.resolve()
    return bundle.with_name(bundle.name + PROBE_SUFFIX)


def write_probe(bundle: Path, probe: StoredProbe) -> Path:
    """Store a probe beside a bundle, in the place of one that is there.

    Returns:
        The file written.
    """
    from safetensors.numpy import save

    said = {
        "manifest_sha256": sha256_file(bundle / MANIFEST),
        "classes": json.dumps(probe.classes),
        "tiles": probe.tiles.model_dump_json(),
        "reference_sha256": probe.reference_sha256 or "",
    }
    data = save({name: np.ascontiguousarray(getattr(probe.linear, name)) for name in _TENSORS}, metadata=said)
    path = probe_beside(bundle)
    write_atomic(path, data)
    write_atomic(_sum_of(path), f"{sha256(data).hexdigest()}  {path.name}\n".encode())
    return path


def read_probe(bundle: Path) -> StoredProbe | None:
    """The probe beside a bundle; None where there is none.

    Raises:
        ChecksumError: It differs from its hash, or belongs to another bundle.
        InputError: It cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    path = probe_beside(bundle)
    if not path.is_file():
        return None
    again = "fit it again: atlas-bench probe"
    stated = _sum_of(path).read_text(encoding="ascii", errors="replace").split() if _sum_of(path).is_file() else []
    if not stated or sha256_file(path) != stated[0]:
        raise ChecksumError(f"{path.name} is not the file of its {SUM_SUFFIX}", hint=f"copy both again, or {again}")
    try:
        with safe_open(path, framework="numpy") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in _TENSORS}
        probe = StoredProbe(
            linear=LinearWeights(**tensors),
            classes=tuple(json.loads(said["classes"])),
            tiles=TilesProvenance.model_validate_json(said["tiles"]),
            reference_sha256=said["reference_sha256"] or None,
        )
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{path.name} cannot be read: {error}", hint=again) from error
    if said.get("manifest_sha256") != sha256_file(bundle / MANIFEST):
        raise ChecksumError(f"{path.name} was fitted for another bundle of that name", hint=again)
    return probe


def _sum_of(path: Path) -> Path:
    return path.with_name(path.name + SUM_SUFFIX)
