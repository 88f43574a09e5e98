"""Exit codes and messages that all commands share."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from atlas_edge.cli import make_app, require_module, run_app
from atlas_edge.errors import AtlasError, ChecksumError, GateFailed, InputError, RuntimeMissing, UsageError
from support import ROOT, RunCommand, disk_full_after, heed_ctrl_c


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


def test_missing_module_names_the_extra() -> None:
    with pytest.raises(RuntimeMissing, match=r"pip install 'atlas-edge\[onnx\]'"):
        require_module("no_such_module", extra="onnx")


@pytest.mark.skipif(os.name == "nt", reason="Ctrl-C is sent another way on Windows")
def test_ctrl_c_is_held_until_the_block_is_done() -> None:
    # In a process of its own: a library that this one has loaded may have left no stack for signals.
    script = (
        "import signal; from atlas_edge.interrupts import held_interrupts\n"
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
