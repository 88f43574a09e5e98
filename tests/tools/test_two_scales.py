"""Both ways read every tile of both scales."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import two_scales as tool
from atlas_edge.slides import TileReader

tifffile = pytest.importorskip("tifffile")


def test_both_ways_read_every_tile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(60, 200, (1500, 1800, 3), dtype=np.uint8)
    tifffile.imwrite(
        tmp_path / "s.tif", pixels, tile=(256, 256), photometric="rgb", metadata=None, resolution=(2e4, 2e4),
        resolutionunit="CENTIMETER",
    )  # fmt: skip
    genuine, read_of = TileReader.read, list[tuple[float, int]]()

    def read(self: TileReader, coords: Any) -> Any:
        read_of.append((self.grid.mpp, len(coords)))
        return genuine(self, coords)

    monkeypatch.setattr(TileReader, "read", read)
    tool.two_scales(tmp_path / "s.tif", rounds=1)
    # 8 x 7 tiles of 224 px and 4 x 4 of 448 px reach far enough into the slide; once each way.
    assert {mpp: sum(count for at, count in read_of if at == mpp) for mpp in (0.5, 1.0)} == {0.5: 112, 1.0: 32}
    assert capsys.readouterr().out.splitlines()[-1].startswith("| s.tif | 0, 0 | 72 |")
