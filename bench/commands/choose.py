"""`atlas-bench choose PACKAGE`, registered by `bench.cli`."""

from pathlib import Path

from atlas_edge.cli import print_json
from atlas_edge.options import Flag, Output, Threads


def choose(
    package: Path,
    /,
    *,
    device: str | None = None,
    threads: Threads = None,
    again: Flag = False,
    output: Output = Output(),
) -> None:
    """Find which variant of a package is best on this machine, and say why.

    A variant whose embeddings are farther from full precision here than where it was made is dropped; a less exact one
    is taken only where it is faster, by 5 % with all of the 95 % interval. What was found is remembered for this
    package on this machine, and `open_bundle`, atlas-embed and atlas-bench go by it. Example:

        atlas-bench choose atlas2-s-package

    Args:
        package: What atlas-export pack, or --target auto, wrote.
        device: Try the variants on this device only, as --device elsewhere.
        threads: Inference threads; the runtimes' own choice when left out.
        again: Measure, also where it is remembered.
        output: What is printed.
    """
    from atlas_edge.bench.choose.rows import called, choice_rows
    from atlas_edge.bench.report.terminal import print_rows
    from atlas_edge.package.choice import measure, remembered, the_chosen
    from atlas_edge.package.manifest import read_package

    screen = output.screen()
    names = [variant.name for variant in read_package(package).variants]
    known = None if again else remembered(package, device=device, threads=threads)
    choice = known or measure(
        package,
        device=device,
        threads=threads,
        progress=lambda what: screen.print(f"measuring {what}", style="dim"),
    )
    print_rows(screen, [choice_rows(package.resolve().name, choice)])
    if known is not None:
        screen.print(f"measured {known.created_utc}; --again measures anew", style="dim")
    if output.json:
        data = choice.model_dump(mode="json")
        print_json({"package": package.resolve().name, "variants": names, "remembered": known is not None, **data})
    chosen = the_chosen(package, choice)
    screen.print(f"chosen: {called(chosen)}: {chosen.reason}", soft_wrap=True)
