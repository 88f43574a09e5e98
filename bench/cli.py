"""`atlas-bench`: is it fast enough, and what did it cost in accuracy?"""

from atlas_edge.bench.accuracy_command import accuracy
from atlas_edge.bench.compare_command import compare
from atlas_edge.bench.pace_command import pace
from atlas_edge.bench.selftest_command import selftest
from atlas_edge.bench.slide_check_command import slide_check, slide_pair
from atlas_edge.bench.slide_command import slide
from atlas_edge.bench.speed_command import speed
from atlas_edge.cli import make_app, run_app

HELP = """Time encoders and measure what a bundle costs in accuracy.

Example, a gate on what a bundle costs:

    atlas-bench accuracy bundles/my-student-openvino-int8 --reference my-student --eval tiles --max-drop 1
"""

app = make_app("atlas-bench", HELP)
app.command(speed)
app.command(accuracy)
app.command(compare)
app.command(pace)
app.command(selftest)
app.command(slide)
app.command(slide_check)
app.command(slide_pair)


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))
