"""`atlas-distill evaluate`, `compare` and `throughput`: what a student is worth, and how fast it trains."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from atlas_edge.cli import console, print_json, require_module, set_verbosity
from atlas_edge.distill.options import Many, train_config
from atlas_edge.distill.reporting.display import Display, print_comparison, print_evaluation, print_throughput
from atlas_edge.errors import UsageError
from atlas_edge.options import Json, Quiet, Verbose


def evaluate(
    teacher: str,
    student: str,
    /,
    *,
    fit: str,
    tiles: str | None = None,
    fit_limit: int = 1_500,
    limit: int = 2_000,
    stress_limit: int = 128,
    scans: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)] = (),
    keep: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say what of its teacher a student keeps.

    Args:
        teacher: Model folder, registry name or bundle.
        student: The same, or random:ARCHITECTURE:SEED for one that has learned nothing.
        fit: Labelled tiles to fit probes on (their train split).
        tiles: Labelled tiles to test on (their test split); when left out those of --fit: their test split, or,
            where there are no splits, one half, while probes are fitted on the other.
        fit_limit: Most tiles to fit on.
        limit: Most tiles to test on.
        stress_limit: Most tiles to shift in the stress test; 0 leaves it out.
        scans: Registered images of one region, one a scanner.
        keep: Folder for embeddings: a repeated or interrupted evaluation computes only what is missing.
        seed: Seed of the bootstrap.
        threads: Inference threads.
        json: Print the figures as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    from atlas_edge.distill.judging.encoders import open_judged
    from atlas_edge.distill.judging.evaluate import evaluate as run

    result = run(
        open_judged(teacher, threads=threads, keep=keep),
        open_judged(student, threads=threads, keep=keep),
        fit=fit,
        tiles=tiles,
        fit_limit=fit_limit,
        limit=limit,
        stress_limit=stress_limit,
        scans=scans,
        seed=seed,
    )
    if json:
        print_json(asdict(result))
    elif not quiet:
        print_evaluation(console(), result)


def compare(
    *students: str,
    against: Many,
    fit: str,
    tiles: str | None = None,
    fit_limit: int = 1_500,
    limit: int = 2_000,
    keep: Path | None = None,
    seed: int = 0,
    threads: int | None = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say whether students of one recipe are better than those of another, on the same tiles.

    Args:
        students: Of the recipe that is judged, one a seed; as for evaluate.
        against: Of the other recipe, its seeds in the same order; random:ARCHITECTURE:SEED is one that has learned
            nothing.
        fit: Labelled tiles to fit probes on (their train split).
        tiles: Labelled tiles to test on (their test split); when left out those of --fit: their test split, or,
            where there are no splits, one half, while probes are fitted on the other.
        fit_limit: Most tiles to fit on.
        limit: Most tiles to test on.
        keep: Folder for embeddings: a repeated or interrupted comparison computes only what is missing.
        seed: Seed of the bootstrap.
        threads: Inference threads.
        json: Print the figures as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    if not students or not against:
        raise UsageError("expected students on both sides", hint="see atlas-distill compare --help")
    from atlas_edge.distill.judging.compare import compare as run
    from atlas_edge.distill.judging.encoders import open_judged

    groups = [[open_judged(name, threads=threads, keep=keep) for name in names] for names in (students, against)]
    found = run(*groups, fit=fit, tiles=tiles, fit_limit=fit_limit, limit=limit, seed=seed)
    if json:
        print_json([asdict(item) for item in found])
    elif not quiet:
        print_comparison(console(), found)


def throughput(
    *teachers: str,
    tiles: Many,
    student: str = "atlas2-s",
    online: Many = (),
    batch: int = 32,
    steps: int = 8,
    rounds: int = 5,
    precision: Literal["bf16", "fp32"] = "bf16",
    threads: int | None = None,
    workers: int = 1,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Time training on this machine against a plain timm and PyTorch loop of the same model and batch.

    Args:
        teachers: As for training; cached features are what is usually timed.
        tiles: Tile sets.
        student: Registry name, timm architecture, or a folder.
        online: Teachers to time running beside the student, too, as if there were no cache.
        batch: Views a step.
        steps: Timed steps of each arm in a round.
        rounds: Rounds; the arms take turns.
        precision: Autocast of the student.
        threads: PyTorch's threads.
        workers: Decoding threads (of ours) and processes (of the plain loop's DataLoader).
        json: Print the figures as JSON on stdout.
        quiet: Print errors only.
        verbose: Print what the libraries say, too.
    """
    set_verbosity(quiet=quiet, verbose=verbose)
    require_module("timm", extra="torch")
    given = {"teachers": teachers, "tiles": tiles, "student": student, "batch": batch, "threads": threads}
    config = train_config({**given, "workers": workers, "precision": precision, "out": Path("unused")})
    if steps < 1 or rounds < 2:
        raise UsageError(
            "expected --steps of 1 or more and --rounds of 2 or more", hint="see atlas-distill throughput --help"
        )
    from atlas_edge.distill.judging.throughput import measure

    with Display(console(quiet=quiet), 0) as display:
        found = measure(config, online=online, steps=steps, rounds=rounds, progress=display.arms)
    if json:
        others = [name for name in found.images_per_s if name != "distill"]
        ratios = {name: asdict(found.ratio("distill", name)) for name in others}
        print_json(asdict(found) | {"ratios": ratios, "loss_difference": found.loss_difference()})
    elif not quiet:
        print_throughput(console(), found)
