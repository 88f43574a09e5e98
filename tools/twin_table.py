"""INT8 of twins: ours for OpenVINO and ONNX Runtime beside `nncf.quantize` as it comes, as a table in docs/.

    python tools/twin_table.py docs/quantization.md TWIN [TWIN ...] --tiles TILES

Twins come from `twins.py`. What was measured of each is kept in its folder (`int8.json`) and taken from there when the
table is made again with the same options. Accuracy alone: speed needs a processor with VNNI, see
`quantization_table.py`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import P1, tile_cosines
from atlas_edge.bench.accuracy.tileset import embed_tiles
from atlas_edge.bench.interval import mean_interval
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import InputError
from atlas_edge.quantize.backend import backend_of
from atlas_edge.quantize.plan import Plan
from atlas_edge.quantize.recipe import Recipe, nncf_as_it_comes
from atlas_edge.quantize.search.bench import MeasureConfig, PlanBench
from atlas_edge.spec import Precision, Target
from atlas_edge.system import hardware
from parts.marked import around
from twins import REPORT

BEGIN, END = "<!-- twin table: begin -->", "<!-- twin table: end -->"
_KEPT = "int8.json"
# Name of a column -> target and recipe; the target's own where None.
_COLUMNS: dict[str, tuple[Target, Recipe | None]] = {
    "openvino": (Target.OPENVINO, None),
    "nncf": (Target.OPENVINO, nncf_as_it_comes()),
    "onnx": (Target.ONNX, None),
}

app = make_app("twin_table", __doc__ or "")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How twins are measured.

    Attributes:
        tiles: Tiles: the train split calibrates, the test split judges.
        calib_limit: Most tiles to calibrate on.
        eval_limit: Most tiles to judge on.
        threads: Inference threads.
        seed: Of the tiles.
    """

    tiles: str
    calib_limit: int = 256
    eval_limit: int = 300
    threads: int | None = None
    seed: int = 0


@app.default
def twin_table(
    document: Path,
    /,
    *twins: Path,
    tiles: str,
    calib_limit: int = 256,
    eval_limit: int = 300,
    threads: int | None = None,
    seed: int = 0,
) -> None:
    """Measure twins and write the table.

    Args:
        document: Markdown file with the two marks.
        twins: Folders that twins.py wrote.
        tiles: Tiles: the train split calibrates, the test split judges.
        calib_limit: Most tiles to calibrate on.
        eval_limit: Most tiles to judge on.
        threads: Inference threads.
        seed: Of the tiles.
    """
    before, after = around(document, BEGIN, END)
    options = Options(tiles=tiles, calib_limit=calib_limit, eval_limit=eval_limit, threads=threads, seed=seed)
    found = [measured(twin, options) for twin in twins]
    document.write_text(f"{before}{BEGIN}\n{markdown(found)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    """Entry point."""
    raise SystemExit(run_app(app))


def measured(twin: Path, options: Options) -> dict[str, Any]:
    """What a twin keeps of its teacher, and the cosines of each INT8 form to its full precision.

    Raises:
        InputError: The folder is none of `twins.py`.
    """
    if not (twin / REPORT).is_file():
        raise InputError(f"{twin} has no {REPORT}", hint="make a twin: python tools/twins.py --help")
    report: dict[str, Any] = json.loads((twin / REPORT).read_text(encoding="utf-8"))
    asked = {
        "tiles": Path(options.tiles).name,
        "calib_limit": options.calib_limit,
        "eval_limit": options.eval_limit,
        "seed": options.seed,
    }
    kept = twin / _KEPT
    known = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if known.get("asked") != asked:
        known = {"asked": asked, "cpu": hardware.cpu().name, "versions": hardware.versions(), "cosines": {}}
    for name, (target, recipe) in _COLUMNS.items():
        if name not in known["cosines"]:
            known |= _measure(twin, options, target, recipe, known, name)
            kept.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
            print(f"{twin.name} {name}: {_two(known['cosines'][name])}", file=sys.stderr, flush=True)
    return report | {"int8": known}


def _measure(
    twin: Path, options: Options, target: Target, recipe: Recipe | None, known: dict[str, Any], name: str
) -> dict[str, Any]:
    config = MeasureConfig(
        model=str(twin),
        tiles=options.tiles,
        evaluation=options.tiles,
        target=target,
        out=twin.with_name(f"{twin.name}-{target}"),
        calib_limit=options.calib_limit,
        fit_limit=max(options.calib_limit, 8),
        eval_limit=options.eval_limit,
        tile_fit="resize",
        threads=options.threads,
        seed=options.seed,
    )
    bench = PlanBench(config, lambda line: print(f"{twin.name} {name}: {line}", file=sys.stderr, flush=True))
    plan = Plan(name=name, target=target, precision=Precision.INT8, recipe=recipe or backend_of(target).recipe)
    encoder = bench.open(plan)
    try:
        found = embed_tiles({"reference": bench.reference, name: encoder}, bench.evaluation)
    finally:
        encoder.close()
        bench.reference.close()
    cosines = tile_cosines(found["reference"], found[name])
    tiles = {"calibration_tiles": len(bench.choice.records), "judged_tiles": len(cosines)}
    return {"cosines": known["cosines"] | {name: cosines.tolist()}, **tiles}


def markdown(twins: list[dict[str, Any]]) -> str:
    """The two tables and what must be read with them."""
    first = twins[0]["int8"]
    versions = ", ".join(f"{name} {first['versions'][name]}" for name in ("openvino", "nncf", "onnxruntime"))
    names = sorted({report["teacher"] for report in twins})
    lines = [
        f"Twins of {', '.join(names)}: its own weights where the shape allows, the rest fitted and distilled. What each"
        " keeps of its teacher: the cosine to its embedding on held-out tiles, and the same of embeddings less their "
        "mean; their deviation by the teacher's (below 1, tiles are told apart less); the balanced accuracy of probes, "
        "each encoder with its own; how far activations lie out (the largest value of the residual stream by its root "
        "mean square, and the largest kurtosis of what a linear layer reads).",
        "",
        "| twin | steps | cosine to the teacher, median | p1 | centred | deviation | linear probe | kNN | "
        "stream peak | kurtosis |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(_kept_line, twins),
        "",
        "INT8 against the twin's own full precision, every form on the same held-out tiles. The difference is that of "
        "a tile's cosine, ours for OpenVINO minus NNCF's, mean with its paired 95 % interval, in units of 0.0001.",
        "",
        "| twin | calibrated, judged | OpenVINO INT8, median | p1 | NNCF as it comes, median | p1 | ours - NNCF | "
        "closer on | ONNX INT8, median | p1 |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        *map(_int8_line, twins),
        "",
        f"{versions}; {first['cpu']}. NNCF as it comes is `nncf.quantize(model_type=TRANSFORMER)` of the traced graph. "
        "Speed was not measured.",
    ]
    return "\n".join(lines)


def _kept_line(report: dict[str, Any]) -> str:
    probes = [
        f"{report['probe'][method]['twin']:.2f} (teacher {report['probe'][method]['teacher']:.2f})"
        for method in ("linear", "knn")
    ]
    twin, teacher = report["outliers"]["twin"], report["outliers"]["teacher"]
    outliers = [f"{twin[name]:.0f} (teacher {teacher[name]:.0f})" for name in ("stream_peak", "kurtosis_largest")]
    cells = [report["title"], str(report["steps"]), f"{report['cosine_median']:.3f}", f"{report['cosine_p1']:.3f}"]
    cells += [f"{report['centred_cosine_median']:.3f}", f"{report['spread']:.2f}"]
    return f"| {' | '.join([*cells, *probes, *outliers])} |"


def _int8_line(report: dict[str, Any]) -> str:
    found = report["int8"]
    cosines = {name: np.array(values) for name, values in found["cosines"].items()}
    difference = cosines["openvino"] - cosines["nncf"]
    paired = mean_interval(difference).scaled(1e4)
    cells = [report["title"], f"{found['calibration_tiles']}, {found['judged_tiles']}"]
    cells += [_two(cosines["openvino"]), _two(cosines["nncf"])]
    cells += [f"{paired.estimate:+.1f} [{paired.low:+.1f}, {paired.high:+.1f}]", f"{(difference > 0).mean():.0%}"]
    return f"| {' | '.join([*cells, _two(cosines['onnx'])])} |"


def _two(cosines: NDArray[np.float64] | list[float]) -> str:
    return f"{np.median(cosines):.5f} | {np.quantile(cosines, P1):.5f}"


if __name__ == "__main__":
    main()
