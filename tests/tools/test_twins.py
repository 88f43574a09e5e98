"""Twins of a tiny teacher in every architecture, and the table of their INT8."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("timm")

import torch

import twin_table
import twins as tool
from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.encoder_module import EncoderModule
from atlas_edge.models.load import load_encoder, load_model
from parts import twin_closed_form, twin_fit
from support import write_timm_folder

SIZE: dict[str, Any] = {"img_size": 28, "patch_size": 14, "embed_dim": 48, "depth": 2, "num_heads": 3}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher") / "taught"
    return write_timm_folder(folder, "vit_small_patch14_dinov2", init_values=0.5, **SIZE)


def make(kind: str, teacher: Path, tiles: Path, out: Path, *, seed: int = 0) -> dict[str, Any]:
    tool.make_twin(kind, teacher=str(teacher), tiles=str(tiles), out=out, steps=3, train_tiles=6, judged=8, seed=seed)
    report: dict[str, Any] = json.loads((out / tool.REPORT).read_text())
    return report


@pytest.mark.parametrize(
    ("kind", "shape"), [("swiglu", (48, 4, 0)), ("rotary", (48, 4, 4)), ("qknorm", (48, 4, 0)), ("patch8", (96, 9, 8))]
)
def test_a_twin_loads_as_any_model_and_says_what_it_keeps(
    kind: str, shape: tuple[int, int, int], teacher: Path, tiles: Path, tmp_path: Path
) -> None:
    report = make(kind, teacher, tiles, tmp_path / kind)
    spec = load_model(str(tmp_path / kind)).spec
    grid = load_encoder(str(tmp_path / kind)).spec.tokens
    assert grid is not None
    assert (spec.embed_dim, grid.rows * grid.columns, spec.registers) == shape
    assert 0.5 < report["cosine_p1"] <= report["cosine_median"] <= 1
    assert -1 <= report["centred_cosine_median"] <= 1 and report["spread"] > 0
    assert report["probe"]["linear"].keys() == {"teacher", "twin"}
    assert report["outliers"]["twin"]["stream_peak"] > 1


def test_a_twin_that_gives_the_mean_of_all_tiles_is_found_out() -> None:
    random = np.random.default_rng(0)
    teacher = random.normal(3, 1, (50, 32)).astype(np.float32)
    collapsed = teacher.mean(axis=0) + 0.01 * random.normal(size=teacher.shape).astype(np.float32)
    found = tool._spread(teacher, collapsed)
    assert abs(found["centred_cosine_median"]) < 0.2
    assert found["spread"] < 0.02
    same = tool._spread(teacher, 2 * teacher)
    assert same["centred_cosine_median"] == pytest.approx(1)
    assert same["spread"] == pytest.approx(2)


def test_training_that_leads_away_from_the_teacher_is_undone(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(module: torch.nn.Module, *_: Any) -> None:
        for parameter in module.parameters():
            parameter.data.mul_(-1)

    kind = twin_fit.KINDS["swiglu"]
    master = tool.open_teacher(str(teacher), kind)
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8))
    twins = [EncoderModule(twin_fit.build_twin(kind, master)[0], master.spec).eval() for _ in range(2)]
    twin_fit.fit_twin(twins[0], master.module, tiles, tiles, steps=0)
    monkeypatch.setattr(twin_fit, "_train", spoil)
    twin_fit.fit_twin(twins[1], master.module, tiles, tiles, steps=3)
    with torch.inference_mode():
        torch.testing.assert_close(twins[1](tiles), twins[0](tiles))


def test_the_same_seed_makes_the_same_twin(teacher: Path, tiles: Path, tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        make("qknorm", teacher, tiles, tmp_path / name, seed=seed)
    one, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "again", "other"))
    assert one == again != other


@pytest.mark.parametrize(("kind", "near"), [("swiglu", 0.99), ("qknorm", 0.9)])
def test_closed_forms_are_near_the_teacher_before_any_training(
    kind: str, near: float, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    master = tool.open_teacher(str(teacher), twin_fit.KINDS[kind])
    network, _ = twin_fit.build_twin(twin_fit.KINDS[kind], master)
    monkeypatch.setattr(twin_fit, "_train", lambda *_: None)
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 28, 28, 3), dtype=np.uint8))
    twin = EncoderModule(network, master.spec).eval()
    untouched = EncoderModule(twin_fit.build_twin(twin_fit.KINDS[kind], master)[0], master.spec).eval()
    twin_fit.fit_twin(twin, master.module, tiles, tiles, steps=3)
    with torch.inference_mode():
        expected = master.module(tiles)
        fitted, begun = (torch.cosine_similarity(found(tiles), expected).min() for found in (twin, untouched))
    assert fitted > near > begun


@pytest.mark.parametrize("kind", ["rotary", "qknorm", "patch8"])
def test_what_a_block_writes_goes_where_the_teachers_stream_is(kind: str, teacher: Path) -> None:
    """Read from tokens that are out of place already, and from registers that the teacher has none of."""
    master = tool.open_teacher(str(teacher), twin_fit.KINDS[kind])
    network, _ = twin_fit.build_twin(twin_fit.KINDS[kind], master)
    block, taught = network.blocks[0], master.module.backbone.blocks[0]
    prefix = network.num_prefix_tokens
    random = torch.Generator().manual_seed(0)
    goal = torch.randn(8, 5, 48, generator=random)
    patches = goal[:, 1:] + 0.1 * torch.randn(8, 4, 48, generator=random)
    stream = torch.cat([goal[:, :1], torch.randn(8, prefix - 1, 48, generator=random), patches], dim=1)
    table = None if getattr(network, "rope", None) is None else network.rope.get_embed([2, 2])

    def run(tokens: torch.Tensor) -> torch.Tensor:
        written: torch.Tensor = block(tokens) if table is None else block(tokens, rope=table)
        return written

    with torch.no_grad():
        written = taught(goal)
        before = twin_fit.token_error(run(stream), written, prefix)
        twin_closed_form.refit_writes(block, taught, run, stream, goal, written, prefix)
        assert twin_fit.token_error(run(stream), written, prefix) < 0.7 * before


def test_only_a_plain_vit_has_twins(tmp_path: Path) -> None:
    gated = {"mlp_layer": "SwiGLUPacked", "act_layer": "silu"}
    from timm.layers import SwiGLUPacked

    folder = write_timm_folder(
        tmp_path / "gated",
        "vit_tiny_patch16_224",
        config_args=SIZE | gated,
        **SIZE | {"mlp_layer": SwiGLUPacked, "act_layer": torch.nn.SiLU},
    )
    with pytest.raises(UsageError, match="no twin can be made of"):
        tool.open_teacher(str(folder), twin_fit.KINDS["rotary"])


def test_the_table_goes_between_the_marks(teacher: Path, tiles: Path, tmp_path: Path) -> None:
    make("rotary", teacher, tiles, tmp_path / "twin")
    page = tmp_path / "page.md"
    page.write_text(f"before\n{twin_table.BEGIN}\n{twin_table.END}\nafter\n")
    options = {"tiles": str(tiles), "calib_limit": 8, "eval_limit": 8}
    twin_table.twin_table(page, tmp_path / "twin", **options)
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n")
    (line,) = [line for line in text.splitlines() if line.startswith("| rotary") and "8, 8" in line]
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert float(cells[2]) > 0.99 and float(cells[3]) <= float(cells[2])
    kept = json.loads((tmp_path / "twin" / "int8.json").read_text())
    # What is kept is not measured again.
    kept["cosines"]["onnx"] = [0.5] * 8
    (tmp_path / "twin" / "int8.json").write_text(json.dumps(kept))
    twin_table.twin_table(page, tmp_path / "twin", **options)
    assert "0.50000 | 0.50000" in page.read_text()
    with pytest.raises(InputError, match=r"has no twin\.json"):
        twin_table.twin_table(page, teacher, **options)


def test_a_turn_of_queries_and_keys_changes_no_score(teacher: Path) -> None:
    master = tool.open_teacher(str(teacher), twin_fit.KINDS["rotary"])
    network, _ = twin_fit.build_twin(twin_fit.KINDS["rotary"], master)
    block, taught = network.blocks[0], master.module.backbone.blocks[0]
    tokens = torch.randn(2, 5, 48, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = [product.clone() for product in heads_of(block.attn.qkv.weight)]
        turned = twin_closed_form._turn_heads(block.attn, tokens, torch.linalg.qr(torch.randn(16, 16))[0])
        after = heads_of(block.attn.qkv.weight)
        torch.testing.assert_close(after[0].mT @ after[1], before[0].mT @ before[1], atol=1e-5, rtol=1e-4)
    assert [part.shape for part in turned] == [(2, 5, 3, 16)] * 2
    assert not torch.allclose(after[0], before[0])
    torch.testing.assert_close(block.attn.qkv.weight[96:], taught.attn.qkv.weight[96:])


def heads_of(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Query and key weights `(heads, head_dim, D)`."""
    return weight[:48].unflatten(0, (3, 16)), weight[48:96].unflatten(0, (3, 16))
