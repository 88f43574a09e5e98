"""The INT8 bundles of the real DINOv2 ViT-S/14 keep the agreement with full precision that they have been measured at.

`.ci/run` exports them, compares them on 400 tiles of dev_crc5 and then runs this on its report: one export a target
serves the budgets and this. Figures are those of the sample, not ends of intervals: it is a regression that is looked
for, on the same tiles every time.
"""

import os
from pathlib import Path

import pytest

from atlas_edge.bench.report.schema import read_report

REPORT = os.environ.get("ATLAS_DINOV2_REPORT")
# The least of a 1st percentile that is not the worst tile or two.
_TILES = 300


@pytest.mark.skipif(REPORT is None, reason="ATLAS_DINOV2_REPORT names no report: .ci/run makes it where ../shared is")
@pytest.mark.parametrize(("bundle", "median", "p1"), [("openvino-int8", 0.9997, 0.998), ("onnx-int8", 0.9996, 0.997)])
def test_int8_of_dinov2_is_as_close_as_it_was(bundle: str, median: float, p1: float) -> None:
    accuracy = read_report(Path(str(REPORT))).accuracy
    assert accuracy is not None
    found = accuracy.candidates[bundle].agreement
    assert found is not None and found.tiles >= _TILES
    assert found.cosine_median >= median
    assert found.cosine_p1 >= p1
