"""The bill of materials of a bundle: the same bytes each time, and what CycloneDX's own schema says of it."""

import json
from importlib import metadata
from pathlib import Path

import pytest

from atlas_edge.bundle import MANIFEST, read_manifest, sha256_file
from atlas_edge.cli import run_app
from atlas_edge.export.cli import app
from atlas_edge.export.report.sbom import bill_of_materials


@pytest.fixture(scope="module")
def text(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    out = tmp_path_factory.mktemp("sbom") / "folder" / "bundle.cdx.json"
    assert run_app(app, ["sbom", str(bundle), "--out", str(out)]) == 0
    assert run_app(app, ["sbom", str(bundle), "--out", str(out)]) == 2
    return out.read_text(encoding="utf-8")


def test_it_holds_model_files_and_software(bundle: Path, text: str) -> None:
    bill, manifest = json.loads(text), read_manifest(bundle)
    model = bill["metadata"]["component"]
    assert model["hashes"] == [{"alg": "SHA-256", "content": sha256_file(bundle / MANIFEST)}]
    assert model["licenses"] == [{"license": {"name": "cc0-1.0"}}]
    (weights,) = model["pedigree"]["ancestors"]
    assert weights["hashes"][0]["content"] == manifest.model.sha256
    card = model["modelCard"]
    names = [data["name"].partition(":")[0] for data in card["modelParameters"]["datasets"]]
    assert names == ["calibration", "evaluation"]
    kinds = {metric["type"]: metric for metric in card["quantitativeAnalysis"]["performanceMetrics"]}
    assert "confidenceInterval" in kinds["drop in balanced accuracy, linear probe, percentage points"]
    assert any("saturation" in limit for limit in card["considerations"]["technicalLimitations"])
    files = {part["name"]: part["hashes"][0]["content"] for part in bill["components"] if part["type"] == "file"}
    assert files == {file.path: file.sha256 for file in manifest.files}
    libraries = {part["name"]: part for part in bill["components"] if part["type"] == "library"}
    # What runs it: not what made it, or tests it.
    assert {"atlas-edge", "openvino", "numpy", "rich", "markdown-it-py"} <= libraries.keys()
    assert not {"torch", "timm", "pytest", "onnxruntime"} & libraries.keys()
    assert libraries["openvino"]["purl"] == f"pkg:pypi/openvino@{metadata.version('openvino')}"
    assert libraries["numpy"]["licenses"]
    refs = {part["bom-ref"] for part in bill["components"]} | {model["bom-ref"]}
    assert {ref for entry in bill["dependencies"] for ref in (entry["ref"], *entry["dependsOn"])} == refs
    assert str(bundle.parent) not in text and str(Path.home()) not in text


def test_the_same_bundle_gives_the_same_bytes(bundle: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, ["sbom", str(bundle)]) == 0
    assert capsys.readouterr().out == text
    assert run_app(app, ["sbom", str(bundle), "--out", str(bundle / "sbom.json")]) == 2


def test_cyclonedx_takes_it(bundle: Path) -> None:
    pytest.importorskip("cyclonedx")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    bill = bill_of_materials(bundle)
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(json.dumps(bill)) is None
    wrong = {**bill, "components": [{"type": "model"}]}
    assert validator.validate_str(json.dumps(wrong)) is not None
