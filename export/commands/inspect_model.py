"""`atlas-export inspect`: what an encoder is, and which way each target takes it."""

from typing import Literal

from rich.console import Console
from rich.table import Table

from atlas_edge.cli import print_json
from atlas_edge.export.inspection import Inspection, inspect_model
from atlas_edge.models.load import load_model
from atlas_edge.options import Output
from atlas_edge.quantize.paths import FITTED, FLOAT, NEAREST, NNCF

_NO = "–"
# What fits a terminal of 80 columns.
_SHORT = {FLOAT: "float", NNCF: "NNCF", FITTED: "block by block", NEAREST: "to the nearest"}


def run_inspect(
    model: str,
    *,
    known: str | None,
    pooling: Literal["cls", "cls+mean", "avg"] | None,
    tile_px: int | None,
    output: Output,
) -> None:
    """Load the encoder and print what is known of it.

    Raises:
        UsageError: No such model.
        InputError: It cannot be loaded.
    """
    output.screen()
    inspection = inspect_model(load_model(model, pooling=pooling, tile_px=tile_px, known=known))
    if output.json:
        print_json(inspection.as_json())
        return
    screen = Console(highlight=False, markup=False)
    facts = Table(show_header=False, box=None)
    for name, value in _facts(inspection):
        facts.add_row(name, value)
    screen.print(facts)
    _print_ways(inspection, screen)


def _facts(inspection: Inspection) -> list[tuple[str, str]]:
    model, shape, origins = inspection.model, inspection.shape, inspection.origins
    spec, known = model.spec, model.known
    network = [f"{shape.parameters / 1e6:.1f} M parameters"]
    network += [f"{shape.depth} blocks"] if shape.depth is not None else []
    network += [f"width {shape.width}"] if shape.width is not None else []
    network += [f"{shape.heads} heads"] if shape.heads is not None else []
    title = "" if known is None else f" ({known.title})"
    rows = [("encoder", f"{spec.name}{title}"), ("network", f"{spec.architecture}: {', '.join(network)}")]
    if shape.patch_tokens is not None:
        registers = f", {spec.registers} of them registers" if spec.registers else ""
        before = f"{shape.prefix_tokens} before{registers}" if shape.prefix_tokens else "none before"
        rows.append(("tokens", f"{shape.patch_tokens} patches of {spec.patch} px, {before}"))
    grid = model.module.token_grid
    if grid is not None:
        rows.append(("dense", f"{grid} (--output tokens)"))
    rows += [
        ("embedding", f"{spec.embed_dim}-d, pooling {spec.pooling} [{origins['pooling']}]"),
        ("tiles", f"{spec.tile_px} px, {spec.scales or 'µm per pixel'} [{origins['mpp']}]"),
        ("mean", f"{_three(spec.mean)} [{origins['mean']}]"),
        ("deviation", f"{_three(spec.std)} [{origins['std']}]"),
        ("licence", f"{model.provenance.licence or 'not stated'} [{origins['license']}]"),
        ("students", inspection.students),
    ]
    rows += [("note", known.note)] if known is not None and known.note is not None else []
    rows += [("not checked", ", ".join(known.unchecked))] if known is not None and known.unchecked else []
    return rows


def _print_ways(inspection: Inspection, screen: Console) -> None:
    precisions = list(next(iter(inspection.ways.values())))
    table = Table("target", *(precision.value for precision in precisions))
    reasons: dict[str, list[str]] = {}
    for target, ways in inspection.ways.items():
        table.add_row(target.value, *(_SHORT.get(way.path, way.path) if way.path else _NO for way in ways.values()))
        for precision, way in ways.items():
            if way.reason is not None:
                reasons.setdefault(way.reason, []).append(f"{target.value} {precision.value}")
    screen.print(table)
    screen.print(
        f"{', '.join(inspection.portable)} int8 --portable: weights of 7 bits, right in any runtime, with VNNI or not",
        soft_wrap=True,
    )
    for reason, places in reasons.items():
        screen.print(f"{', '.join(places)}: {reason}", soft_wrap=True)


def _three(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)
