"""`atlas-bench loadgen BUNDLE`, registered by `bench.cli`."""

from pathlib import Path
from typing import Annotated

from annotated_types import Gt
from cyclopts import Parameter, validators

from atlas_edge.cli import print_json
from atlas_edge.errors import GateFailed
from atlas_edge.options import Flag, Output, Threads


def loadgen(
    bundle: Path,
    /,
    *,
    report: Path,
    seconds: Annotated[float, Gt(0), Parameter(validator=validators.Number(gt=0))] = 60.0,
    device: str | None = None,
    threads: Threads = None,
    overwrite: Flag = False,
    output: Output = Output(),
) -> None:
    """Run a bundle under MLPerf's own LoadGen: SingleStream and Offline, performance, accuracy and TEST01.

    Its logs are kept beside loadgen.json and loadgen.html. Exit 3 where accuracy mode misses what selftest asks for, or
    what is computed while it is timed is something else. Example:

        atlas-bench loadgen bundles/atlas2-s-openvino-int8 --report reports/loadgen

    Args:
        bundle: Bundle folder, of any target.
        report: Folder to write.
        seconds: Least duration of each of the four timed runs; MLPerf's rules ask for 600.
        device: What the bundle runs on, as its runtime calls it; chosen by the runtime when left out.
        threads: Inference threads; the runtime's own choice when left out.
        overwrite: Replace that folder where it exists.
        output: What is printed.
    """
    from atlas_edge.bench.loadgen.files import loadgen_json, written_loadgen
    from atlas_edge.bench.loadgen.rows import loadgen_rows
    from atlas_edge.bench.report.terminal import print_rows

    screen = output.screen()
    screen.print(f"LoadGen runs for about {4 * seconds + 60:.0f} s", style="dim")
    found = written_loadgen(bundle, report, seconds=seconds, device=device, threads=threads, overwrite=overwrite)
    print_rows(screen, loadgen_rows(found))
    screen.print(f"written: {report}/", soft_wrap=True)
    if output.json:
        print_json(loadgen_json(found))
    if not found.passed:
        failed = [name for name, scenario in found.scenarios.items() if not scenario.passed]
        raise GateFailed(
            f"{bundle}: {', '.join(failed)} computes something else under LoadGen than it should",
            hint="atlas-bench selftest says whether the bundle is sound here",
        )
