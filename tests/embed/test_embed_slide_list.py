"""A CSV file of slides: scales, names of outputs, and every bad line named before anything is embedded."""

import json
from pathlib import Path

import pytest

from atlas_edge.embed import EmbedConfig, embed_slide
from atlas_edge.embed.config import SlideFacts
from atlas_edge.embed.jobs import leave_out_done, one_or_many
from atlas_edge.embed.resume.plan import plan_of
from atlas_edge.embed.slide_list import read_slide_list
from atlas_edge.errors import InputError
from embed.conftest import RunHere, make_scan
from embed.test_embed import MeanEncoder

h5py = pytest.importorskip("h5py")
pytest.importorskip("openslide")


def written(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with in/a.tif and in/sub/a.tif, of which the list says the scale of the first."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    for seed, name in enumerate(("a.tif", "sub/a.tif")):
        make_scan(tmp_path / "in" / name, seed)
    return tmp_path


@pytest.mark.parametrize("parted_by", [",", ";", "\t"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_paths_count_from_the_list_and_cells_may_be_empty(two: Path, parted_by: str, encoding: str) -> None:
    rows = [("Slide", "mpp", "id"), ("in/a.tif", "0.25", "case/1"), ("", "", ""), (str(two / "in/sub/a.tif"), "", "")]
    path = written(two / "list.csv", "\r\n".join(map(parted_by.join, rows)), encoding)
    slides, facts = read_slide_list(path)
    assert [slide.path for slide in slides] == [two / "in" / "a.tif", two / "in" / "sub" / "a.tif"]
    assert facts == {two / "in" / "a.tif": SlideFacts(mpp=0.25)}
    out = two / "out"
    places = [place.relative_to(out).as_posix() for _, place in one_or_many(slides, [], out, "h5")]
    assert places[0] == "case/1.h5" and places[1].endswith("a.h5")


def test_names_and_scales_stay_with_their_slides_where_two_share_a_name(two: Path) -> None:
    slides, facts = read_slide_list(written(two / "list.csv", "wsi,mpp\nin/a.tif,0.25\nin/sub/a.tif,0.5\n"))
    assert [facts[slide.path].mpp for slide in slides] == [0.25, 0.5]
    out = two / "out"
    assert [place.relative_to(out).as_posix() for _, place in one_or_many(slides, [], out, "h5")] == [
        "a.h5",
        "sub/a.h5",
    ]


def test_an_output_that_is_named_keeps_its_name_from_others(two: Path) -> None:
    (two / "in" / "sub" / "a.tif").rename(two / "in" / "b.tif")
    slides, _ = read_slide_list(written(two / "list.csv", "slide,out\nin/a.tif,\nin/b.tif,a\n"))
    assert [place.name for _, place in one_or_many(slides, [], two / "out", "h5")] == ["a.tif.h5", "a.h5"]


def test_every_bad_line_is_named(two: Path) -> None:
    (two / "empty.svs").touch()
    text = "\n".join(
        [
            "slide,mpp,id", "in/a.tif,0.25,x", "none.svs,,", "in/sub/a.tif,fine,", "in/sub/a.tif,400,X", ",0.5,y",
            "in/a.tif,,z", "empty.svs,,", "in/sub/a.tif,nan,../up", "in/sub/a.tif,0.5", 'in/sub/a.tif,"0,25",b.h5',
        ]
    )  # fmt: skip
    with pytest.raises(InputError) as raised:
        read_slide_list(written(two / "list.csv", text))
    said = raised.value.message
    for number, words in (
        (3, "does not exist"), (4, "mpp is 'fine', expected a number from 0.05 to 20 such as 0.25"),
        (5, "mpp is '400'"), (5, "X is in line 2, too"), (6, "no slide is named"), (7, "in/a.tif is in line 2, too"),
        (8, "0 bytes"),
        (9, "mpp is 'nan'"), (9, "'../up' cannot be a name below --out"), (10, "2 cells, the first line has 3"),
        (11, "mpp is '0,25'"), (11, "'b.h5' has a suffix"),
    ):  # fmt: skip
        assert any(line.startswith(f"  line {number}: ") and words in line for line in said.splitlines()), (
            number,
            said,
        )
    assert "line 2:" not in said


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1 says nothing, expected a column slide"),
        ("name,mpp\na.tif,0.5\n", "line 1 says name, mpp, expected a column slide"),
        ("slide,wsi\na.tif,a.tif\n", "columns slide and wsi say the same"),
        ("slide,mpp\n", "names no slide"),
        ('slide,mpp\n"a.tif,0.5\n', "line 2: unexpected end of data"),
        (b"slide\n\xe4.tif\n", "is not UTF-8"),
        (None, "No such file"),
    ],
)
def test_what_is_no_list_is_said(tmp_path: Path, text: str | bytes | None, words: str) -> None:
    path = tmp_path / "list.csv"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words):
        read_slide_list(path)


def test_a_wrong_scale_is_overridden_and_both_are_recorded(two: Path) -> None:
    slide, other = two / "in" / "a.tif", two / "in" / "sub" / "a.tif"
    config = EmbedConfig(tissue=False, overview=False, of_slides={slide: SlideFacts(mpp=0.25)})
    for path, out in ((slide, "a.h5"), (other, "b.h5")):
        embed_slide(path, MeanEncoder(), two / out, config)
    with h5py.File(two / "a.h5") as file:
        about, tiles = dict(file.attrs), len(file["features"])
    assert (about["slide_mpp"], about["slide_mpp_source"], about["mpp"]) == (0.25, "--slides", 0.5)
    assert about["slide_stated_mpp"] == pytest.approx(0.5)
    assert tiles == 150  # of 600: a tile of 16 µm has 64 px there
    with h5py.File(two / "b.h5") as file:
        assert file.attrs["slide_mpp_source"] == "slide" and "slide_stated_mpp" not in file.attrs
        assert len(file["features"]) == 600
    # Each is judged by what the list says of it; without the list the first one is another plan.
    for now, again in ((config, []), (EmbedConfig(tissue=False), [slide])):
        to_do, _, _ = leave_out_done(
            [(slide, two / "a.h5"), (other, two / "b.h5")],
            lambda path, now=now: plan_of(MeanEncoder.spec, now.of_slide(path), ""),
            overwrite=False,
            re_embed=True,
        )
        assert [path for path, _ in to_do] == again
    # A cluster's workers get the configuration as JSON.
    assert EmbedConfig(**json.loads(json.dumps(config.as_json()))).of_slide(slide).mpp == 0.25


def test_on_the_command_line(two: Path, mean_bundle: Path, run_here: RunHere, caplog: pytest.LogCaptureFixture) -> None:
    path = written(two / "list.csv", "slide,mpp,id,ward\nin/a.tif,0.25,one,7\nin/sub/a.tif,,,7\n")
    arguments = ["--bundle", mean_bundle, "--out", two / "out", "--no-tissue", "--no-overview", "--json"]
    done = run_here("--slides", path, *arguments)
    assert done.returncode == 0, done.stderr
    assert "columns that are not read: ward" in caplog.text
    assert [slide["tiles"] for slide in json.loads(done.stdout)["slides"]] == [150, 600]
    assert {file.name for file in (two / "out").iterdir()} == {"one.h5", "a.h5"}
    # As a service has it: the option's own variable, which names no slides beside it.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ATLAS_EMBED_SLIDES", str(path))
        again = run_here(*arguments)
    assert again.returncode == 0 and len(json.loads(again.stdout)["skipped"]) == 2, again.stderr
    for given in ((), (two / "in" / "a.tif", "--slides", path), ("ray",), ("ray", two / "in", "--slides", path)):
        refused = run_here(*given, "--bundle", mean_bundle, "--out", two / "out")
        assert refused.returncode == 2 and "--slides" in refused.stderr


def test_a_cluster_takes_the_list_and_masks(two: Path, mean_bundle: Path, run_here: RunHere) -> None:
    path = written(two / "list.csv", "slide,mpp,id\nin/a.tif,0.25,one\nin/sub/a.tif,,\n")
    arguments = ["ray", "--slides", path, "--bundle", mean_bundle, "--out", two / "out", "--dry-run", "--json"]
    done = run_here(*arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["to_do"] == [str(two / "in" / name) for name in ("a.tif", "sub/a.tif")]
    lacking = run_here(*arguments, "--mask", two)
    assert lacking.returncode == 5 and "holds no mask of a.tif, a.tif" in lacking.stderr
