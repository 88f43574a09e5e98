"""`atlas-distill evaluate` and `compare`: what a student is worth."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from annotated_types import Ge
from cyclopts import Parameter, validators

from atlas_edge.cli import print_json
from atlas_edge.distill.reporting.display import print_comparison, print_evaluation
from atlas_edge.errors import UsageError
from atlas_edge.options import Many, Options, Output, Seed, Threads

_Some = Annotated[int, Ge(0), Parameter(validator=validators.Number(gte=0))]


@dataclass(frozen=True, kw_only=True)
class JudgedTiles(Options):
    """On which tiles students are judged.

    Attributes:
        fit: Labelled tiles to fit probes on (their train split).
        tiles: Labelled tiles to test on (their test split); when left out those of --fit: their test split, or,
            where there are no splits, one half, while probes are fitted on the other.
        fit_limit: Most tiles to fit on.
        limit: Most tiles to test on.
        seed: Seed of the bootstrap.
    """

    fit: str
    tiles: str | None = None
    fit_limit: Annotated[int, Ge(1)] = 1_500
    limit: Annotated[int, Ge(2)] = 2_000
    seed: Seed = 0


def evaluate(
    teacher: str,
    student: str,
    /,
    *,
    judged: JudgedTiles,
    stress_limit: _Some = 128,
    scans: Annotated[tuple[Path, ...], Parameter(negative="", consume_multiple=True)] = (),
    keep: Path | None = None,
    threads: Threads = None,
    output: Output = Output(),
) -> None:
    """Say what of its teacher a student keeps.

    Args:
        teacher: Model folder, registry name or bundle.
        student: The same, or random:ARCHITECTURE:SEED for one that has learned nothing.
        judged: On which tiles.
        stress_limit: Most tiles to shift in the stress test; 0 leaves it out.
        scans: Registered images of one region, one a scanner.
        keep: Folder for embeddings: a repeated or interrupted evaluation computes only what is missing.
        threads: Inference threads.
        output: What is printed.
    """
    screen = output.screen()
    from atlas_edge.distill.judging.encoders import open_judged
    from atlas_edge.distill.judging.evaluate import evaluate as run

    result = run(
        open_judged(teacher, threads=threads, keep=keep),
        open_judged(student, threads=threads, keep=keep),
        stress_limit=stress_limit,
        scans=scans,
        **vars(judged),
    )
    if output.json:
        print_json(asdict(result))
    elif not output.quiet:
        print_evaluation(screen, result)


def compare(
    *students: str,
    against: Many,
    judged: JudgedTiles,
    keep: Path | None = None,
    threads: Threads = None,
    output: Output = Output(),
) -> None:
    """Say whether students of one recipe are better than those of another, on the same tiles.

    Args:
        students: Of the recipe that is judged, one a seed; as for evaluate.
        against: Of the other recipe, its seeds in the same order; random:ARCHITECTURE:SEED is one that has learned
            nothing.
        judged: On which tiles.
        keep: Folder for embeddings: a repeated or interrupted comparison computes only what is missing.
        threads: Inference threads.
        output: What is printed.
    """
    screen = output.screen()
    if not students or not against:
        raise UsageError("expected students on both sides", hint="see atlas-distill compare --help")
    from atlas_edge.distill.judging.compare import compare as run
    from atlas_edge.distill.judging.encoders import open_judged

    groups = [[open_judged(name, threads=threads, keep=keep) for name in names] for names in (students, against)]
    found = run(*groups, **vars(judged))
    if output.json:
        print_json([asdict(item) for item in found])
    elif not output.quiet:
        print_comparison(screen, found)
