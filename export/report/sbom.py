"""A bill of materials in CycloneDX 1.6: the model (ML-BOM), its files, and the software that runs it (SBOM).

The same bundle in the same install gives the same bytes: nothing in it is of this moment or of this machine's folders.
"""

import json
import re
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from atlas_edge.bundle import MANIFEST, sha256_file, verify_bundle
from atlas_edge.cli import require_module
from atlas_edge.manifest import Manifest, TilesProvenance
from atlas_edge.runtimes.registry import runtime_of

SPEC_VERSION = "1.6"
_OURS = "atlas-edge"
_MODEL, _FILES, _LIBRARIES = "model", "file", "pkg:pypi"


def bill_of_materials(bundle: Path) -> dict[str, Any]:
    """The bill of a bundle and of what runs it in this install, as JSON-ready data.

    Args:
        bundle: Bundle folder; all its files are checked.

    Returns:
        A CycloneDX document (ECMA-424): `metadata.component` is the model with its card, `components` are the
        bundle's files and every distribution that `atlas-edge` with the extra of the bundle's target needs here.

    Raises:
        InputError, ChecksumError: The bundle is damaged.
        RuntimeMissing: `packaging` is not installed.
    """
    require_module("packaging", extra="onnx")
    manifest = verify_bundle(bundle)
    libraries = dict(sorted(_installed(runtime_of(manifest.target).extra)))
    model = _model(manifest, sha256_file(bundle / MANIFEST))
    document = {
        "$schema": f"http://cyclonedx.org/schema/bom-{SPEC_VERSION}.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": SPEC_VERSION,
        "version": 1,
        "metadata": {
            "timestamp": manifest.created_utc,
            "tools": {"components": [{"type": "application", "name": _OURS, "version": metadata.version(_OURS)}]},
            "component": model,
        },
        "components": [*_files(manifest), *(_library(name) for name in libraries)],
        "dependencies": [
            {
                "ref": _MODEL,
                "dependsOn": [_library_ref(_OURS), *(f"{_FILES}:{file.path}" for file in manifest.files)],
            },
            *(
                {"ref": _library_ref(name), "dependsOn": [_library_ref(other) for other in sorted(needs)]}
                for name, needs in libraries.items()
            ),
        ],
    }
    content = json.dumps(document, sort_keys=True)
    return {**document, "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, content)}"}


def _model(manifest: Manifest, manifest_sha256: str) -> dict[str, Any]:
    spec, source = manifest.encoder, manifest.model
    side = spec.tile_px
    datasets = [("calibration", manifest.calibration), ("evaluation", manifest.evaluation)]
    outputs = [f"{('B', *shape)} float32" for shape in spec.output_shapes(tokens=True)]
    parameters = {
        "task": "image-feature-extraction",
        "modelArchitecture": spec.architecture,
        "datasets": [_dataset(role, tiles) for role, tiles in datasets if tiles is not None],
        "inputs": [{"format": f"('B', {side}, {side}, 3) uint8 RGB"}],
        "outputs": [{"format": text} for text in outputs],
    }
    limits = [text for text in (spec.notice, manifest.notice, *source.assumptions) if text]
    weights = {
        "type": "machine-learning-model",
        "name": source.name,
        **({"version": source.revision} if source.revision else {}),
        **({"hashes": [_sha256(source.sha256)]} if source.sha256 else {}),
        **_licence(source.licence),
    }
    made_with = {f"made with {name}": version for name, version in manifest.versions.items()}
    said = {"target": manifest.target.value, "precision": manifest.precision.value, **made_with}
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": f"{spec.name} for {manifest.target.value}, {manifest.precision.value}",
        "hashes": [_sha256(manifest_sha256)],
        **_licence(source.licence),
        "pedigree": {"ancestors": [weights], "notes": "the hash of the bundle is that of its manifest.json"},
        "modelCard": {
            "modelParameters": parameters,
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(manifest))},
            **({"considerations": {"technicalLimitations": limits}} if limits else {}),
        },
        "properties": [{"name": f"{_OURS}:{name}", "value": value} for name, value in said.items()],
    }


def _dataset(role: str, tiles: TilesProvenance) -> dict[str, Any]:
    said = {
        "tiles": str(tiles.tiles),
        "fingerprint": tiles.fingerprint,
        "synthetic": str(tiles.synthetic).lower(),
        **({"split": tiles.split} if tiles.split else {}),
        "licence": tiles.licence or "not stated",
    }
    properties = [{"name": f"{_OURS}:{name}", "value": value} for name, value in said.items()]
    return {"type": "dataset", "name": f"{role}: {tiles.name}", "contents": {"properties": properties}}


def _metrics(manifest: Manifest) -> Iterator[dict[str, Any]]:
    """What the export measured of the bundle against full precision."""
    found = manifest.verification or {}
    for name in ("cosine_median", "cosine_p1", "cosine_worst"):
        if name in found:
            yield {"type": f"{name.replace('_', ' ')} to full precision", "value": repr(found[name])}
    for method, drop in found.get("drops", {}).items():
        yield {
            "type": f"drop in balanced accuracy, {method} probe, percentage points",
            "value": repr(drop["drop_pp"]),
            "confidenceInterval": {"lowerBound": repr(drop["low_pp"]), "upperBound": repr(drop["high_pp"])},
        }


def _files(manifest: Manifest) -> list[dict[str, Any]]:
    return [
        {"type": "file", "bom-ref": f"{_FILES}:{file.path}", "name": file.path, "hashes": [_sha256(file.sha256)]}
        for file in manifest.files
    ]


def _installed(extra: str) -> Iterator[tuple[str, set[str]]]:
    """Every distribution that atlas-edge with an extra needs and that is installed here, and what each needs."""
    from packaging.requirements import Requirement

    wanted: list[tuple[str, frozenset[str]]] = [(_OURS, frozenset({extra}))]
    seen: dict[tuple[str, frozenset[str]], set[str]] = {}
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        needs = seen[name, extras] = set()
        for text in metadata.requires(name) or ():
            requirement = Requirement(text)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": each}) for each in extras or {""}):
                other = _normal(requirement.name)
                if other != _OURS and _is_installed(other):
                    needs.add(other)
                    wanted.append((other, frozenset(requirement.extras)))
    for name in {name for name, _ in seen}:
        yield name, set().union(*(needs for (other, _), needs in seen.items() if other == name))


def _is_installed(name: str) -> bool:
    try:
        metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _library(name: str) -> dict[str, Any]:
    about = metadata.distribution(name).metadata
    return {
        "type": "library",
        "bom-ref": _library_ref(name),
        "name": name,
        "version": about["Version"],
        "purl": _library_ref(name),
        **_licence(_declared(about)),
    }


def _library_ref(name: str) -> str:
    return f"{_LIBRARIES}/{name}@{metadata.version(name)}"


def _declared(about: Any) -> str | None:
    """The licence that a distribution declares: an expression, a classifier, or a line of its own."""
    if about.get("License-Expression"):
        return str(about["License-Expression"])
    classifiers = [text for text in about.get_all("Classifier", []) if text.startswith("License ::")]
    if classifiers:
        return ", ".join(text.rpartition(" :: ")[2] for text in classifiers)
    first = next(iter((about.get("License") or "").strip().splitlines()), "")
    return first[:80] or None


def _licence(name: str | None) -> dict[str, Any]:
    return {} if name is None else {"licenses": [{"license": {"name": name}}]}


def _sha256(digest: str) -> dict[str, str]:
    return {"alg": "SHA-256", "content": digest}


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
