"""Every command that the pages show is one that the programs take; every link leads somewhere."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from pages import COMMANDS, misfit, own_words, pages, shell_lines, spans
from support import ROOT

PAGES = pages()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_commands_of_a_page_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for line in shell_lines(text, "sh", "bat"):
        words = own_words(line)
        if words:
            # A page leaves out with … what it has shown before.
            assert misfit(words, whole="…" not in line) is None, f"{line}: {misfit(words)}"
    for span in spans(text):
        words = [word.strip("[]") for word in own_words(span.replace("'", ""))]
        if words:
            assert misfit(words, whole=False) is None, f"{span}: {misfit(words, whole=False)}"


def test_a_command_that_does_not_exist_is_found() -> None:
    assert misfit(["atlas-export", "MODEL", "--targe", "openvino"]) is not None
    assert misfit(["atlas-export", "MODEL", "--target", "openvin"]) is not None
    assert misfit(["atlas-bench", "accurate", "BUNDLE", "--eval", "TILES"]) is not None
    assert misfit(["atlas-bench", "accuracy", "--evla", "TILES", "…"], whole=False) is not None
    assert misfit(["atlas-bench", "accuracy", "BUNDLE", "--eval", "TILES"]) is None
    assert misfit(["atlas-bench", "accuracy"], whole=False) is None


def test_pages_begin_with_the_command() -> None:
    for name in ("export", "quantization", "distillation", "bench", "slides", "tensorrt", "encoders", "workstation"):
        text = (ROOT / "docs" / f"{name}.md").read_text(encoding="utf-8")
        first = re.match(r"# .+\n\n```sh\n(.+)", text)
        assert first is not None and first[1].startswith((*COMMANDS, "pip install './")), name
        sections = re.findall(r"^## (\w+(?: \w+)*)", text, re.MULTILINE)
        assert sections[0] == "What it does" and sections.count("Measured") == 1, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_of_a_page(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        if target.startswith("https://"):
            continue
        file = page.parent / target if target else page
        assert file.exists(), target
        if anchor:
            assert anchor in anchors(file), f"{target}#{anchor}"


def test_every_installation_says_from_what() -> None:
    extras = re.findall(r"^(\S+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    for page in PAGES:
        for line in re.findall(r"pip install [^`\n]*", page.read_text(encoding="utf-8")):
            named = re.search(r"\[([a-z,-]+)\]", line)
            assert named is None or set(named[1].split(",")) <= set(extras), line
            if "atlas-edge" in line:
                # What is installed already may be added to; then the page says so beside it.
                assert "installed already" in page.read_text(encoding="utf-8").partition(line)[0][-200:], line


def test_hints_add_to_what_is_installed() -> None:
    """`pip install 'atlas-edge[onnx]'`, as errors put it, asks no index for atlas-edge itself."""
    pytest.importorskip("onnxruntime")
    try:
        metadata.distribution("atlas-edge")
    except metadata.PackageNotFoundError:
        pytest.skip("atlas-edge is not installed, only imported from its folder")
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--no-index", "--disable-pip-version-check"]
    done = subprocess.run([*command, "atlas-edge[onnx]"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Would install" not in done.stdout


def test_the_map_is_of_this_country() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rooms = re.findall(r"^\| `(\S+/)` \| .* \| (.*) \|$", text, re.MULTILINE)
    assert len(rooms) > 8
    for folder, starts in rooms:
        assert (ROOT / folder).is_dir(), folder
        for start in re.findall(r"`(.+?)`", starts):
            assert (ROOT / folder / start).is_file(), f"{folder}{start}"
    for path in re.findall(r"`?((?:src|bench|distill|quantize|export|tests|docs)/[\w/.]*)", text):
        assert (ROOT / path).exists(), path


def test_pictures_are_small_and_shown() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    pictures = sorted((ROOT / "docs/pictures").iterdir())
    assert len(pictures) > 3
    for picture in pictures:
        assert picture.stat().st_size < 150_000 and f"pictures/{picture.name})" in shown, picture.name


def anchors(page: Path) -> set[str]:
    """As GitHub and the site make them from headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
