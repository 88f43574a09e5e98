"""The sample in C++, compiled where a compiler is, and run: it embeds as `open_bundle` does."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bundle import open_bundle
from support import ROOT

SAMPLE = ROOT / "docs/samples/embed.cpp"


@pytest.fixture(scope="module")
def embed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    openvino = pytest.importorskip("openvino")
    # Its wheel brings headers and libraries.
    folder = Path(openvino.__file__).parent
    libraries = sorted((folder / "libs").glob("libopenvino.so.*"))
    compiler = shutil.which("g++")
    if compiler is None or not libraries or not (folder / "include/openvino/openvino.hpp").is_file():
        pytest.skip("no g++, or an OpenVINO without headers")
    program = tmp_path_factory.mktemp("samples") / "embed"
    link = [str(libraries[0]), f"-Wl,-rpath,{folder / 'libs'}"]
    flags = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", str(folder / "include")]
    subprocess.run([compiler, *flags, str(SAMPLE), "-o", str(program), *link], check=True)
    return program


def test_it_embeds_as_we_do(embed: Path, bundle: Path, tiny_tiles: NDArray[np.uint8], tmp_path: Path) -> None:
    (tmp_path / "tiles.rgb").write_bytes(tiny_tiles.tobytes())
    command = [embed, bundle / "model.xml", tmp_path / "tiles.rgb"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = np.array([line.split() for line in done.stdout.splitlines()], np.float32)
    encoder = open_bundle(bundle)
    wanted = encoder.encode(tiny_tiles)
    encoder.close()
    assert found.shape == wanted.shape
    cosines = (found * wanted).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(wanted, axis=1)
    # Six digits are printed, and processors with VNNI round the integers' way.
    assert cosines.min() > 0.999
    (tmp_path / "tiles.rgb").write_bytes(tiny_tiles.tobytes()[:-1])
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 5 and "expected tiles of 32 x 32 px" in done.stderr
