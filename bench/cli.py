"""`atlas-bench`: is it fast enough, and what did it cost in accuracy?"""

from atlas_edge.bench.commands.accuracy import accuracy
from atlas_edge.bench.commands.choose import choose
from atlas_edge.bench.commands.compare import compare
from atlas_edge.bench.commands.conformance import conformance
from atlas_edge.bench.commands.fewer_tiles import fewer_tiles
from atlas_edge.bench.commands.loadgen import loadgen
from atlas_edge.bench.commands.pace import pace
from atlas_edge.bench.commands.probe import probe
from atlas_edge.bench.commands.robustness import robustness
from atlas_edge.bench.commands.selftest import selftest
from atlas_edge.bench.commands.slide import slide
from atlas_edge.bench.commands.slide_check import slide_check, slide_pair
from atlas_edge.bench.commands.speed import speed
from atlas_edge.cli import make_app, run_app

HELP = """Time encoders and measure what a bundle costs in accuracy.

Example, a gate on what a bundle costs:

    atlas-bench accuracy bundles/my-student-openvino-int8 --reference my-student --eval tiles --max-drop 1
"""

app = make_app("atlas-bench", HELP)
app.command(speed)
app.command(accuracy)
app.command(robustness)
app.command(compare)
app.command(choose)
app.command(pace)
app.command(loadgen)
app.command(selftest)
app.command(probe)
app.command(conformance)
app.command(slide)
app.command(slide_check)
app.command(slide_pair)
app.command(fewer_tiles)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))
