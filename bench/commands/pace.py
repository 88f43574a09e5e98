"""`atlas-bench pace`, registered by `bench.cli`."""

from dataclasses import asdict

from atlas_edge.bench.options import MPP, SCANNER_SECONDS, SLIDE_MM2
from atlas_edge.cli import print_json
from atlas_edge.errors import UsageError
from atlas_edge.options import Output, Threads


def pace(
    *encoders: str,
    tiles_per_s: float | None = None,
    tile_px: int = 224,
    mpp: float | None = None,
    slide_mm2: float = SLIDE_MM2,
    tissue: float = 1.0,
    scanner_seconds: float = SCANNER_SECONDS,
    rounds: int = 5,
    threads: Threads = None,
    output: Output = Output(),
) -> None:
    """Say in the lab's terms how fast an encoder is: tiles a slide, slides an hour, and whether it keeps up.

    Times the encoders, or takes a throughput that is known. Examples:

        atlas-bench pace bundles/s-openvino-int8 --scanner-seconds 200

        atlas-bench pace --tiles-per-s 145 --tissue 0.4

    Args:
        encoders: Bundle folders, model folders or registry names to time.
        tiles_per_s: Throughput, instead of timing an encoder.
        tile_px: Side of a tile in pixels; a timed encoder's own.
        mpp: µm per pixel; a timed encoder's own, or 0.5.
        slide_mm2: Scanned area of a slide, mm².
        tissue: Share of that area that holds tissue and is embedded.
        scanner_seconds: Seconds that the scanner takes for a slide.
        rounds: Turns of every encoder.
        threads: Inference threads; the runtime's own choice when left out.
        output: What is printed.
    """
    from atlas_edge.bench.speed.pace import pace as work_out

    screen = output.screen()
    if bool(encoders) == (tiles_per_s is not None):
        raise UsageError(
            "give encoders to time, or --tiles-per-s, one of the two", hint="atlas-bench pace --tiles-per-s 145"
        )
    rates = (
        [(f"{tiles_per_s:g} tiles/s", tiles_per_s, tile_px, MPP if mpp is None else mpp)]
        if tiles_per_s is not None
        else []
    )
    if encoders:
        rates = _timed(encoders, rounds, threads, mpp)
    found = {
        name: work_out(
            rate, tile_px=side, mpp=scale, slide_mm2=slide_mm2, tissue=tissue, scanner_seconds=scanner_seconds
        )
        for name, rate, side, scale in rates
    }
    from rich.padding import Padding
    from rich.text import Text

    for name, one in found.items():
        verdict = "keeps up with the scanner" if one.keeps_up else "does NOT keep up with the scanner"
        screen.print(f"{name}: {one.slides_per_hour:.1f} slides an hour, {verdict}", style="bold", markup=False)
        for line in one.arithmetic:
            screen.print(Padding(Text(line), (0, 0, 0, 2)))
    if output.json:
        print_json({name: asdict(one) for name, one in found.items()})


def _timed(
    encoders: tuple[str, ...], rounds: int, threads: int | None, mpp: float | None
) -> list[tuple[str, float, int, float]]:
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.speed.run import timing_tiles
    from atlas_edge.bench.speed.timing import paired_speed

    with open_encoders(encoders, threads=threads) as opened:
        first = next(iter(opened.encoders))
        timed = paired_speed(opened.encoders, timing_tiles(opened.encoders, 8), reference=first, rounds=rounds)
        return [
            (
                name,
                figures.throughput.tiles_per_s,
                opened.facts[name].spec.tile_px,
                (opened.facts[name].spec.mpp or MPP) if mpp is None else mpp,
            )
            for name, figures in timed.encoders.items()
        ]
