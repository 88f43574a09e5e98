"""`atlas-bench selftest BUNDLE`, registered by `bench.cli`."""

from pathlib import Path

from atlas_edge.cli import print_json
from atlas_edge.errors import GateFailed
from atlas_edge.options import Output


def selftest(
    bundle: Path,
    /,
    *,
    out: Path = Path("selftest"),
    speed: bool = True,
    rounds: int = 6,
    batch: int = 32,
    device: str | None = None,
    output: Output = Output(),
) -> None:
    """Run a bundle on this machine against the full-precision embeddings stored in it, and time its precisions.

    Of a package the variant that is best here. The report, to send back to whoever made the bundle, says besides what
    this machine is and lacks, as atlas-export doctor does. Exit 3 where a precision computes something else here than
    where it was made, 4 where its runtime or GPU is missing; the report is written all the same. Example:

        atlas-bench selftest bundles/atlas2-s-tensorrt-int8

    Args:
        bundle: Bundle folder, of any target, or a package.
        out: Report: one file where it ends in .html, .md or .json; both OUT.json and OUT.md otherwise.
        speed: Time the bundle, and FP16 beside INT8 where the bundle holds both.
        rounds: Turns of each precision.
        batch: Tiles a call in the throughput scenario.
        device: What the bundle runs on, as its runtime calls it; chosen by the runtime when left out.
        output: What is printed.
    """
    from atlas_edge.bench.report.terminal import print_rows
    from atlas_edge.bench.selftest.workstation import (
        FORMS,
        examine,
        workstation_json,
        workstation_rows,
        workstation_text,
    )
    from atlas_edge.system.atomic import write_atomic

    screen = output.screen()
    report = examine(
        bundle,
        device=device,
        speed=speed,
        rounds=rounds,
        batch=batch,
        progress=lambda what: screen.print(what, style="dim", soft_wrap=True),
    )
    print_rows(screen, workstation_rows(report))
    screen.print(f"for support: {report.advice.support}", soft_wrap=True)
    files = [out] if out.suffix in FORMS else [out.with_name(out.name + form) for form in (".json", ".md")]
    out.parent.mkdir(parents=True, exist_ok=True)
    for file in files:
        write_atomic(file, workstation_text(report, file.suffix).encode())
    screen.print(f"written: {' and '.join(map(str, files))}; please send back", soft_wrap=True)
    if output.json:
        print_json(workstation_json(report))
    if report.error is not None:
        raise report.error
    if report.selftest is not None and not report.passed:
        failed = [name for name, case in report.selftest.cases.items() if not case.passed]
        raise GateFailed(
            f"{', '.join(failed)} computes something else here than where the bundle was made",
            hint=f"send {files[0]} to whoever made the bundle, and use another precision or target",
        )
