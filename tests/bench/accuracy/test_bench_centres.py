"""Robustness index and plismbench through the command line, on files in the forms that are published."""

import csv
import io
import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from atlas_edge.bench.cli import app
from atlas_edge.cli import run_app
from atlas_edge.models.load import load_encoder
from support import TINY_PX

K = 5


@pytest.fixture(scope="module")
def columns() -> dict[str, list[str]]:
    """Two classes at three centres, two slides each, six tiles a slide."""
    found: dict[str, list[str]] = {"slide_id": [], "biological_class": [], "medical_center": [], "subset": []}
    for center in "XYZ":
        for slide in range(2):
            for tile in range(6):
                found["slide_id"].append(f"{center}{slide}")
                found["biological_class"].append(("tumour", "normal")[tile % 2])
                found["medical_center"].append(center)
                found["subset"].append("OOD" if center == "Z" else "ID")
    return found


@pytest.fixture(scope="module")
def pixels(columns: dict[str, list[str]]) -> NDArray[np.uint8]:
    """Noise, coloured by class and more weakly by centre, `(36, 32, 32, 3)`."""
    rng = np.random.default_rng(3)
    tiles = rng.normal(140, 45, (len(columns["slide_id"]), TINY_PX, TINY_PX, 3))
    tiles[..., 0] += np.where(np.array(columns["biological_class"]) == "tumour", 35, 0)[:, None, None]
    tiles[..., 2] += np.array(["XYZ".index(c) * 20 for c in columns["medical_center"]])[:, None, None]
    return np.clip(tiles, 0, 255).astype(np.uint8)


def encoded(tile: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(tile).save(buffer, "PNG")
    return buffer.getvalue()


def write_pathorob(path: Path, columns: dict[str, list[str]], pixels: NDArray[np.uint8]) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": encoded(tile), "path": None} for tile in pixels]
    patches = [f"p{number}" for number in range(len(pixels))]
    parquet.write_table(pyarrow.table({"image": images, "patch_id": patches, **columns}), path)


def units(encoder: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    opened = load_encoder(str(encoder))
    found = opened.encode(pixels).astype(np.float64)
    opened.close()
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def index_by_definition(unit: NDArray[np.float64], columns: dict[str, list[str]], rows: list[int], k: int) -> float:
    so, os_ = counts_by_definition(unit, columns, rows, k)
    return so / (so + os_)


def counts_by_definition(
    unit: NDArray[np.float64], columns: dict[str, list[str]], rows: list[int], k: int
) -> tuple[int, int]:
    so = os_ = 0
    for i in rows:
        near = sorted(
            (j for j in rows if columns["slide_id"][j] != columns["slide_id"][i]),
            key=lambda j: -float(unit[i] @ unit[j]),
        )
        for j in near[:k]:
            same_class = columns["biological_class"][i] == columns["biological_class"][j]
            same_center = columns["medical_center"][i] == columns["medical_center"][j]
            so += same_class and not same_center
            os_ += same_center and not same_class
    return so, os_


@pytest.fixture
def accuracy(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """`atlas-bench accuracy` with `--json`, in this process: importing PyTorch anew would take most of the time."""

    def run(*arguments: str | Path) -> dict[str, Any]:
        words = ["accuracy", *map(str, arguments), "--stress-tiles", "0", "--json"]
        code = run_app(app, words)
        printed = capsys.readouterr()
        # So few slides pass no budget.
        assert code == (3 if "--max-robustness-drop" in words else 0), printed.err
        found: dict[str, Any] = json.loads(printed.out)
        return {**found["accuracy"], "gate": found["gate"], "said": printed.err}

    return run


def test_pathorob_parquet_gives_the_index_by_definition(
    columns: dict[str, list[str]],
    pixels: NDArray[np.uint8],
    bundle: Path,
    tiny_model: Path,
    tmp_path: Path,
    accuracy: Callable[..., dict[str, Any]],
) -> None:
    # Subsets ID and OOD, as in the published Camelyon set, are no train and test split: nothing to fit a probe on.
    write_pathorob(tmp_path / "camelyon.parquet", columns, pixels)
    path = tmp_path / "camelyon.parquet"
    options = ("--robustness-k", str(K), "--max-robustness-drop", "1", "--verbose")
    found = accuracy(bundle, "--reference", tiny_model, "--eval", path, *options)
    kept = [row for row, subset in enumerate(columns["subset"]) if subset == "ID"]
    expected = {
        label: index_by_definition(units(path, pixels), columns, kept, K)
        for label, path in (("tiny-vit", tiny_model), ("tiny", bundle))
    }
    for label, value in expected.items():
        robustness = found["scores"][label]["robustness"]
        assert robustness["index"] == pytest.approx(value, abs=1e-9)
        assert (robustness["centers"], robustness["tiles"], robustness["k"]) == (2, 24, K)
        assert robustness["left_out"] == 12
    drop = found["candidates"]["tiny"]["robustness_drop"]
    assert drop["estimate"] == pytest.approx(expected["tiny-vit"] - expected["tiny"], abs=1e-9)
    assert drop["unit"] == "group" and drop["units"] == 6
    assert found["candidates"]["tiny"]["drops"] == [] and any("--fit" in note for note in found["notes"])
    checks = [(check["option"], check["verdict"]) for check in found["gate"]["checks"]]
    assert checks == [("--max-robustness-drop", "INCONCLUSIVE")]
    assert "robustness index" in found["said"] and "2 centres; 12 tiles of subset OOD left out" in " ".join(
        found["said"].split()
    )


def test_paired_index_pools_the_subsets_that_the_tile_set_names_and_its_drop_can_be_judged(
    columns: dict[str, list[str]],
    pixels: NDArray[np.uint8],
    bundle: Path,
    tiny_model: Path,
    tmp_path: Path,
    accuracy: Callable[..., dict[str, Any]],
) -> None:
    # TCGA repeats tiles in every subset that they belong to; here each centre is paired with X and with Y or Z.
    pairs = {"X-Y": ("X", "Y"), "Y-Z": ("Y", "Z")}
    rows = [(name, i) for name, pair in pairs.items() for i in range(36) if columns["medical_center"][i] in pair]
    repeated = {key: [column[i] for _, i in rows] for key, column in columns.items()}
    repeated["subset"] = [name for name, _ in rows]
    write_pathorob(tmp_path / "tcga.parquet", repeated, pixels[[i for _, i in rows]])
    options = ("--robustness-paired", "--robustness-k", str(K), "--max-robustness-drop", "1")
    found = accuracy(bundle, "--reference", tiny_model, "--eval", tmp_path / "tcga.parquet", *options)
    index = {}
    for label, path in (("tiny-vit", tiny_model), ("tiny", bundle)):
        unit = units(path, pixels)
        rows_of = [[i for i in range(36) if columns["medical_center"][i] in pair] for pair in pairs.values()]
        so, os_ = np.sum([counts_by_definition(unit, columns, rows, K) for rows in rows_of], axis=0)
        index[label] = so / (so + os_)
        robustness = found["scores"][label]["robustness"]
        assert (robustness["index"], robustness["subsets"]) == (pytest.approx(index[label], abs=1e-9), 2)
    drop = found["candidates"]["tiny"]["robustness_drop"]
    assert drop["estimate"] == pytest.approx(index["tiny-vit"] - index["tiny"], abs=1e-9)
    assert drop["low"] < drop["estimate"] < drop["high"]


def test_a_tile_in_both_sets_is_refused_however_they_are_spelt(
    columns: dict[str, list[str]],
    pixels: NDArray[np.uint8],
    tiny_model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "c.parquet"
    write_pathorob(path, columns, pixels)
    assert run_app(app, ["accuracy", str(tiny_model), "--eval", f"{path}@ID", "--fit", str(path)]) == 5
    assert "24 tiles" in (said := capsys.readouterr().err) and "both in --eval and in --fit" in said
    # Other tiles of the same slides only make the scores too good.
    others = ["accuracy", str(tiny_model), "--eval", f"{path}@ID", "--fit", f"{path}@OOD", "--dry-run"]
    assert run_app(app, others) == 0


def plism_by_definition(scans: list[NDArray[np.float64]]) -> tuple[float, dict[int, float]]:
    """Mean cosine of twins and top-k, over all pairs of scans, in plain loops."""
    cosines, shares = [], []
    for a, b in combinations(scans, 2):
        cosines.append(np.mean([float(x @ y) for x, y in zip(a, b, strict=True)]))
        pooled, n = np.concatenate([a, b]), len(a)
        ranks = []
        for i in range(2 * n):
            order = sorted((j for j in range(2 * n) if j != i), key=lambda j: -float(pooled[i] @ pooled[j]))
            ranks.append(order.index((i + n) % (2 * n)))
        shares.append({k: np.mean([rank < k for rank in ranks]) for k in (1, 3, 5, 10)})
    return float(np.mean(cosines)), {k: float(np.mean([share[k] for share in shares])) for k in (1, 3, 5, 10)}


def test_plism_hdf5_gives_cosine_and_top_k_by_definition(
    bundle: Path, tiny_model: Path, tmp_path: Path, accuracy: Callable[..., dict[str, Any]]
) -> None:
    h5py = pytest.importorskip("h5py")
    rng = np.random.default_rng(5)
    tissue = rng.integers(40, 220, (8, TINY_PX, TINY_PX, 3))
    folder, scans = tmp_path / "plism", []
    folder.mkdir()
    for number, name in enumerate(("GIV_S60", "GMH_S60", "GIV_AT2")):
        noisy = tissue * (1 - 0.2 * number) + rng.normal(0, 40, tissue.shape)
        scans.append(np.clip(noisy, 0, 255).astype(np.uint8))
        with h5py.File(folder / f"{name}_to_GMH_S60.tif.h5", "w") as file:
            for position, tile in enumerate(scans[-1]):
                file[f"tile_{position}"] = tile
    found = accuracy(bundle, "--reference", tiny_model, "--eval", folder)
    for label, path in (("tiny-vit", tiny_model), ("tiny", bundle)):
        cosine, top_k = plism_by_definition([units(path, scan) for scan in scans])
        plism = found["scores"][label]["plism"]
        assert plism["cosine"] == pytest.approx(cosine, abs=1e-6)
        assert {int(k): share for k, share in plism["top_k"].items()} == pytest.approx(top_k)
        assert (plism["pairs"], plism["positions"]) == (3, 8)
        # GIV_S60 and GMH_S60 share the scanner, GIV_S60 and GIV_AT2 the stain, GMH_S60 and GIV_AT2 neither.
        a, b, c = (units(path, scan) for scan in scans)
        tens = [plism_by_definition(pair)[1][10] for pair in ([a, c], [a, b], [b, c])]
        assert list(plism["top_10_medians"].values()) == pytest.approx(tens)
        assert list(plism["top_10_medians"]) == ["across scanners", "across stains", "across both"]
        middle = np.median([plism_by_definition(pair)[0] for pair in ([a, b], [a, c], [b, c])])
        assert plism["leaderboard"] == pytest.approx(np.mean([middle, *tens]), abs=1e-6)
    # Fewer tiles are whole places, not halves of pairs.
    fewer = accuracy(tiny_model, "--eval", folder, "--limit", "9")
    assert fewer["scores"]["tiny-vit"]["plism"]["positions"] == 3


def test_five_real_scanners_of_one_region(
    shared: Path, tiny_model: Path, tmp_path: Path, accuracy: Callable[..., dict[str, Any]]
) -> None:
    scanners = sorted((shared / "data/stain_scanner").glob("scc_*.png"))
    assert len(scanners) == 5
    lines: list[dict[str, str]] = []
    scans: list[list[NDArray[np.uint8]]] = []
    for path in scanners:
        scans.append([])
        with Image.open(path) as image:
            region = np.asarray(image.convert("RGB"))
        for row, column in np.ndindex(7, 7):
            name = f"{path.stem}-{row}-{column}.png"
            tile = region[row * TINY_PX :, column * TINY_PX :][:TINY_PX, :TINY_PX]
            Image.fromarray(tile).save(tmp_path / name)
            scans[-1].append(tile)
            lines.append(
                {"file": name, "shard": "", "scanner": path.stem, "group": path.stem, "position": f"{row}-{column}"}
            )
    with (tmp_path / "manifest.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    plism = accuracy(tiny_model, "--eval", tmp_path)["scores"]["tiny-vit"]["plism"]
    cosine, top_k = plism_by_definition([units(tiny_model, np.stack(scan)) for scan in scans])
    assert (plism["pairs"], plism["positions"], plism["leaderboard"]) == (10, 49, None)
    assert plism["cosine"] == pytest.approx(cosine, abs=1e-6)
    assert {int(k): share for k, share in plism["top_k"].items()} == pytest.approx(top_k)
