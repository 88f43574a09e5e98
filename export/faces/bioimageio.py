"""A bundle as the BioImage Model Zoo describes models: `rdf.yaml`, and tiles and embeddings to test the model by.

Written in JSON, which YAML 1.2 holds; fields as in bioimageio.spec's model description 0.5.
"""

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.selftest.run import read_selftest
from atlas_edge.manifest import Manifest
from atlas_edge.models.published.licences import why_not_shared
from atlas_edge.runtimes.plain import model_notes
from atlas_edge.spec import INPUT, OUTPUT

RDF, README = "rdf.yaml", "README.md"
_FORMAT = "0.5.6"
_TILES = 2
# SPDX's spelling of what others write in small letters.
_SPDX = {"apache-2.0": "Apache-2.0", "unlicense": "Unlicense"}


def write_description(bundle: Path, manifest: Manifest, folder: Path) -> None:
    """Write `rdf.yaml` beside the model that lies in a folder, with what it names.

    The embeddings are those that the same graph gave where the bundle was made, or full precision's where those were
    not stored.

    Raises:
        InputError: The bundle carries no selftest, or its tiles cannot be drawn here.
    """
    stored = read_selftest(bundle)
    found = stored.reference if stored.deployed is None else stored.deployed
    arrays: dict[str, NDArray[Any]] = {
        "test_input.npy": stored.draw(manifest.encoder)[:_TILES],
        "test_output.npy": found[:_TILES],
    }
    for name, array in arrays.items():
        np.save(folder / name, array, allow_pickle=False)
    card = (bundle / README).read_text(encoding="utf-8")
    (folder / README).write_text(f"{card}\n## Validation\n\n```sh\nbioimageio test {RDF}\n```\n", encoding="utf-8")
    (folder / RDF).write_text(json.dumps(description(manifest, folder), indent=2) + "\n", encoding="utf-8")


def description(manifest: Manifest, folder: Path) -> dict[str, Any]:
    """The whole of `rdf.yaml`; the files that it names lie in the folder."""
    spec, execution = manifest.encoder, manifest.execution
    model = folder / Path(execution.model_file).name
    scale = {} if spec.mpp is None else {"scale": spec.mpp, "unit": "micrometer"}
    batch = {"type": "batch"} if execution.batch is None else {"type": "batch", "size": execution.batch}
    sides = [{"type": "space", "id": side, "size": spec.tile_px, **scale} for side in ("y", "x")]
    colours = {"type": "channel", "id": "channel", "channel_names": ["red", "green", "blue"]}
    licence = manifest.model.licence
    return {
        "type": "model",
        "format_version": _FORMAT,
        "name": re.sub(r"[^A-Za-z0-9_-]+", "-", f"{spec.name}-{manifest.precision.value}")[:64],
        "description": f"Tile encoder for H&E histology, {spec.embed_dim}-d embeddings ({spec.architecture})",
        "documentation": README,
        "tags": ["pathology", "embedding", manifest.precision.value],
        **({} if why_not_shared(licence) or licence is None else {"license": _spdx(licence)}),
        "inputs": [_tensor(INPUT, [batch, *sides, colours], "uint8", folder / "test_input.npy")],
        "outputs": [
            _tensor(
                OUTPUT,
                [{"type": "batch"}, {"type": "index", "id": "index", "size": spec.embed_dim}],
                "float32",
                folder / "test_output.npy",
            )
        ],
        "weights": {"onnx": {**_file(model), "opset_version": _opset(model)}},
        "config": {"atlas_edge": model_notes(spec, licence, notice=manifest.notice)},
    }


def _tensor(name: str, axes: list[dict[str, Any]], numbers: str, test: Path) -> dict[str, Any]:
    return {"id": name, "axes": axes, "data": {"type": numbers}, "test_tensor": _file(test)}


def _file(path: Path) -> dict[str, str]:
    return {"source": path.name, "sha256": sha256(path.read_bytes()).hexdigest()}


def _opset(model: Path) -> int:
    import onnx

    graph = onnx.load(model, load_external_data=False)
    return next(int(entry.version) for entry in graph.opset_import if entry.domain in ("", "ai.onnx"))


def _spdx(licence: str) -> str:
    name = "-".join(licence.split()).lower()
    return _SPDX.get(name, name.upper().replace("-CLAUSE", "-Clause"))
