"""The folder of a conformance report, and the tiles in the form of ONNX's test runner."""

import json
import shutil
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from atlas_edge.bench.conformance.finding import Outcome
from atlas_edge.bench.conformance.rows import headline, page_rows
from atlas_edge.bench.conformance.run import Conformance
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.bench.report.html import page_html
from atlas_edge.bundle import check_outside, open_bundle
from atlas_edge.cli import require_module
from atlas_edge.errors import RuntimeMissing
from atlas_edge.spec import INPUT, OUTPUT, TOKENS
from atlas_edge.system.atomic import atomic_folder, check_vacant

JSON_FILE, HTML_FILE = "conformance.json", "conformance.html"
TEST_DATA = "test_data_set_0"
_MARKS = (JSON_FILE, HTML_FILE)
_TEST_MARKS = (f"{TEST_DATA}/input_0.pb", f"{TEST_DATA}/output_0.pb")
_TEST_TILES = 8


def check_folders(subject: Subject, report: Path | None, test_data: Path | None, *, overwrite: bool) -> None:
    """Refuse, before anybody is asked, what could not be written after.

    Raises:
        UsageError: A folder is taken, or lies in the bundle.
        RuntimeMissing: What writes it is not installed.
    """
    for folder, marks, module, extra in (
        (report, _MARKS, "jinja2", "report"),
        (test_data, _TEST_MARKS, "onnx", "torch"),
    ):
        if folder is not None:
            check_outside(subject.bundle, folder)
            check_vacant(folder, marks=marks, overwrite=overwrite)
            require_module(module, extra=extra)


def conformance_json(report: Conformance) -> dict[str, Any]:
    """Plain data."""
    return asdict(report)


def write_conformance(report: Conformance, folder: Path, *, overwrite: bool = False) -> None:
    """Write `conformance.json` and `conformance.html`, which names the hash of the former.

    Raises:
        UsageError: The folder is taken.
        RuntimeMissing: jinja2 is not installed.
    """
    data = json.dumps(conformance_json(report), indent=2) + "\n"
    page = page_html(
        title=headline(report).partition(": ")[0],
        subtitle=_subtitle(report),
        verdict="PASS" if report.passed else "FAIL",
        warnings=[
            f"{finding.program}, {finding.asked}: {finding.known}"
            for finding in report.findings
            if finding.outcome is Outcome.FAIL and finding.known is not None
        ],
        tables=page_rows(report),
        provenance=_provenance(report),
        json_file=JSON_FILE,
        json_sha256=sha256(data.encode()).hexdigest(),
    )
    with atomic_folder(folder, marks=_MARKS, overwrite=overwrite) as partial:
        for name, text in ((JSON_FILE, data), (HTML_FILE, page)):
            (partial / name).write_text(text, encoding="utf-8", newline="\n")  # the hash is of these bytes


def write_test_data(subject: Subject, out: Path, *, overwrite: bool = False) -> None:
    """Write selftest tiles and embeddings as `onnx_test_runner` reads them, beside the ONNX graph where there is one.

    The embeddings are what atlas-edge's own runtime computes here; of an engine that cannot run here, what the graph
    that it was built from gives in ONNX Runtime.

    Args:
        subject: The bundle.
        out: Folder to write: `model.onnx`, and `test_data_set_0` with `input_0.pb` and `output_0.pb` (with patch
            tokens, `output_1.pb`, too).
        overwrite: Replace what this wrote before.

    Raises:
        UsageError: The folder is taken, or lies in the bundle.
        RuntimeMissing: onnx, or the bundle's runtime, is not installed.
    """
    require_module("onnx", extra="torch")
    from onnx import numpy_helper

    check_outside(subject.bundle, out)
    count = subject.manifest.execution.batch or _TEST_TILES
    tiles = subject.tiles[:count]
    try:
        encoder = open_bundle(subject.bundle)
    except RuntimeMissing:
        if subject.manifest.execution.fallback_file is None or subject.onnx is None:
            raise
        encoder = open_bundle(subject.onnx.parent)
    try:
        has_tokens = subject.manifest.encoder.tokens is not None
        found = encoder.encode_tokens(tiles) if has_tokens else (encoder.encode(tiles),)
    finally:
        encoder.close()
    tensors = {"input_0.pb": numpy_helper.from_array(tiles, INPUT)}
    for place, (name, values) in enumerate(zip((OUTPUT, TOKENS), found, strict=False)):
        tensors[f"output_{place}.pb"] = numpy_helper.from_array(values, name)
    with atomic_folder(out, marks=_TEST_MARKS, overwrite=overwrite) as folder:
        (folder / TEST_DATA).mkdir()
        for file, tensor in tensors.items():
            (folder / TEST_DATA / file).write_bytes(tensor.SerializeToString())
        if subject.onnx is not None:
            for source in (subject.onnx, subject.onnx.with_name(f"{subject.onnx.name}.data")):
                if source.is_file():
                    shutil.copyfile(source, folder / source.name)


def _subtitle(report: Conformance) -> str:
    machine = report.machine
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ", no NVIDIA GPU"
    portable = ", portable" if report.portable else ""
    return (
        f"{report.model}, {report.target} {report.precision}{portable}. What others say of its files: "
        f"{report.created_utc} on {machine.cpu} ({machine.logical_cores} cores{gpus}), {machine.system}."
    )


def _provenance(report: Conformance) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    return [
        ("bundle", f"{report.bundle}: all {report.files} files as its manifest lists them"),
        ("manifest.json", f"SHA-256 {report.manifest_sha256}"),
        ("schema version", str(report.schema_version)),
        ("versions", f"Python {report.machine.python}, {versions}"),
    ]
