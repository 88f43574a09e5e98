"""Numbers that no run can be made with are told before anything is opened: no model or tile set named here exists."""

import pytest

from atlas_edge.bench.cli import app as bench
from atlas_edge.cli import run_app
from atlas_edge.distill.cli import app as distill
from atlas_edge.export.cli import app as export
from atlas_edge.quantize.cli import app as quantize

APPS = {"atlas-bench": bench, "atlas-distill": distill, "atlas-export": export, "atlas-quantize": quantize}
JUDGED = "--reference no-model --eval no-tiles"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (f"atlas-bench accuracy no-bundle {JUDGED} --limit 0", "--limit"),
        (f"atlas-bench accuracy no-bundle {JUDGED} --limit -3", "--limit"),
        (f"atlas-bench accuracy no-bundle {JUDGED} --fit-limit 0", "--fit-limit"),
        (f"atlas-bench accuracy no-bundle {JUDGED} --stress-tiles -1", "--stress-tiles"),
        (f"atlas-bench accuracy no-bundle {JUDGED} --robustness-k 0", "--robustness-k"),
        (f"atlas-bench accuracy no-bundle {JUDGED} --speed --rounds 0", "--rounds"),
        (f"atlas-bench accuracy no-bundle {JUDGED} --seed -1", "--seed"),
        (f"atlas-bench robustness no-bundle {JUDGED} --seed -1", "--seed"),
        (f"atlas-bench robustness no-bundle {JUDGED} --robustness-k 0", "--robustness-k"),
        ("atlas-bench probe no-bundle --reference no-model --fit no-tiles --limit 0", "--limit"),
        ("atlas-bench pace --tiles-per-s 5 --tile-px 0", "--tile-px"),
        ("atlas-bench pace --tiles-per-s nan", "--tiles-per-s"),
        ("atlas-bench pace --tiles-per-s 5 --mpp inf", "--mpp"),
        ("atlas-export atlas2-demo --target onnx --precision fp16 --seed -1 --dry-run", "--seed"),
        ("atlas-quantize calibration no-model no-tiles --limit 0", "--limit"),
        ("atlas-quantize calibration no-model no-tiles --seed -1", "--seed"),
        ("atlas-distill evaluate no-model no-model --fit no-tiles --limit 0", "--limit"),
        ("atlas-distill evaluate no-model no-model --fit no-tiles --seed -1", "--seed"),
    ],
)
def test_a_number_out_of_range_is_an_error_of_use(words: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words.split()
    assert run_app(APPS[command], rest) == 2
    assert option in capsys.readouterr().err
