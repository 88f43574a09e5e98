import io

import pytest
from rich.console import Console

from atlas_edge.distill.reporting import display
from atlas_edge.distill.reporting.display import Display
from atlas_edge.distill.training.loop import Progress


def test_a_log_gets_a_line_a_minute_and_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    log = io.StringIO()
    now = iter(range(0, 20_000, 20))  # a step takes 20 s
    monkeypatch.setattr(display.time, "monotonic", lambda: float(next(now)))
    with Display(Console(file=log, width=40), 8) as shown:
        for step in range(1, 9):
            shown.show(Progress(step=step, steps=8, loss=0.5, images_per_s=12.34, held_out_cosine=0.25))
    assert log.getvalue().splitlines() == [
        "1 of 8: loss 0.5000, held-out cosine 0.250, 12.3 images/s",
        "4 of 8: loss 0.5000, held-out cosine 0.250, 12.3 images/s, 1 min left",
        "7 of 8: loss 0.5000, held-out cosine 0.250, 12.3 images/s, 0 min left",
        "8 of 8: loss 0.5000, held-out cosine 0.250, 12.3 images/s, 0 min left",
    ]


def test_quiet_is_quiet() -> None:
    log = io.StringIO()
    with Display(Console(file=log, quiet=True), 8) as shown:
        shown.count(1, 8)
    assert log.getvalue() == ""
