"""The container file, as far as it can be judged without a builder: its form, what it copies, who runs, its health."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import replace

import pytest

from atlas_edge.embed.watch.page.server import status_page
from atlas_edge.embed.watch.status import Live, Status
from embed.watch.test_watch_page import Hostile
from support import ROOT

TEXT = (ROOT / "docs" / "samples" / "Containerfile").read_text(encoding="utf-8")
KNOWN = {"ARG", "FROM", "WORKDIR", "COPY", "RUN", "ENV", "USER", "HEALTHCHECK", "ENTRYPOINT", "CMD"}


def instructions() -> list[tuple[str, str]]:
    """docs.docker.com/reference/dockerfile: an instruction a line, continued by a backslash; `#` begins a comment."""
    lines = "\n".join(line for line in TEXT.splitlines() if not line.startswith("#"))
    joined = re.sub(r"\\\n\s*", "", lines)
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in joined.splitlines() if line.strip()]


def last(name: str) -> str:
    return [words for instruction, words in instructions() if instruction == name][-1]


def test_its_form() -> None:
    assert {name for name, _ in instructions()} <= KNOWN
    stages = [words for name, words in instructions() if name == "FROM"]
    assert stages == ["${BASE} AS build", "${BASE}"]
    base = dict(words.split("=") for name, words in instructions() if name == "ARG")["BASE"]
    assert re.fullmatch(r"docker\.io/library/python:3\.\d+-slim-\w+", base), "a version, never whatever is the latest"
    for name in ("ENTRYPOINT", "CMD"):
        assert isinstance(json.loads(last(name)), list), "without a shell: SIGTERM has to reach the watcher"
    uid, gid = map(int, last("USER").split(":"))
    assert uid > 0 and gid > 0
    order = [name for name, _ in instructions()]
    assert "RUN" not in order[order.index("USER") :]


def test_it_copies_what_setup_py_needs_and_installs_no_torch() -> None:
    copied = [
        word
        for name, words in instructions()
        if name == "COPY" and "--from" not in words
        for word in words.split()[:-1]
    ]
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    stages = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "STAGES"
    )
    assert set(copied) == {"pyproject.toml", "setup.py", "README.md", "src", *stages}
    assert all((ROOT / name).exists() for name in copied)
    extras = re.search(r"'\.\[([\w,-]+)\]'", last("RUN"))
    assert extras is not None
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    required = [word for extra in extras[1].split(",") for word in project["optional-dependencies"][extra]]
    assert not any("torch" in word or "atlas-edge" in word for word in [*required, *project["dependencies"]])


def test_it_is_run_without_rights() -> None:
    for option in ("--read-only", "--tmpfs /tmp", "--cap-drop ALL", "no-new-privileges", "/scans:ro", "--network none"):
        assert option in TEXT


@pytest.mark.parametrize("well", [True, False])
def test_its_health_is_that_of_the_watcher(well: bool) -> None:
    class Watched(Hostile):
        def status(self) -> Status:
            return replace(super().status(), live=Live(waits_for={} if well else {"disk": 1.0}))

    words = last("HEALTHCHECK").partition("CMD ")[2]
    program, *arguments = json.loads(words)
    assert program == "python" and ":8777/healthz" in arguments[-1]
    with status_page(Watched(), 0) as address:
        arguments[-1] = arguments[-1].replace("http://127.0.0.1:8777/", address)
        done = subprocess.run([sys.executable, *arguments], capture_output=True)
    assert (done.returncode == 0) is well
