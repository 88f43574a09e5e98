"""The folder of a LoadGen report: its figures, a page, and LoadGen's own logs."""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from atlas_edge.bench.conformance.subject import read_subject
from atlas_edge.bench.loadgen.rows import loadgen_rows
from atlas_edge.bench.loadgen.run import LoadGenReport, run_loadgen
from atlas_edge.bench.report.html import page_html
from atlas_edge.bundle import check_outside
from atlas_edge.cli import require_module
from atlas_edge.system.atomic import atomic_folder

JSON_FILE, HTML_FILE, LOGS = "loadgen.json", "loadgen.html", "logs"


def loadgen_json(report: LoadGenReport) -> dict[str, Any]:
    """Plain data."""
    return asdict(report)


def written_loadgen(
    bundle: Path, folder: Path, *, seconds: float, device: str | None, threads: int | None, overwrite: bool
) -> LoadGenReport:
    """Run LoadGen, and write the folder: it appears whole or not at all.

    Raises:
        UsageError: The folder is taken, or lies in the bundle.
        InputError: The bundle is damaged, or carries no selftest.
        RuntimeMissing: LoadGen, jinja2, the runtime or its device is not here.
    """
    for module, extra in (("mlperf_loadgen", "loadgen"), ("jinja2", "report")):
        require_module(module, extra=extra)
    check_outside(bundle, folder)
    subject = read_subject(bundle)
    with atomic_folder(folder, marks=(JSON_FILE, HTML_FILE), overwrite=overwrite) as partial:
        report = run_loadgen(subject, partial / LOGS, seconds=seconds, device=device, threads=threads)
        data = json.dumps(loadgen_json(report), indent=2) + "\n"
        texts = {JSON_FILE: data, HTML_FILE: _page(report, data)}
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8", newline="\n")  # the hash is of these bytes
    return report


def _page(report: LoadGenReport, data: str) -> str:
    machine = report.machine
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    return page_html(
        title=f"MLPerf LoadGen on {report.bundle}",
        subtitle=(
            f"{report.model}, {report.target} {report.precision}: {report.created_utc} on {machine.cpu} "
            f"({machine.logical_cores} cores{gpus}), {machine.system}. Not an MLPerf submission."
        ),
        verdict="PASS" if report.passed else "FAIL",
        warnings=(),
        tables=loadgen_rows(report),
        provenance=[
            ("manifest.json", f"SHA-256 {report.manifest_sha256}"),
            ("logs", f"LoadGen's own, in {LOGS}/ beside this page"),
            ("versions", ", ".join(f"{name} {version}" for name, version in machine.versions.items())),
        ],
        json_file=JSON_FILE,
        json_sha256=sha256(data.encode()).hexdigest(),
    )
