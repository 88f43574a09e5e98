"""Numbers that no run can be made with are told before anything is opened: no model or tile set named here exists."""

import inspect
from typing import get_args

import pytest
from annotated_types import BaseMetadata
from cyclopts import Parameter

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
        ("atlas-bench pace --tiles-per-s 5 --mpp 0", "--mpp"),
        ("atlas-bench slide no-slide --bundle no-bundle --threads 0", "--threads"),
        ("atlas-bench slide no-slide --bundle no-bundle --streams 0", "--streams"),
        ("atlas-bench slide no-slide --bundle no-bundle --batch -1", "--batch"),
        ("atlas-bench slide no-slide --bundle no-bundle --tile-mpp 0", "--tile-mpp"),
        ("atlas-bench slide no-slide --bundle no-bundle --scanner-seconds 0", "--scanner-seconds"),
        ("atlas-bench slide-check no.h5 --slides no-slides --reference no-model --tiles 0", "--tiles"),
        ("atlas-bench fewer-tiles no.h5 --most-tiles 0", "--most-tiles"),
        ("atlas-bench fewer-tiles no.h5 --most-tiles 5 --min-cosine nan", "--min-cosine"),
        ("atlas-distill cache no-model no-tiles --out no-out --tile-px 0", "--tile-px"),
        ("atlas-distill evaluate no-model no-model --fit no-tiles --seed -1", "--seed"),
        ("atlas-distill evaluate no-model no-model --fit no-tiles --stress-limit -1", "--stress-limit"),
        ("atlas-distill evaluate no-model no-model --fit no-tiles --threads 0", "--threads"),
        ("atlas-distill compare no-model --against no-model --fit no-tiles --threads 0", "--threads"),
    ],
)
def test_a_number_out_of_range_is_an_error_of_use(words: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *rest = words.split()
    assert run_app(APPS[command], rest) == 2
    assert option in capsys.readouterr().err


def test_bounds_of_a_command_s_own_parameters_hold_without_pydantic() -> None:
    # Cyclopts asks pydantic for them, where another module happens to have loaded it: in tests, and in no command.
    unchecked = [
        f"{name} {command.name[0]}: {parameter}"
        for name, app in APPS.items()
        for command in [app, *app.subapps]
        if command.default_command is not None
        for parameter, hint in inspect.get_annotations(command.default_command).items()
        if any(isinstance(item, BaseMetadata) for item in get_args(hint)[1:])
        and not any(isinstance(item, Parameter) and item.validator for item in get_args(hint)[1:])
    ]
    assert not unchecked
