"""`atlas-export MODEL --target auto`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.bench.report.terminal import print_rows
from atlas_edge.cli import print_json
from atlas_edge.errors import UsageError
from atlas_edge.export.commands.pack import package_json, package_rows, packed_line
from atlas_edge.export.options import Choices, Request, batch_sizes, listed
from atlas_edge.export.packing.auto import auto_configs, buildable, export_package
from atlas_edge.options import Output

if TYPE_CHECKING:
    from rich.console import Console

    from atlas_edge.export.config import ExportConfig

_ONE_VARIANT = ("precision", "plan", "recipe")


def run_auto(model: str, request: Request, choices: Choices, *, dry_run: bool, output: Output) -> None:
    """Build every variant that this machine can, and pack those that pass.

    Raises:
        UsageError: An option that is of one variant alone, or the folder is taken.
        GateFailed: No variant passed.
    """
    screen = output.screen()
    given = [name for name in _ONE_VARIANT if getattr(request, name) is not None]
    if given:
        raise UsageError(
            f"--target auto builds variants in several precisions, and --{given[0]} is of one",
            hint=f"leave --{given[0]} out",
        )
    configs = auto_configs(model=model, **_values(request, choices))
    out = choices.out or next(iter(configs.values())).package_output
    if dry_run:
        _dry_run(configs, out, screen, json=output.json)
        return
    import sys

    from atlas_edge.export.pipeline import STEPS
    from atlas_edge.export.report.summary import as_dict
    from atlas_edge.export.steps import Steps

    def announced(name: str) -> Steps:
        screen.print(f"{name}, {list(configs).index(name) + 1} of {len(configs)}", style="bold underline")
        return Steps(screen, STEPS)

    made = export_package(configs, out, steps=announced, command=("atlas-export", *sys.argv[1:]))
    print_rows(screen, [package_rows(out, made.packed.manifest)])
    screen.print(packed_line(out, made.packed), soft_wrap=True)
    screen.print(f"next:    atlas-bench choose {out}   # on the workstation", soft_wrap=True)
    if output.json:
        exports = {name: as_dict(result) for name, result in made.results.items()}
        print_json({**package_json(out, made.packed.manifest), "exports": exports})


def _values(request: Request, choices: Choices) -> dict[str, Any]:
    asked = {name: value for name, value in vars(request).items() if value is not None}
    asked["batch"] = batch_sizes(request.batch)
    asked["compute_capabilities"] = listed(asked.pop("compute_capability"))
    asked.pop("target")
    return {**asked, **vars(choices), "out": None}


def _dry_run(configs: "dict[str, ExportConfig]", out: Path, screen: "Console", *, json: bool) -> None:
    from atlas_edge.export.tile_sets import open_tile_sets
    from atlas_edge.package.manifest import VARIANTS
    from atlas_edge.system.atomic import check_vacant

    first = next(iter(configs.values()))
    check_vacant(out, marks=(VARIANTS,), overwrite=first.overwrite)
    found, left_out = buildable(configs)
    open_tile_sets(first)
    screen.print(f"would build {', '.join(found) or 'nothing'} into {out}; nothing was written", soft_wrap=True)
    for one in left_out:
        screen.print(f"left out: {one.name}: {one.reason}", soft_wrap=True)
    if json:
        print_json({"out": str(out), "variants": list(found), "left_out": [one.model_dump() for one in left_out]})
