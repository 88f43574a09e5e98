"""Bundles to the hub: what may not be given on is refused; what was sent is compared with what arrived. No network."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from atlas_edge.bundle import MANIFEST, read_manifest, sha256_file
from atlas_edge.cli import run_app
from atlas_edge.export.cli import app
from atlas_edge.export.sharing import doubts_about_sharing

huggingface_hub = pytest.importorskip("huggingface_hub")
TO = "hf-hub:lab/tiny"


class Hub:
    """One repository, and what was asked of it."""

    def __init__(self, files: dict[str, str] | None = None) -> None:
        self.files, self.asked = {".gitattributes": "", **(files or {})}, {}
        self.spoil = ""

    def create_repo(self, repository: str, **options: Any) -> None:
        self.asked |= {"repository": repository, **options}

    def list_repo_files(self, repository: str) -> list[str]:
        return list(self.files)

    def upload_folder(self, *, folder_path: Path, **options: Any) -> Any:
        self.asked |= options
        self.files = {path.relative_to(folder_path).as_posix(): sha256_file(path) for path in folder_path.rglob("*.*")}
        if self.spoil:
            self.files[self.spoil] = "0" * 64
        return SimpleNamespace(oid="abc123")

    def get_paths_info(self, repository: str, paths: list[str], *, revision: str) -> list[Any]:
        large = {path: SimpleNamespace(sha256=sha256) for path, sha256 in self.files.items() if path.endswith(".bin")}
        return [SimpleNamespace(path=path, lfs=large.get(path)) for path in paths if path in self.files]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: made)
    return made


def push(*words: object) -> int:
    return run_app(app, ["push", *map(str, words)])


def test_what_may_not_be_given_on_is_refused_and_says_why(
    bundle: Path, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    assert push(bundle, TO) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "its calibration set" in said and "states no licence" in said and "--rights" in said
    assert not hub.asked
    manifest = read_manifest(bundle)
    barred = manifest.model.model_copy(update={"licence": "cc-by-nc-nd-4.0"})
    named = {**manifest.config, "keep_paths": True}
    doubts = doubts_about_sharing(manifest.model_copy(update={"model": barred, "config": named}))
    assert ["bars what is made" in doubts[0], "no licence" in doubts[1], "patients" in doubts[2]] == [True] * 3
    synthetic = manifest.calibration.model_copy(update={"synthetic": True})
    assert doubts_about_sharing(manifest.model_copy(update={"calibration": synthetic})) == ()


def test_a_dry_run_sends_nothing(bundle: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(bundle, TO, "--rights", "our own slides", "--dry-run", "--json") == 0
    printed = capsys.readouterr()
    assert {file["path"] for file in json.loads(printed.out)["files"]} >= {"model.xml", "model.bin", "README.md"}
    assert "our own slides" in printed.err and not hub.asked
    for wrong in ("lab/tiny", "hf-hub:tiny", "hf-hub:lab/ti ny", "hf-hub:../x"):
        assert push(bundle, wrong, "--dry-run") == 2


def test_what_arrived_is_what_was_sent(bundle: Path, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert push(bundle, TO, "--rights", "our own slides") == 0
    assert hub.asked["private"] is True and hub.asked["commit_description"] == "Rights: our own slides"
    assert set(hub.files) == {file.path for file in read_manifest(bundle).files} | {MANIFEST}
    assert "abc123" in capsys.readouterr().out
    # A bundle is there now.
    assert push(bundle, TO, "--rights", "ours") == 2 and "--overwrite" in capsys.readouterr().err
    hub.spoil = "model.bin"
    assert push(bundle, TO, "--rights", "ours", "--overwrite") == 5
    assert "model.bin did not arrive as sent" in " ".join(capsys.readouterr().err.split())


def test_a_repository_of_something_else_and_a_hub_that_refuses_are_told(
    bundle: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.files["thesis.pdf"] = ""
    assert push(bundle, TO, "--rights", "ours", "--overwrite") == 2
    assert "something else than a bundle" in capsys.readouterr().err

    def refused(*_: object, **__: object) -> None:
        raise ConnectionError("401 Client Error\nUnauthorized")

    monkeypatch.setattr(hub, "create_repo", refused)
    assert push(bundle, TO, "--rights", "ours") == 5
    said = " ".join(capsys.readouterr().err.split())
    assert "401 Client Error" in said and "hf auth login" in said and "Unauthorized" not in said
