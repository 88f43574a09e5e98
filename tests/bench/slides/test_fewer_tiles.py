"""What fewer tiles cost: the tiles that `atlas-embed` would choose, against all of them, slide by slide."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.cli import app
from atlas_edge.bench.slides.check import SlideFeatures, read_features
from atlas_edge.bench.slides.fewer_tiles import compare_fewer_tiles, worst_of
from atlas_edge.cli import run_app
from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.errors import InputError, UsageError
from embed.conftest import make_scan
from embed.test_embed import MeanEncoder

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")

Bench = Callable[..., int]


@pytest.fixture
def bench() -> Bench:
    return lambda *arguments: run_app(app, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("slides")
    config = EmbedConfig(tissue=False, overview=False)
    outs = []
    for seed in range(3):
        scan = make_scan(folder / f"{seed}.tif", seed)
        embed_slide(scan, MeanEncoder(), folder / f"{seed}.h5", config)
        outs.append(folder / f"{seed}.h5")
    embed_slide(folder / "0.tif", MeanEncoder(), folder / "some.h5", EmbedConfig(tissue=False, most_tiles=40))
    return outs


def slide_of(name: str, features: NDArray[np.float32], **attributes: object) -> SlideFeatures:
    coords = np.array([(32 * number, 0) for number in range(len(features))], dtype=np.int64).reshape(-1, 2)
    return SlideFeatures(path=Path(name), features=features.astype(np.float32), coords=coords, attributes=attributes)


def test_the_tiles_are_those_that_are_embedded(embedded: list[Path]) -> None:
    report = compare_fewer_tiles([read_features(path) for path in embedded], [40])
    with h5py.File(embedded[0]) as whole, h5py.File(embedded[0].with_name("some.h5")) as some:
        away = np.linalg.norm(some["features"][:].mean(0) - whole["features"][:].mean(0))
        spread = np.sqrt(((whole["features"][:] - whole["features"][:].mean(0)) ** 2).sum(1).mean())
    one = report.slides[40]["0.h5"]
    assert (one.tiles, one.embedded) == (600, 40) and one.moved == pytest.approx(away / spread, rel=1e-4)
    assert one.cosine is not None and one.cosine < 1 and one.share_pp is None and not report.missed


def test_figures_by_hand() -> None:
    # Of four tiles in a row the first and the third stand for two each.
    files = [
        slide_of("a", np.array([[0, 2], [2, 2], [2, 4], [4, 4]])),
        slide_of("b", np.array([[-2, 0]] * 4)),
        slide_of("c", np.array([[-1, -6]] * 4)),
    ]
    report = compare_fewer_tiles(files, [2, 4, 9])
    whole, part = np.array([2, 3]), np.array([1, 3])
    middle = np.mean([whole, [-2, 0], [-1, -6]], axis=0)
    expected = (whole - middle) @ (part - middle) / np.linalg.norm(whole - middle) / np.linalg.norm(part - middle)
    one = report.slides[2]["a"]
    assert one.cosine == pytest.approx(expected) and one.moved == pytest.approx(1 / np.sqrt(3))
    assert worst_of(report.slides[2], "cosine") == ("a", one.cosine)
    for most in (4, 9):
        assert all(one.cosine == pytest.approx(1) and one.moved == 0 for one in report.slides[most].values())
    assert worst_of(report.slides[2], "share_pp") is None


def test_slides_in_the_middle_of_all_have_no_direction_to_lose() -> None:
    same = [slide_of(name, np.array([[1, 2], [3, 4]])) for name in "abc"]
    assert {one.cosine for one in compare_fewer_tiles(same, [2]).slides[2].values()} == {1.0}
    assert {one.cosine for one in compare_fewer_tiles(same, [1]).slides[1].values()} == {0.0}


def test_a_budget_is_judged_on_the_worst_slide(
    embedded: list[Path], bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("fewer-tiles", *embedded, "--most-tiles", 600, "--min-cosine", 0.9999) == 0
    capsys.readouterr()
    assert bench("fewer-tiles", *embedded, "--most-tiles", 5, "--most-tiles", 300, "--min-cosine", 0.99, "--json") == 3
    told = capsys.readouterr()
    assert json.loads(told.out)["slides"]["5"]["0.h5"]["embedded"] == 5
    assert "with 5 tiles: cosine" in told.err and "at least 0.99 wanted" in " ".join(told.err.split())
    assert bench("fewer-tiles", embedded[0], "--most-tiles", 5) == 0
    assert "wants 3 slides" in " ".join(capsys.readouterr().err.split())


def test_a_pattern_names_files_where_no_shell_expands_it(
    embedded: list[Path], bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("fewer-tiles", embedded[0].with_name("[012].h5"), "--most-tiles", 600, "--json") == 0
    assert list(json.loads(capsys.readouterr().out)["slides"]["600"]) == ["0.h5", "1.h5", "2.h5"]


def test_what_cannot_be_judged_is_refused(
    embedded: list[Path], bench: Bench, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    files = [read_features(path) for path in embedded]
    with pytest.raises(UsageError, match="--min-cosine on 2 slide"):
        compare_fewer_tiles(files[:2], [5], min_cosine=0.9)
    with pytest.raises(UsageError, match="--max-share-pp without decisions"):
        compare_fewer_tiles(files, [5], max_share_pp=1)
    with pytest.raises(InputError, match=r"some\.h5 holds some of its tiles only"):
        compare_fewer_tiles([*files, read_features(embedded[0].with_name("some.h5"))], [5])
    with pytest.raises(InputError, match="made otherwise: encoder"):
        compare_fewer_tiles([slide_of("a", np.ones((2, 2)), encoder="x"), slide_of("b", np.ones((2, 2)))], [5])
    with pytest.raises(InputError, match="made otherwise: embed_dim"):
        compare_fewer_tiles([slide_of("a", np.ones((2, 2))), slide_of("b", np.ones((2, 3)))], [5])
    with pytest.raises(InputError, match="holds no tiles"):
        compare_fewer_tiles([slide_of("a", np.ones((0, 2)))], [5])
    with pytest.raises(InputError, match="no numbers"):
        compare_fewer_tiles([slide_of("a", np.full((2, 2), np.nan))], [5])
    for arguments in (
        ("--most-tiles", 5),
        (embedded[0],),
        (embedded[0], "--most-tiles", 0),
        (embedded[0], embedded[0], "--most-tiles", 5),
        (*embedded, "--most-tiles", 5, "--min-cosine", "nan"),
        (*embedded, "--most-tiles", 5, "--min-cosine", 2),
    ):
        assert bench("fewer-tiles", *arguments) == 2, arguments
    assert bench("fewer-tiles", embedded[0].with_name("0.tif"), "--most-tiles", 5) == 5
    capsys.readouterr()
    for name in ("none.h5", "none*.h5"):
        assert bench("fewer-tiles", tmp_path / name, "--most-tiles", 5) == 5
        assert f"{name} does not exist" in capsys.readouterr().err
    assert bench("fewer-tiles", embedded[0], "--most-tiles", 5, "--bundle", tmp_path / "bundle") == 5
    capsys.readouterr()


def test_decisions_are_compared(embedded: list[Path]) -> None:
    from atlas_edge.bench.accuracy.probe import LinearWeights
    from atlas_edge.bench.selftest.probe import StoredProbe
    from atlas_edge.manifest import TilesProvenance

    weights = LinearWeights(mean=np.zeros(2), scale=np.ones(2), weights=np.eye(2), bias=np.zeros(2))
    tiles = TilesProvenance.model_construct()
    probe = StoredProbe(linear=weights, classes=("a", "b"), tiles=tiles, reference_sha256=None)
    file = slide_of("a", np.array([[1, 0], [1, 0], [0, 1], [1, 0]]))
    report = compare_fewer_tiles([file], [1, 2], probe=probe, max_share_pp=20)
    # The second stands for all four, and the first and the third for two each.
    assert report.slides[1]["a"].share_pp == pytest.approx(25) and report.slides[1]["a"].same_class is True
    assert report.slides[2]["a"].share_pp == pytest.approx(25) and len(report.missed) == 2
    with pytest.raises(InputError, match="the probe takes 2 numbers"):
        compare_fewer_tiles([slide_of("a", np.ones((2, 3)))], [1], probe=probe)
