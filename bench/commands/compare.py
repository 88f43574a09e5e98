"""`atlas-bench compare OLD NEW`, registered by `bench.cli`."""

from dataclasses import asdict
from pathlib import Path

from atlas_edge.cli import print_json
from atlas_edge.errors import GateFailed
from atlas_edge.options import Flag, Output


def compare(
    old: Path,
    new: Path,
    /,
    *,
    all: Flag = False,
    fail: Flag = False,
    output: Output = Output(),
) -> None:
    """Print what moved beyond noise between two reports.

    Example:
        atlas-bench compare reports/main reports/branch --fail

    Args:
        old: Report folder or report.json from before.
        new: The same from after.
        all: Print the figures that did not move, too.
        fail: Exit 3 where a figure moved to the worse.
        output: What is printed.
    """
    from atlas_edge.bench.report.compare import compare_reports
    from atlas_edge.bench.report.rows import Rows, interval_text
    from atlas_edge.bench.report.schema import read_report
    from atlas_edge.bench.report.terminal import print_rows

    screen = output.screen()
    found = compare_reports(read_report(old), read_report(new))
    shown = [one for one in found.movements if one.moved or all]
    rows = tuple(
        (
            one.encoder,
            one.figure,
            ("WORSE" if one.worse else "better") if one.moved else "within noise",
            f"{one.old.estimate:.4g}",
            f"{one.new.estimate:.4g}",
            interval_text(one.change, ".4g"),
        )
        for one in shown
    )
    if rows:
        headings = ("encoder", "figure", "verdict", "old", "new", "change, 95 %")
        print_rows(screen, [Rows(title="What moved", headings=headings, rows=rows, keys=2)])
    still = sum(not one.moved for one in found.movements)
    screen.print(f"moved beyond noise: {len(found.movements) - still} of {len(found.movements)} figures")
    for note in found.notes:
        screen.print(note, style="yellow", markup=False)
    if output.json:
        print_json(asdict(found))
    worse = [f"{one.encoder}: {one.figure}" for one in found.movements if one.worse]
    if fail and worse:
        raise GateFailed(f"moved to the worse: {'; '.join(worse)}", hint="see the table above")
