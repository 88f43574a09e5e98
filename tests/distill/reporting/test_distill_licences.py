import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from tiny_runs import tiny_config

from atlas_edge.distill.closed_form.fit import fit_student
from atlas_edge.distill.training.run import distill
from atlas_edge.models.published.licences import strictest_licence


@pytest.mark.parametrize(
    ("licences", "strictest"),
    [
        (["apache-2.0", "CC-BY-NC-ND-4.0"], "cc-by-nc-nd-4.0"),
        (["cc-by-nc-nd-4.0", "Apache-2.0"], "cc-by-nc-nd-4.0"),
        (["MIT", "mit"], "mit"),
        (["cc0-1.0", "mit", "apache-2.0"], "apache-2.0"),
        (["cc-by-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0"], "cc-by-nc-sa-4.0"),
        (["virchow-licence", "cc0-1.0"], "virchow-licence"),
        (["virchow-licence", "mit"], "other"),
        (["cc-by-nc-4.0", "cc-by-nd-4.0"], "other"),
        (["cc-by-4.0", "cc-by-3.0"], "other"),
        (["mit", None], "other"),
        (["CC BY 4.0", "Apache 2.0"], "cc-by-4.0"),
        (["cc0-1.0", "the repository names no licence, treat as not cleared"], "other"),
        ([], "other"),
    ],
)
def test_the_strictest_licence_is_the_one_that_asks_for_all(licences: list[str | None], strictest: str) -> None:
    assert strictest_licence(licences) == strictest


def test_a_student_carries_the_strictest_licence_of_teachers_start_and_tiles(
    tiny_model: Path, tile_folder: Path, tiny_student: Path, tmp_path: Path
) -> None:
    tiles = tmp_path / "tiles"
    shutil.copytree(tile_folder, tiles)
    licences = {"first": "apache-2.0", "second": "mit", "start": "cc0-1.0"}

    def student_of(**changed: str) -> tuple[str, str, list[str]]:
        for name, licence in (licences | changed).items():
            if name == "tiles":
                (tiles / "README.md").write_text(f"---\nlicense: {licence}\n---\n")
                continue
            shutil.copytree(tiny_student if name == "start" else tiny_model, tmp_path / name, dirs_exist_ok=True)
            path = tmp_path / name / "config.json"
            config = json.loads(path.read_text())
            config["pretrained_cfg"]["license"] = licence
            path.write_text(json.dumps(config))
        config = tiny_config(
            tmp_path / "first", tiles, tmp_path / "start", tmp_path / "out", steps=1, fit_heads=False, patch_weight=0
        )
        report = distill(replace(config, teachers=(str(tmp_path / "first"), str(tmp_path / "second"))), overwrite=True)
        written = json.loads((tmp_path / "out/config.json").read_text())["pretrained_cfg"]["license"]
        card = ModelCard((tmp_path / "out/README.md").read_text(encoding="utf-8"))
        return written, str(card.data.license), list(report.warnings)

    assert student_of() == ("apache-2.0", "apache-2.0", [])
    for name in ("second", "start"):
        written, card, warnings = student_of(**{name: "cc-by-nc-nd-4.0"})
        assert written == card == "cc-by-nc-nd-4.0"
        assert any(name in text for text in warnings)
    assert student_of(tiles="cc-by-nc-4.0")[:2] == ("cc-by-nc-4.0", "cc-by-nc-4.0")
    fit_student(tiny_config(tmp_path / "second", tiles, tmp_path / "start", tmp_path / "fitted", init="teacher"))
    # The first weights of a fit are its teacher's.
    assert json.loads((tmp_path / "fitted/config.json").read_text())["pretrained_cfg"]["license"] == "cc-by-nc-4.0"
