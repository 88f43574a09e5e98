"""Where the packages lie: the four stages are folders of the root, with or without links to them below `src`."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
PACKAGE = "atlas_edge"
STAGES = ("bench", "distill", "export", "quantize")

for stage in STAGES:
    if not (ROOT / stage / "cli.py").is_file():
        raise SystemExit(f"{ROOT / stage} is missing: this copy of the sources is not whole")

linked = tuple(f"{PACKAGE}.{stage}" for stage in STAGES)
setup(
    package_dir={"": "src", **{f"{PACKAGE}.{stage}": stage for stage in STAGES}},
    packages=[
        *(name for name in find_packages("src") if not name.startswith(linked)),
        *linked,
        *(f"{PACKAGE}.{stage}.{room}" for stage in STAGES for room in find_packages(stage)),
    ],
)
