"""The workflow and the CI script name only what exists."""

import re
import subprocess
import tomllib

import pytest

from pages import misfit, own_words
from support import ROOT, RunCommand

WORKFLOW = (ROOT / ".github/workflows/accuracy.yml").read_text(encoding="utf-8")


def test_scripts_are_sound_and_budgets_readable() -> None:
    from atlas_edge.bench.judge.budgets import read_budgets

    for name in ("accuracy", "run"):
        subprocess.run(["bash", "-n", ROOT / ".ci" / name], check=True)
        assert (ROOT / ".ci" / name).stat().st_mode & 0o111
    for name in ("budgets", "budgets-bf16"):
        assert not read_budgets(ROOT / f".ci/{name}.toml").empty


def test_options_of_the_script_exist(run_command: RunCommand) -> None:
    script = (ROOT / ".ci/accuracy").read_text() + (ROOT / ".ci/run").read_text() + WORKFLOW
    helps = [run_command("atlas-export", "--help"), run_command("atlas-bench", "accuracy", "--help")]
    known = "".join(done.stdout for done in helps)
    options = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", script)) - {"--no-speed"}
    assert {"--budgets", "--report", "--target"} <= options
    assert not {option for option in options if option not in known}


def test_the_workflow_runs_the_script_and_keeps_its_report() -> None:
    yaml = pytest.importorskip("yaml")
    job = yaml.safe_load(WORKFLOW)["jobs"]["accuracy"]
    runs = [step["run"] for step in job["steps"] if "run" in step]
    assert any(run.startswith(".ci/accuracy ") and " reports/accuracy" in run for run in runs)
    upload = job["steps"][-1]
    assert upload["uses"].startswith("actions/upload-artifact@") and upload["with"]["path"] == "reports/accuracy"


def test_the_lowest_versions_are_tested_on_folders_that_exist() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github/workflows/lowest.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    install, tests = (step["run"] for step in workflow["jobs"]["lowest"]["steps"] if "run" in step)
    folders = re.findall(r"tests/\w+", tests)
    assert len(folders) > 2 and all((ROOT / folder).is_dir() for folder in folders)
    # Of development tools the bounds are those of pyproject.toml.
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert set(re.findall(r"'([a-z-]+>=[\d.]+)'", install)) <= set(extras["dev"])
    assert set(re.search(r"\[([a-z,]+)\]", install)[1].split(",")) <= set(extras)  # type: ignore[index]
    # `on` is a word for true in YAML.
    watched = {path.removesuffix("/**") for path in workflow[True]["pull_request"]["paths"]}
    assert all((ROOT / path).exists() for path in watched)


def test_windows_and_macos_run_what_exists() -> None:
    yaml = pytest.importorskip("yaml")
    text = (ROOT / ".github/workflows/machines.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras, ran = project["optional-dependencies"], dict[str, list[str]]()
    for name, job in workflow["jobs"].items():
        windows = job["runs-on"].startswith("windows")
        steps = [step for step in job["steps"] if "run" in step]
        lines = [line.strip() for step in steps for line in step["run"].splitlines()]
        # GitHub's own choice is bash on macOS; the slashes and quotes of the lines are those of their shell.
        shells = {step.get("shell", job.get("defaults", {}).get("run", {}).get("shell")) for step in steps}
        assert shells == ({"pwsh", "powershell"} if windows else {None})
        begins = (
            ("git ", "python ", r".venv\Scripts" "\\", r".\kit" "\\", '& "$env:', "$PSNative")
            if windows
            else ("python ", ".venv/bin/")
        )
        assert all(line.startswith(begins) for line in lines)
        several = [step["run"] for step in steps if step["run"].count("\n") > 1]
        assert not windows or all(
            run.startswith("$PSNativeCommandUseErrorActionPreference = $true\n") for run in several
        )
        install = next(line for line in lines if " -e " in line)
        assert set(re.search(r"\[([a-z,-]+)\]", install)[1].split(",")) <= set(extras)  # type: ignore[index]
        assert set(re.findall(r'"([a-z-]+>=[\d.]+)"', install)) <= set(extras["dev"])
        folders = re.findall(r"tests/\w+", " ".join(lines))
        assert len(folders) > 5 and all((ROOT / folder).is_dir() for folder in folders)
        ran[name] = [re.sub(r'^(& )?("[^"]*\\|\S*[/\\])(atlas-[a-z]+|python)(\.exe)?"?', r"\3", line) for line in lines]
    for line in (line for lines in ran.values() for line in lines):
        words = own_words(line)
        assert not words or misfit(words) is None, f"{line}: {misfit(words)}"
    own = {tuple(own_words(line)[:2]) for line in ran["windows"] if own_words(line)}
    assert {("atlas-export", "kit"), ("atlas-bench", "selftest"), ("tools/gpu_check.py", "--device")} <= own
    # What the script is given is a parameter that it has.
    script = (ROOT / "export/kit_files/install.ps1").read_text(encoding="utf-8")
    given = set(re.findall(r"install\.ps1 -(\w+)", text))
    assert given == set(re.findall(r"param\(\[string\]\$\$(\w+)", script)) == {"To"}
    watched = {path.removesuffix("/**") for path in workflow[True]["pull_request"]["paths"]}
    assert all((ROOT / path).exists() for path in watched)
