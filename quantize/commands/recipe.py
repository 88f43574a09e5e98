"""`atlas-quantize recipe`: the defaults, and recipes made from them."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from atlas_edge.errors import UsageError
from atlas_edge.quantize.backend import backend_of
from atlas_edge.quantize.recipe import Recipe, load_recipe, save_recipe
from atlas_edge.spec import Target

if TYPE_CHECKING:
    from rich.console import Console


def show_recipe(
    name: str | None,
    changes: dict[str, Any],
    *,
    out: Path | None,
    overwrite: bool,
    dry_run: bool,
    screen: "Console",
) -> dict[str, Any]:
    """Print recipes, save one where asked, and return them as data.

    Raises:
        UsageError: Changes without a recipe, a value out of range, or a file that is there already.
        InputError: A saved recipe that cannot be read.
    """
    if name is None:
        if changes or out is not None:
            raise UsageError("there is no recipe to change or save", hint="name a target, or a saved recipe")
        found = {target.value: backend_of(target).recipe for target in Target}
    else:
        found = {name: _changed(_named(name), changes)}
    _print(found, screen)
    if out is not None:
        if out.exists() and not overwrite:
            raise UsageError(f"{out} exists", hint="add --overwrite to replace it")
        if dry_run:
            screen.print(f"would write {out}; nothing was written")
        else:
            save_recipe(next(iter(found.values())), out)
            screen.print(f"saved: {out}")
    return {key: value.model_dump(mode="json") for key, value in found.items()}


def _named(name: str) -> Recipe:
    if name in {target.value for target in Target}:
        return backend_of(Target(name)).recipe
    if not Path(name).exists():
        raise UsageError(
            f"no recipe is called {name!r}, and no such file exists",
            hint=f"give {', '.join(target.value for target in Target)}, or a file that --out saved",
        )
    return load_recipe(Path(name))


def _changed(recipe: Recipe, changes: dict[str, Any]) -> Recipe:
    if not changes:
        return recipe
    try:
        return Recipe.model_validate({**recipe.model_dump(), "name": "custom", **changes})
    except ValidationError as error:
        first = error.errors()[0]
        field = str(first["loc"][0])
        option = "--smooth-alpha" if field == "smooth_alphas" else "--" + field.replace("_", "-")
        raise UsageError(f"{option}: {first['msg']}", hint="see atlas-quantize recipe --help") from error


def _print(recipes: dict[str, Recipe], screen: "Console") -> None:
    from rich.table import Table

    table = Table("", *recipes)
    for field in Recipe.model_fields:
        table.add_row(field.replace("_", " "), *(_cell(getattr(recipe, field)) for recipe in recipes.values()))
    screen.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
