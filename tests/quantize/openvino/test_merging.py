"""Token merging: what is merged, what later blocks make of it, and the same in a graph."""

from pathlib import Path

import numpy as np
import pytest
import torch
from folding_kinds import KINDS, encoder_of
from numpy.typing import NDArray

from atlas_edge.cli import run_app
from atlas_edge.errors import UsageError
from atlas_edge.export.cli import app as export_app
from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.folding.merging import Stream, block_work, checkerboard, merge, merge_schedule, with_merging
from atlas_edge.models.folding.vit import FoldedVit, fold_vit
from atlas_edge.quantize.cli import app
from atlas_edge.quantize.onnx.fakequant import embed
from atlas_edge.quantize.openvino.graph import build_openvino
from atlas_edge.quantize.openvino.grids import VitGrids
from atlas_edge.quantize.openvino.nncf import quantize_openvino
from atlas_edge.quantize.paths import path_sentence
from atlas_edge.quantize.recipe import for_merging, nncf_recipe, openvino_recipe, save_recipe
from atlas_edge.runtimes.openvino import OpenVinoEncoder
from atlas_edge.spec import EncoderSpec

Batches = list[NDArray[np.uint8]]


def _folded(kind: str, factor: float) -> tuple[FoldedVit, EncoderModule, EncoderSpec]:
    module, spec = encoder_of(kind)
    folded = fold_vit(module)
    assert folded is not None
    return with_merging(folded, factor), module, spec


def test_merging_joins_the_nearest_by_hand() -> None:
    # CLS; at even places a, b, c, at odd ones d, e, f. a is nearly e, c nearly f, b like nothing.
    a, b, c = [1.0, 0, 0, -1], [0, 1.0, -1, 0], [1.0, 1, -1, -1]
    d, e, f = [-1.0, 0, 0, 1], [1.1, 0, 0, -0.9], [0.8, 1, -1, -1]
    tokens = torch.tensor([[[9.0, 9, 9, 0], a, d, b, e, c, f]])
    found = merge(Stream(tokens), None, 2, prefix=1)
    assert found.sizes is not None and found.places is not None
    expected = [tokens[0, 0].tolist(), b, d, np.mean([a, e], axis=0), np.mean([c, f], axis=0)]
    np.testing.assert_allclose(found.tokens[0], expected, atol=1e-6)
    assert found.sizes.tolist() == [[1, 1, 1, 2, 2]]
    assert found.places.tolist() == [[0, 3, 2, 4, 6]]


def test_merged_tokens_weigh_as_many_patches_as_they_stand_for() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(3, 13, 8, generator=generator)
    stream = Stream(tokens)
    for count in (4, 3, 2):
        stream = merge(stream, None, count, prefix=1)
    assert stream.sizes is not None
    assert stream.tokens.shape[1] == 13 - 9 and bool((stream.sizes.sum(1) == 13).all())
    means = (stream.tokens * stream.sizes[..., None])[:, 1:].sum(1) / 12
    torch.testing.assert_close(means, tokens[:, 1:].mean(1))


def test_what_cls_looks_at_is_merged_last() -> None:
    tokens = torch.randn(1, 9, 16, generator=torch.Generator().manual_seed(1))
    attention = torch.full((1, 9), 1e-4)
    attention[0, [1, 3]] = 1.0  # the first two at even places of the patches
    found = merge(Stream(tokens), attention, 2, prefix=1)
    assert found.places is not None
    assert {1, 3} <= set(found.places[0].tolist())


def test_neighbours_of_a_patch_have_the_other_colour() -> None:
    rows, columns = 5, 4
    order = checkerboard(rows, columns)
    assert sorted(order.tolist()) == list(range(20))
    even = set(order[0::2].tolist())
    for place in range(20):
        row, column = divmod(place, columns)
        assert (place in even) == ((row + column) % 2 == 0)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_patches_can_be_merged_without_loss(kind: str) -> None:
    """Attention cannot tell many equal tokens from one of their size, where positions do not tell them apart."""
    folded, _, _ = _folded(kind, 1)
    for block in folded.blocks:
        block.attn.rotation = None
    tokens = torch.randn(2, folded.prefix.shape[1] + 16, 64, generator=torch.Generator().manual_seed(2))
    tokens[:, folded.prefix.shape[1] :] = tokens[:, -1:]
    with torch.inference_mode():
        expected = Stream(tokens)
        found = merge(Stream(tokens), None, 6, folded.prefix.shape[1])
        for block in folded.blocks:
            expected, found = block(expected), block(found)
        torch.testing.assert_close(folded._pool(found), folded._pool(expected), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_graph_of_every_kind_merges_as_pytorch_does(kind: str, held_out: NDArray[np.uint8]) -> None:
    folded, module, spec = _folded(kind, 1.05)
    assert sum(block.merged for block in folded.blocks)
    with torch.inference_mode():
        expected = folded(torch.from_numpy(held_out)).numpy()
    found = OpenVinoEncoder(build_openvino(folded, VitGrids(), tile_px=32), spec).encode(held_out)
    assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    # It is another function than the encoder's.
    assert np.linalg.norm(expected - embed(module, [held_out])) > 1e-3 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", ["pre-norm", "turned by head"])
def test_an_embedding_does_not_depend_on_its_batch(kind: str, held_out: NDArray[np.uint8]) -> None:
    folded, _, spec = _folded(kind, 1.05)
    encoder = OpenVinoEncoder(build_openvino(folded, VitGrids(), tile_px=32), spec)
    together = encoder.encode(held_out[:4])
    alone = np.concatenate([encoder.encode(tile[None]) for tile in held_out[:4]])
    np.testing.assert_allclose(alone, together, atol=1e-4)


@pytest.mark.parametrize("kind", ["pre-norm", "gated", "turned", "normed"])
def test_a_merging_network_is_quantized_whole(kind: str, calibration: Batches, held_out: NDArray[np.uint8]) -> None:
    folded, module, spec = _folded(kind, 1.05)
    recipe = for_merging(openvino_recipe(), 1.05)
    model, report = quantize_openvino(Path("no graph"), calibration, recipe=recipe, module=module)
    merged = {f"blocks.{index}": block.merged for index, block in enumerate(folded.blocks) if block.merged}
    assert report["merged"] == merged and merged
    assert "1.05 times less work" in str(path_sentence(report))
    with torch.inference_mode():
        expected = folded(torch.from_numpy(held_out)).numpy()
    found = OpenVinoEncoder(model, spec).encode(held_out)
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() > 0.99


def test_a_schedule_saves_what_was_asked_for() -> None:
    folded, _, _ = _folded("pre-norm", 1)
    whole = block_work(folded, {})
    for factor in (1.02, 1.1, 1.3):
        schedule = merge_schedule(folded, factor)
        assert whole / block_work(folded, schedule) >= factor
        fewer = {index: count - 1 for index, count in schedule.items()}
        assert whole / block_work(folded, fewer) < factor


def test_more_than_there_is_cannot_be_saved() -> None:
    folded, _, _ = _folded("pre-norm", 1)
    with pytest.raises(UsageError, match=r"at most 1\.[0-9]+ times"):
        with_merging(folded, 7.0)


def test_patch_tokens_are_not_merged() -> None:
    module, _ = encoder_of("pre-norm")
    module.gives_tokens = True
    folded = fold_vit(module)
    assert folded is not None
    with pytest.raises(UsageError, match="patch tokens"):
        with_merging(folded, 1.05)


def test_nncf_merges_nothing(calibration: Batches) -> None:
    recipe = for_merging(nncf_recipe(), 1.2)
    with pytest.raises(UsageError, match="NNCF cannot: the recipe asks for it"):
        quantize_openvino(Path("no graph"), calibration, recipe=recipe, module=encoder_of("gated")[0])


@pytest.mark.parametrize("kind", KINDS)
def test_only_wide_rows_are_gathered(kind: str) -> None:
    """A kernel for rows that fit a register reads out of bounds now and then (OpenVINO 2026.4 with AVX-512)."""
    folded, _, _ = _folded(kind, 1.05)
    nodes = build_openvino(folded, VitGrids(), tile_px=32).get_ops()
    shapes = [node.output(0).get_partial_shape() for node in nodes if node.get_type_name() == "Gather"]
    rows = [shape for shape in shapes if len(shape) > 1]
    assert rows and all(shape[-1].get_length() > 16 for shape in rows)


def test_what_is_measured_layer_by_layer_merges_nothing(
    tiny_model: Path, tiles: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    save_recipe(for_merging(openvino_recipe(), 1.2), tmp_path / "recipe.json")
    assert run_app(app, ["sensitivity", str(tiny_model), str(tiles), "--recipe", "recipe.json"]) == 2
    said = capsys.readouterr().err
    assert "merges tokens, which" in said and "Traceback" not in said
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


@pytest.mark.parametrize("target", ["openvino", "onnx", "tensorrt-rtx"])
def test_an_export_refuses_before_it_computes(
    target: str,
    tiny_model: Path,
    tiles: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if target == "tensorrt-rtx":
        pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("atlas_edge.export.pipeline.calibrate", lambda *_: pytest.fail("tiles were read"))
    words = [
        str(tiny_model),
        "--target",
        target,
        "--precision",
        "int8",
        "--calib",
        str(tiles),
        "--merge-tokens",
        "7",
    ]
    assert run_app(export_app, [*words, "--out", str(tmp_path / "bundle")]) == 2
    assert "saves at most" in capsys.readouterr().err and not list(tmp_path.iterdir())
