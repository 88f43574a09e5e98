"""Exit codes and messages that all commands share."""

import importlib
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import pytest
from annotated_types import Ge
from cyclopts import Parameter

from atlas_edge.cli import console, make_app, require_module, run_app
from atlas_edge.errors import AtlasError, ChecksumError, GateFailed, InputError, RuntimeMissing, UsageError
from atlas_edge.options import Options, Output
from support import ROOT, RunCommand, disk_full_after, heed_ctrl_c

if TYPE_CHECKING:
    import cyclopts


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (UsageError("two", hint="mend"), 2),
        (GateFailed("three", hint="mend"), 3),
        (RuntimeMissing("four", hint="mend"), 4),
        (InputError("five", hint="mend"), 5),
        (ChecksumError("five", hint="mend"), 5),
        (AtlasError("one", hint="mend"), 1),
        (OSError(28, "No space left on device", "out"), 5),
    ],
)
def test_error_becomes_exit_code(error: Exception, exit_code: int, capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("atlas-sample", "Sample.")

    @app.default
    def fail() -> None:
        raise error

    assert run_app(app, []) == exit_code
    printed = capsys.readouterr().err
    assert printed.startswith("atlas-sample: error: ")
    assert "fix: " in printed
    assert "Traceback" not in printed


def test_of_a_copy_both_files_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("atlas-sample", "Sample.")

    @app.default
    def fail() -> None:
        raise OSError(28, "No space left on device", "in/model.bin", None, "out/model.bin")

    assert run_app(app, []) == 5
    assert "No space left on device: in/model.bin -> out/model.bin\n" in capsys.readouterr().err


def test_bug_exits_1_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("atlas-sample", "Sample.")

    @app.default
    def fail() -> None:
        raise ZeroDivisionError("oops")

    assert run_app(app, []) == 1
    printed = capsys.readouterr().err
    assert "Traceback" in printed
    assert "bug in atlas-edge" in printed


def test_unknown_option_exits_2(capsys: pytest.CaptureFixture[str]) -> None:
    app = make_app("atlas-sample", "Sample.")

    @app.default
    def command(*, level: int = 1) -> None:
        print(level)

    assert run_app(app, ["--levle", "2"]) == 2
    assert run_app(app, ["--level", "two"]) == 2
    assert run_app(app, ["--level", "2"]) == 0
    assert capsys.readouterr().out == "2\n"


@pytest.mark.parametrize(
    ("table", "arguments"),
    [
        ("export", ["verify", "nowhere"]),
        ("export", ["rebuild", "nowhere"]),
        ("embed", ["watch", "nowhere", "--bundle", "nowhere", "--out", "out"]),
        ("embed", ["ray", "nowhere", "--bundle", "nowhere", "--out", "out"]),
    ],
)
def test_a_command_s_settings_leave_its_subcommands_alone(
    table: str,
    arguments: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    app = importlib.import_module(f"atlas_edge.{table}.cli").app
    monkeypatch.chdir(tmp_path)
    (tmp_path / "atlas.toml").write_text(f'[{table}]\ntarget = "openvino"\ntile-mpp = 0.5\ndry-run = true\n')
    run_app(app, arguments)
    assert "nowhere" in capsys.readouterr().err


def sample_app() -> "cyclopts.App":
    app = make_app("atlas-sample", "Sample.")

    @app.command
    def speed(*, level: int = 1) -> None:
        print(level)

    return app


def test_a_subcommand_has_a_table_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "atlas.toml").write_text("[sample.speed]\nlevel = 7\n")
    assert run_app(sample_app(), ["speed"]) == 0
    assert run_app(sample_app(), ["speed", "--level", "3"]) == 0
    assert capsys.readouterr().out == "7\n3\n"


def test_a_setting_that_no_command_reads_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "atlas.toml").write_text("[sample]\nlevel = 7\n")
    assert run_app(sample_app(), ["speed"]) == 2
    assert "[sample.speed]" in capsys.readouterr().err


@pytest.mark.parametrize("content", [b"[sample]\nlevel = \n", b"[sample]\nname = '\xff'\n"])
def test_settings_that_cannot_be_read_name_their_file(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "atlas.toml").write_bytes(content)
    assert run_app(sample_app(), ["speed"]) == 2
    assert "atlas.toml is no TOML: " in capsys.readouterr().err


def test_a_setting_that_a_subcommand_would_take_is_told_where_it_stands_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app = sample_app()

    @app.default
    def embed(*, level: int = 1, other: int = 0) -> None:
        print(level)

    monkeypatch.chdir(tmp_path)
    (tmp_path / "atlas.toml").write_text("[sample]\nlevel = 7\nother = 1\n")
    assert run_app(app, []) == 0 and not caplog.records
    assert run_app(app, ["speed"]) == 0
    assert caplog.messages == [
        "atlas.toml: level in [sample] is not for atlas-sample speed: put it into [sample.speed]"
    ]


@dataclass(frozen=True, kw_only=True)
class Sampled(Options):
    """What is sampled.

    Attributes:
        level: How high.
        limit_pp: How much of it.
    """

    level: Annotated[int, Ge(1)] = 1
    limit_pp: Annotated[float | None, Ge(0), Parameter(name="--limit")] = None
    deep: bool = True


def options_app() -> "cyclopts.App":
    app = make_app("atlas-sample", "Sample.")

    @app.default
    def sample(*, options: Sampled = Sampled(), output: Output = Output()) -> None:
        print(options.as_json(), output.json)

    return app


def test_the_options_of_a_dataclass_come_from_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "atlas.toml").write_text("[sample]\nlevel = 7\nlimit = 1\n")
    monkeypatch.setenv("ATLAS_SAMPLE_LIMIT", "2")
    assert run_app(options_app(), ["--no-deep", "--json"]) == 0
    assert capsys.readouterr().out == "{'level': 7, 'limit_pp': 2.0, 'deep': False} True\n"
    assert run_app(options_app(), ["--help"]) == 0
    assert "How much of it." in capsys.readouterr().out


@pytest.mark.parametrize("loaded", ["pydantic", "json"])
def test_an_option_out_of_its_range_is_named_as_it_was_given(loaded: str) -> None:
    script = (
        f"import {loaded}\n"
        "from core.test_core_cli import options_app\n"
        "from atlas_edge.cli import run_app\n"
        "raise SystemExit(run_app(options_app(), ['--limit', '-1']))\n"
    )
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests")))}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True, text=True)
    assert done.returncode == 2
    assert "error: --limit is -1.0: Input should be greater than or equal to 0\n  fix: " in done.stderr
    with pytest.raises(UsageError, match="--level is 0"):
        Sampled(level=0)
    with pytest.raises(UsageError, match="--limit is inf"):
        Sampled(limit_pp=float("inf"))


def test_brackets_in_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    from rich.table import Table

    from atlas_edge.export.steps import Steps

    screen, name = console(), "model[/bold] [red]1"
    steps = Steps(screen, 1)
    with steps.step("load", name), steps.progress(name, 1):
        steps.note(name)
        steps.warn(name)
    table = Table(title=name)
    table.add_column(name)
    table.add_row(name)
    screen.print(table)
    assert capsys.readouterr().err.count(name) == 6


@pytest.mark.skipif(os.name == "nt", reason="pipes end otherwise there")
@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_broken_pipe_is_quiet(lines: int) -> None:
    # A little text stays in the buffer until the end; much of it fails while it is printed.
    script = (
        "from atlas_edge.cli import console, make_app, run_app\n"
        "app = make_app('atlas-sample', 'Sample.')\n"
        f"app.default(lambda: print('text\\n' * {lines}))\n"
        "raise SystemExit(run_app(app, []))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run([sys.executable, "-c", script], env=environ, stdout=writing, stderr=subprocess.PIPE)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_a_console_of_another_encoding_is_no_error(encoding: str) -> None:
    script = (
        "from atlas_edge.cli import console, make_app, run_app\n"
        "app = make_app('atlas-sample', 'Sample → µm.')\n"
        "@app.default\n"
        "def run():\n"
        "    print('0.5 µm → ✓ ≥')\n"
        "    console().print('K\u00f6ln \u2713 \u2265')\n"
        "raise SystemExit(run_app(app, []) or run_app(app, ['--help']))\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", script], env=environ, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"0.5" in done.stdout
    assert b"K" in done.stderr


def test_missing_module_names_the_extra() -> None:
    with pytest.raises(RuntimeMissing, match=r"pip install 'atlas-edge\[onnx\]'"):
        require_module("no_such_module", extra="onnx")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way on Windows")
def test_ctrl_c_is_held_until_the_block_is_done() -> None:
    # In a process of its own: a library that this one has loaded may have left no stack for signals.
    script = (
        "import signal; from atlas_edge.system.interrupts import held_interrupts\n"
        "try:\n"
        "    with held_interrupts():\n"
        "        signal.raise_signal(signal.SIGINT); print('end')\n"
        "except KeyboardInterrupt:\n"
        "    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)\n"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environ, capture_output=True, text=True, check=True, preexec_fn=heed_ctrl_c
    )
    assert done.stdout.split() == ["end", "True"]


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way on Windows")
def test_interrupt_exits_130_and_leaves_nothing(tiny_model: Path, tmp_path: Path) -> None:
    command = [
        sys.executable, "-m", "atlas_edge.export", tiny_model, "--target", "onnx", "--precision", "fp32",
        "--tile-fit", "resize", "--out", tmp_path / "bundle",
    ]  # fmt: skip
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    child = subprocess.Popen(command, env=environ, stderr=subprocess.PIPE, text=True, preexec_fn=heed_ctrl_c)
    while child.poll() is None and not list(tmp_path.glob(".bundle.partial-*")):
        time.sleep(0.02)
    time.sleep(0.5)
    child.send_signal(signal.SIGINT)
    _, printed = child.communicate(timeout=60)
    assert child.returncode == 130, printed
    assert "Traceback" not in printed
    assert "error: interrupted" in printed
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="a limit on file sizes is POSIX")
def test_full_disk_is_a_clear_error(tiny_model: Path, tmp_path: Path, run_command: RunCommand) -> None:
    # Writing fails in the middle of the model.
    with disk_full_after(50_000):
        done = run_command(
            "atlas-export", tiny_model, "--target", "onnx", "--precision", "fp32", "--tile-fit", "resize",
            "--out", tmp_path / "bundle", "--no-speed",
        )  # fmt: skip
    assert done.returncode == 5, done.stderr
    assert "check free disk space" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["atlas-bench", "atlas-distill", "atlas-embed", "atlas-export", "atlas-quantize"])
def test_help_has_an_example(name: str, run_command: RunCommand) -> None:
    done = run_command(name, "--help")
    assert done.returncode == 0, done.stderr
    above = done.stdout.partition("╭")[0]
    assert f" {name} " in above.partition("Example")[2], above
