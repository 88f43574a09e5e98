from pathlib import Path

import pytest

from atlas_edge.errors import InputError
from atlas_edge.quantize.recipe import Recipe, load_recipe, save_recipe


def test_a_saved_recipe_comes_back(tmp_path: Path) -> None:
    recipe = Recipe(name="mine", smooth_alphas=(0.3, 0.6), exclude=("blocks.3.*",))
    save_recipe(recipe, tmp_path / "mine.json")
    assert load_recipe(tmp_path / "mine.json") == recipe


@pytest.mark.parametrize(
    ("text", "says"),
    [("{}}", "Invalid JSON"), ('{"smoth_alphas": [1]}', "smoth_alphas"), ('{"calibration_tiles": 0}', "greater")],
)
def test_a_bad_recipe_says_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(InputError, match=says):
        load_recipe(path)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no\.json"):
        load_recipe(tmp_path / "no.json")
