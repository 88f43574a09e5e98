"""What readers of others make of our HDF5: sound, and at a wrong scale. CLAM's and TRIDENT's are stood in for.

Each stand-in takes and gives what the published one does, and cuts by the same attributes.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from atlas_edge.bench.conformance.checks.slides import CHECKS
from atlas_edge.bench.conformance.finding import Finding, Outcome
from atlas_edge.bench.conformance.run import ask
from atlas_edge.bench.conformance.subject import read_subject
from atlas_edge.embed.output import files

for _module in ("h5py", "openslide", "tifffile", "imagecodecs"):
    pytest.importorskip(_module)
pytest.importorskip("openvino")

Ask = Callable[..., Finding]

# CLAM of April 2025.
CLAM = {
    "dataset_modules/dataset_h5.py": """
import h5py

class Whole_Slide_Bag_FP:
    def __init__(self, file_path, wsi, img_transforms=None):
        self.wsi, self.roi_transforms = wsi, img_transforms
        with h5py.File(file_path) as file:
            self.coords, about = file["coords"][:], file["coords"].attrs
            self.level, self.size = about["patch_level"], about["patch_size"]
        print("feature extraction settings")

    def __getitem__(self, idx):
        coord = self.coords[idx]
        image = self.wsi.read_region(coord, self.level, (self.size, self.size)).convert("RGB")
        return {"img": self.roi_transforms(image), "coord": coord}
"""
}
# TRIDENT 0.3.0; level 0 alone, which is what it takes at this scale.
TRIDENT = {
    "trident/__init__.py": """
import openslide
from trident.wsi_objects.WSIPatcher import WSIPatcher

class Slide:
    def __init__(self, path):
        self.opened = openslide.OpenSlide(path)

    def create_patcher(self, patch_size, src_mag=None, dst_mag=None, custom_coords=None, coords_only=False, pil=False):
        return WSIPatcher(self.opened, patch_size, src_mag, dst_mag, custom_coords)

def load_wsi(slide_path, reader_type=None):
    assert reader_type == "openslide"
    return Slide(slide_path)

class WSIPatcherDataset:
    def __init__(self, patcher, transform):
        self.patcher = patcher

    def __getitem__(self, index):
        tile, x, y = self.patcher[index]
        return tile, (x, y)
""",
    "trident/IO.py": """
import h5py

def read_coords(coords_path):
    with h5py.File(coords_path) as file:
        return dict(file["coords"].attrs), file["coords"][:]
""",
    "trident/wsi_objects/__init__.py": "",
    "trident/wsi_objects/WSIPatcher.py": """
class WSIPatcher:
    def __init__(self, opened, patch_size, src_mag, dst_mag, coords):
        self.opened, self.target, self.coords = opened, patch_size, coords
        self.source = round(patch_size * src_mag / dst_mag)

    def __getitem__(self, index):
        x, y = (int(place) for place in self.coords[index])
        tile = self.opened.read_region((x, y), 0, (self.source, self.source)).convert("RGB")
        return tile.resize((self.target, self.target)), x, y
""",
}


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[dict[str, str]], None]]:
    """Put packages where imports find them, until the test ends."""
    names: set[str] = set()

    def put(sources: dict[str, str]) -> None:
        for name, text in sources.items():
            path = tmp_path / "others" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            names.add(name.partition("/")[0])
        monkeypatch.syspath_prepend(str(tmp_path / "others"))

    yield put
    for module in [name for name in sys.modules if name.partition(".")[0] in names]:
        del sys.modules[module]


@pytest.fixture
def asked(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> Ask:
    """Ask a program of a file whose `coords` say something else than they should."""

    def asked(program: str, **wrong: float) -> Finding:
        told = files.coords_attributes
        monkeypatch.setattr(files, "coords_attributes", lambda *given: {**told(*given), **wrong})
        (check,) = (check for check in CHECKS if check.program == program)
        return ask(check, read_subject(bundle))

    return asked


@pytest.mark.parametrize(
    ("program", "wrong"),
    [
        ("OpenSlide", {"patch_size": 64}),
        ("OpenSlide", {"patch_level": 1}),
        ("CLAM", {"patch_size": 64}),
        ("CLAM", {"patch_level": 1}),
        ("TRIDENT", {"patch_size": 64}),
        ("TRIDENT", {"level0_magnification": 40.0}),
        ("TRIDENT", {"target_magnification": 40.0}),
    ],
)
def test_a_wrong_scale_in_our_hdf5_is_caught(
    program: str, wrong: dict[str, float], asked: Ask, install: Callable[[dict[str, str]], None]
) -> None:
    install({**CLAM, **TRIDENT})
    finding = asked(program, **wrong)
    assert finding.outcome is Outcome.FAIL and "worst cosine" in finding.said, finding.said


def test_a_sound_file_passes_by_each(
    asked: Ask, install: Callable[[dict[str, str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    install({**CLAM, **TRIDENT})
    for check in CHECKS:
        finding = asked(check.program)
        assert finding.outcome is Outcome.PASS and "worst cosine 1.000000" in finding.said, finding.said
        assert finding.version
    assert "feature extraction" not in capsys.readouterr().out  # what readers print is not among our findings


def test_a_program_of_the_same_name_is_not_asked(asked: Ask, install: Callable[[dict[str, str]], None]) -> None:
    for program in ("CLAM", "TRIDENT"):
        assert asked(program).said == f"{program} is not installed"
    install({"trident/__init__.py": "raise RuntimeError('yt')", "dataset_modules/__init__.py": "raise RuntimeError()"})
    for program in ("CLAM", "TRIDENT"):
        finding = asked(program)
        assert finding.outcome is Outcome.SKIPPED and finding.said == f"{program} is not installed", finding.said


def test_half_an_installation_is_told(asked: Ask, install: Callable[[dict[str, str]], None]) -> None:
    install({**TRIDENT, "trident/IO.py": "import geopandas_that_is_not_there"})
    finding = asked("TRIDENT")
    assert finding.outcome is Outcome.SKIPPED and "geopandas_that_is_not_there" in finding.said
