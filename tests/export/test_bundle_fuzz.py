"""Damaged and forged bundles end in one clear error: never in a traceback, in garbage, or in another folder.

As a script: `test_bundle_fuzz.py COUNT [SEED]` tries more of them, and counts how they end.
"""

import copy
import json
import random
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("onnx")

sys.path.insert(0, str(Path(__file__).parent))
from small_graph import DIM, TILE_PX, write_small_graph

from atlas_edge.bundle import open_bundle, sha256_file, write_manifest
from atlas_edge.errors import AtlasError
from atlas_edge.manifest import Execution, Manifest, ModelProvenance
from atlas_edge.spec import EncoderSpec, Precision, Target

TILES = np.random.default_rng(0).integers(0, 256, (3, TILE_PX, TILE_PX, 3), dtype=np.uint8)
WRONG: list[Any] = [
    None, True, -1, 0, 1, 3, 10**30, -1.5, float("nan"), float("inf"), "", "x", "../x", "C:/x", "a\0b", "\ud800",
    "openvino", "tensorrt", "int8", [], [1, 2, 3], {}, {"x": []}, "manifest.json", "model.onnx", "sub",
]  # fmt: skip


def make_bundle(folder: Path) -> Path:
    (folder / "sub").mkdir(parents=True)
    write_small_graph(folder / "model.onnx")
    (folder / "sub" / "report.md").write_text("measured")
    spec = EncoderSpec(
        name="small", architecture="small", embed_dim=DIM, tile_px=TILE_PX, mean=(0,) * 3, std=(1,) * 3, pooling="avg"
    )
    manifest = Manifest(
        encoder=spec,
        target=Target.ONNX,
        precision=Precision.FP32,
        execution=Execution(model_file="model.onnx"),
        versions={"onnx": "1"},
        command=("atlas-export",),
        config={"seed": 0},
        model=ModelProvenance(name="small", source="registry"),
        files=(),
    )
    write_manifest(folder, manifest)
    return folder


def damage_manifest(text: bytes, chance: random.Random) -> bytes:
    """Cut, flip bits, or put a value of another kind somewhere."""
    kind = chance.choice(["cut", "flip", "swap", "swap", "swap", "drop", "add"])
    if kind == "cut":
        return text[: chance.randrange(len(text))]
    if kind == "flip":
        flipped = bytearray(text)
        for _ in range(chance.randint(1, 8)):
            flipped[chance.randrange(len(flipped))] ^= 1 << chance.randrange(8)
        return bytes(flipped)
    data = json.loads(text)
    holder, key = chance.choice(list(places(data)))
    if kind == "drop":
        del holder[key]
    elif kind == "add":
        holder[key] = [holder[key], copy.deepcopy(chance.choice(WRONG))]
    else:
        holder[key] = copy.deepcopy(chance.choice(WRONG))
    return json.dumps(data).encode(errors="surrogatepass")


def places(data: Any) -> Any:
    for key, value in data.items() if isinstance(data, dict) else enumerate(data):
        yield data, key
        if isinstance(value, dict | list):
            yield from places(value)


def damage_file(folder: Path, chance: random.Random) -> None:
    """Damage a file, and give the manifest its new hash, so that the runtime itself gets to see it."""
    path = folder / "model.onnx"
    data = bytearray(path.read_bytes())
    if chance.random() < 0.3:
        del data[chance.randrange(len(data)) :]
    else:
        for _ in range(chance.randint(1, 16)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    path.write_bytes(data)
    manifest = json.loads((folder / "manifest.json").read_bytes())
    for entry in manifest["files"]:
        if entry["path"] == "model.onnx":
            entry |= {"sha256": sha256_file(path), "size_bytes": len(data)}
    (folder / "manifest.json").write_text(json.dumps(manifest))


def ends_in(folder: Path) -> str:
    """How opening and running a bundle ends; anything but an AtlasError of the three kinds is raised."""
    try:
        encoder = open_bundle(folder)
        shape = encoder.encode(TILES).shape
        encoder.close()
    except AtlasError as error:
        assert error.exit_code in (2, 4, 5), error
        assert "\n" not in error.message
        return f"exit {error.exit_code}"
    assert shape == (len(TILES), DIM)
    return "runs"


def try_damaged(bundle: Path, scratch: Path, count: int, seed: int) -> Counter[str]:
    ended: Counter[str] = Counter()
    text = (bundle / "manifest.json").read_bytes()
    for number in range(count):
        chance = random.Random(f"{seed} {number}")
        folder = scratch / str(number)
        shutil.copytree(bundle, folder)
        if number % 3:
            (folder / "manifest.json").write_bytes(damage_manifest(text, chance))
        else:
            damage_file(folder, chance)
        try:
            ended[ends_in(folder)] += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}, bundle {number}: {type(error).__name__}: {error}") from error
        shutil.rmtree(folder)
    return ended


def test_damaged_bundles_end_in_one_line(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    assert ends_in(bundle) == "runs"
    ended = try_damaged(bundle, tmp_path, 120, seed=0)
    assert ended["exit 5"] > 60, ended


@pytest.mark.parametrize("name", ["target", "precision"])
def test_a_list_where_one_name_belongs(name: str, tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {name: [manifest[name], 3]}))
    assert ends_in(bundle) == "exit 5"


def test_a_name_in_a_graph_that_is_no_utf_8(tmp_path: Path) -> None:
    """ONNX Runtime loads it, and fails when it is asked for the shape."""
    bundle = make_bundle(tmp_path / "bundle")
    graph = bundle / "model.onnx"
    named = graph.read_bytes()
    assert b"\x12\x01B" in named
    graph.write_bytes(named.replace(b"\x12\x01B", b"\x12\x01\xe0"))
    manifest = json.loads((bundle / "manifest.json").read_text())
    for entry in manifest["files"]:
        if entry["path"] == "model.onnx":
            entry["sha256"] = sha256_file(graph)
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    assert ends_in(bundle) == "exit 5"


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        made = make_bundle(Path(folder) / "bundle")
        print(dict(try_damaged(made, Path(folder), int(sys.argv[1]), int((sys.argv[2:] or ["1"])[0]))))
