from pathlib import Path

import pytest

from atlas_edge.errors import InputError
from atlas_edge.quantize.recipe import Recipe, for_nncf, load_recipe, nncf_recipe, openvino_recipe, save_recipe


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


def test_a_recipe_for_the_layer_wise_path_gets_the_settings_of_nncf_where_it_was_not_changed() -> None:
    default = openvino_recipe()
    assert for_nncf(default) == nncf_recipe()
    changed = default.model_copy(update={"name": "mine", "exclude": ("blocks.3.*",), "calibration_tiles": 64})
    expected = {"name": "mine", "exclude": ("blocks.3.*",), "calibration_tiles": 64}
    assert for_nncf(changed) == nncf_recipe().model_copy(update=expected)
    own = Recipe(name="own", smooth_alphas=(0.7,), quantizer="nncf")
    assert for_nncf(own) == own
