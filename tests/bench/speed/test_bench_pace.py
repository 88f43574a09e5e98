import json

import pytest

from atlas_edge.bench.speed.pace import pace
from atlas_edge.errors import UsageError
from support import RunCommand


def test_the_sums_by_hand() -> None:
    # 15 x 15 mm in tiles of 224 px x 0.5 µm = 112 µm: 225e6 / 12544 = 17,937 tiles (facts: about 17,900).
    found = pace(145.0, tile_px=224)
    assert found.tiles_per_slide == 17_937
    assert found.slide_seconds == pytest.approx(17_937 / 145)
    assert found.slides_per_hour == pytest.approx(3600 * 145 / 17_937)
    assert found.needed_tiles_per_s == pytest.approx(17_937 / 156)
    assert found.keeps_up
    assert "225 mm² / (112 µm)² = 17,937 tiles" in found.arithmetic[1]


def test_keeping_up_turns_at_the_rate_that_is_needed() -> None:
    needed = pace(1.0, tile_px=224).needed_tiles_per_s
    assert pace(needed * 1.0001, tile_px=224).keeps_up
    assert not pace(needed * 0.9999, tile_px=224).keeps_up
    assert pace(90.0, tile_px=224, scanner_seconds=210).keeps_up and not pace(90.0, tile_px=224).keeps_up


def test_tissue_and_magnification_change_the_number_of_tiles() -> None:
    whole = pace(100.0, tile_px=224).tiles_per_slide
    assert pace(100.0, tile_px=224, tissue=0.4).tiles_per_slide == pytest.approx(0.4 * whole, abs=1)
    assert pace(100.0, tile_px=224, mpp=0.25).tiles_per_slide == pytest.approx(4 * whole, abs=3)


@pytest.mark.parametrize(
    ("values", "option"),
    [
        ({"mpp": 0.0}, "--mpp"),
        ({"tissue": 0.0}, "--tissue"),
        ({"tissue": 1.1}, "--tissue"),
        ({"scanner_seconds": -1.0}, "--scanner-seconds"),
        ({"slide_mm2": 0.0}, "--slide-mm2"),
    ],
)
def test_values_out_of_range_are_refused(values: dict[str, float], option: str) -> None:
    with pytest.raises(UsageError, match=option):
        pace(100.0, tile_px=224, **values)


def test_the_command_shows_its_arithmetic(run_command: RunCommand) -> None:
    done = run_command("atlas-bench", "pace", "--tiles-per-s", "145", "--scanner-seconds", "200", "--json")
    assert done.returncode == 0, done.stderr
    assert "keeps up with the scanner" in done.stderr and "17,937 / 200" in done.stderr
    assert json.loads(done.stdout)["145 tiles/s"]["keeps_up"] is True
    neither = run_command("atlas-bench", "pace")
    assert neither.returncode == 2 and "--tiles-per-s" in neither.stderr
