"""`atlas-bench conformance BUNDLE`, registered by `bench.cli`."""

from pathlib import Path

from atlas_edge.cli import print_json
from atlas_edge.errors import GateFailed
from atlas_edge.options import Flag, Output


def conformance(
    bundle: Path,
    /,
    *,
    report: Path | None = None,
    test_data: Path | None = None,
    public_key: Path | None = None,
    overwrite: Flag = False,
    output: Output = Output(),
) -> None:
    """Ask programs that others wrote what they say of a bundle's files, each with its own defaults.

    ONNX's checker, shape inference and reference evaluator, plain ONNX Runtime and OpenVINO, Polygraphy, the parsers of
    TensorRT, OpenSlide, CLAM, TRIDENT, bioimageio, model signing: PASS, FAIL, or SKIPPED where one is not installed or
    has nothing to say. Exit 3 where one refuses a file, or computes something else of it; the report is written all the
    same. For example:

        atlas-bench conformance bundles/atlas2-s-onnx-int8 --report reports/conformance

    Args:
        bundle: Bundle folder, of any target.
        report: Folder to write conformance.html and conformance.json into.
        test_data: Folder to write the ONNX graph and test_data_set_0 into, as onnx_test_runner takes them.
        public_key: Of whoever should have signed the bundle (BUNDLE.sig beside it).
        overwrite: Replace those folders where they exist.
        output: What is printed.
    """
    from atlas_edge.bench.conformance.files import check_folders, conformance_json, write_conformance, write_test_data
    from atlas_edge.bench.conformance.finding import Outcome
    from atlas_edge.bench.conformance.rows import terminal_rows
    from atlas_edge.bench.conformance.run import run_conformance
    from atlas_edge.bench.conformance.subject import read_subject
    from atlas_edge.bench.report.terminal import print_rows

    screen = output.screen()
    subject = read_subject(bundle, public_key=public_key)
    check_folders(subject, report, test_data, overwrite=overwrite)
    found = run_conformance(subject, progress=lambda what: screen.print(what, style="dim", soft_wrap=True))
    print_rows(screen, [terminal_rows(found)])
    screen.print(f"manifest: SHA-256 {found.manifest_sha256}", soft_wrap=True)
    if output.json:  # first: a full disk must not take the findings with it
        print_json(conformance_json(found))
    if report is not None:
        write_conformance(found, report, overwrite=overwrite)
        screen.print(f"written: {report}/", soft_wrap=True)
    if test_data is not None:
        write_test_data(subject, test_data, overwrite=overwrite)
        screen.print(f"written: {test_data}/", soft_wrap=True)
    failed = [f"{one.program} ({one.asked})" for one in found.findings if one.outcome is Outcome.FAIL]
    if failed:
        raise GateFailed(f"{bundle}: FAIL by {', '.join(failed)}", hint="see what each said, above or in the report")
