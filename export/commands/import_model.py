"""`atlas-export import`: somebody else's checkpoint into a model folder that everything here takes."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.cli import print_json
from atlas_edge.export.importing import MARKS, Imported, Source, eps_note, import_model, open_source
from atlas_edge.options import Output
from atlas_edge.system.atomic import check_vacant

if TYPE_CHECKING:
    from rich.console import Console


def run_import(file: Path, *, known: str | None, out: Path, overwrite: bool, dry_run: bool, output: Output) -> None:
    """Read, convert, compare, write; say what was done.

    Raises:
        UsageError: `out` is taken, no such file, or nothing says what network it is of.
        InputError: The file cannot be read, or does not fit the network.
    """
    screen = output.screen()
    check_vacant(out, marks=MARKS, overwrite=overwrite)
    source = open_source(file, known=known)
    _tell(source, screen)
    if dry_run:
        screen.print(f"would write {out}; nothing was written")
        if output.json:
            print_json(_as_json(source, None) | {"out": str(out)})
        return
    imported = import_model(source, out, overwrite=overwrite)
    spec = imported.model.spec
    screen.print(imported.said)
    screen.print(f"model: {out} ({spec.architecture}, {spec.pooling} pooling, {spec.embed_dim}-d, {spec.tile_px} px)")
    screen.print(f"next:  atlas-export inspect {out}")
    if output.json:
        print_json(_as_json(source, imported) | {"out": str(out)})


def _tell(source: Source, screen: "Console") -> None:
    what = "" if source.known is None else f" of {source.known.title}"
    screen.print(f"{len(source.converted.tensors)} tensors{what}, in the form of {source.converted.form}")
    if source.aside:
        groups = sorted({name.partition(".")[0] for name in source.aside})
        screen.print(f"left aside, no part of the encoder: {', '.join(groups)} ({len(source.aside)} tensors)")
    notes = [eps_note(source), None if source.known is None else source.known.note]
    for note in filter(None, notes):
        screen.print(note, style="dim")


def _as_json(source: Source, imported: Imported | None) -> dict[str, Any]:
    return {
        "form": source.converted.form,
        "tensors": len(source.converted.tensors),
        "left_aside": list(source.aside),
        "config": source.config,
        "known_encoder": None if source.known is None else source.known.name,
        "encoder": None if imported is None else imported.model.spec.model_dump(mode="json"),
        "check": None if imported is None else _check(imported),
    }


def _check(imported: Imported) -> dict[str, Any]:
    return {
        "compared_with": imported.compared_with,
        "one_minus_cosine": imported.difference,
        "not_compared": imported.not_compared,
    }
