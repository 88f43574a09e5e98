"""`atlas-bench selftest BUNDLE`, registered by `bench.cli`."""

from dataclasses import asdict
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

    Writes OUT.json and OUT.md to send back to whoever made the bundle. Exit 3 where a precision computes something
    else here than where it was made, 4 where its runtime or GPU is missing. Example:

        atlas-bench selftest bundles/atlas2-s-tensorrt-int8

    Args:
        bundle: Bundle folder, of any target.
        out: Reports, without ending.
        speed: Time the bundle, and FP16 beside INT8 where the bundle holds both.
        rounds: Turns of each precision.
        batch: Tiles a call in the throughput scenario.
        device: What the bundle runs on, as its runtime calls it; chosen by the runtime when left out.
        output: What is printed.
    """
    import json as json_module

    from atlas_edge.bench.report.terminal import print_rows
    from atlas_edge.bench.selftest.rows import selftest_markdown, selftest_rows
    from atlas_edge.bench.selftest.run import run_selftest
    from atlas_edge.system.atomic import write_atomic

    screen = output.screen()
    report = run_selftest(bundle, speed=speed, rounds=rounds, batch=batch, device=device)
    data = asdict(report)
    text = selftest_markdown(report)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out.with_suffix(".json"), (json_module.dumps(data, indent=2, default=str) + "\n").encode())
    write_atomic(out.with_suffix(".md"), text.encode())
    print_rows(screen, selftest_rows(report))
    screen.print(f"written: {out.with_suffix('.json')} and {out.with_suffix('.md')}; please send them back")
    if output.json:
        print_json(data)
    if not report.passed:
        failed = [name for name, case in report.cases.items() if not case.passed]
        raise GateFailed(
            f"{', '.join(failed)} computes something else here than where the bundle was made",
            hint=f"send {out.with_suffix('.json')} to whoever made the bundle, and use another precision or target",
        )
