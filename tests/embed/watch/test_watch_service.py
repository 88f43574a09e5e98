"""Files for service managers: read back by systemd itself where it is, and by the rules of PowerShell."""

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from atlas_edge.cli import run_app
from atlas_edge.embed.cli import app
from atlas_edge.embed.service.plan import ServicePlan
from atlas_edge.embed.service.systemd import unit
from atlas_edge.embed.service.windows import script
from atlas_edge.errors import UsageError

ODD = """it's 100% "odd" $HOME \\x41 ünï"""


def plan_at(folder: Path, **changes: object) -> ServicePlan:
    """One whose every path is odd."""
    folder.mkdir()
    program = folder / "python"
    program.symlink_to("/bin/true")
    given = {
        "name": "atlas-embed",
        "arguments": [str(program), "-P", "watch", "--config", f"/etc/{ODD}.toml"],
        "reads": ["/scans"], "writes": [f"/{ODD}/out", "/two words/state"], "talks": False,
    }  # fmt: skip
    return ServicePlan(**{**given, **changes})  # type: ignore[arg-type]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed here")
@pytest.mark.parametrize("talks", [False, True])
def test_systemd_reads_back_what_was_meant(tmp_path: Path, talks: bool) -> None:
    plan = plan_at(tmp_path / "100% $HOME ünï", talks=talks)
    file = unit(plan, "scanner")
    path = tmp_path / file.name
    path.write_bytes(file.data)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", path],
        capture_output=True, text=True, env={**os.environ, "SYSTEMD_LOG_LEVEL": "debug", "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # `FILE:LINE: Unknown key ...` and the like.
    assert f"{path}:" not in done.stderr
    dump = done.stdout[done.stdout.index(f"-> Unit {file.name}:") :]
    assert f"\t\tReadWritePaths: {' '.join(plan.writes)}\n" in dump
    command = re.search(r"Command Line: (.+)", dump)
    assert command is not None
    # As it is executed: `$$` stands for a dollar sign in every word but the first.
    program, *words = shlex.split(command[1].replace("\\$", "$"))
    assert [program, *(word.replace("$$", "$") for word in words)] == plan.arguments
    assert ("IPAddressDeny: 0.0.0.0/0" in dump) is not talks


def test_a_unit_may_write_to_its_own_folders_only(tmp_path: Path) -> None:
    text = unit(plan_at(tmp_path / "plain"), "scanner").data.decode()
    for line in (
        "ProtectSystem=strict",
        "NoNewPrivileges=yes",
        "Restart=on-failure",
        "User=scanner",
        "CapabilityBoundingSet=",
    ):
        assert f"\n{line}\n" in text
    assert '"/two words/state"\n' in text
    with pytest.raises(UsageError, match="starts no program by the name"):
        unit(plan_at(tmp_path / "it's"), "scanner")
    assert "Watchdog" not in text, "nobody tells systemd that the watcher is alive"


def powershell_literals(text: str) -> list[str]:
    """What PowerShell makes of the literals of a script: a quote of any kind that is doubled is one."""
    found = re.findall(r"'((?:[^'‘’‚‛]|['‘’‚‛]{2})*)'", text)
    return [re.sub("(['‘’‚‛])['‘’‚‛]", r"\1", literal) for literal in found]


def test_a_script_for_windows_says_what_was_meant(tmp_path: Path) -> None:
    writes = [r"D:\lab’s $out\100%", r"E:\it's `state`"]
    arguments = [r"C:\Program Files\atlas\python.exe", "-m", "atlas_edge.embed", "watch", "--config", r"C:\a b\w'.toml"]
    plan = plan_at(tmp_path / "x", writes=writes, arguments=arguments)
    file = script(plan)
    assert file.data.startswith(b"\xef\xbb\xbf") and file.data.count(b"\n") == file.data.count(b"\r\n")
    text = file.data.decode("utf-8-sig")
    literals = powershell_literals(text)
    assert set(writes) <= set(literals) and arguments[0] in literals
    assert r'-m atlas_edge.embed watch --config "C:\a b\w' + "'.toml\"" in literals
    assert text.count("{") == text.count("}") and text.count("(") == text.count(")")
    for named in ("-AtStartup", "-RepetitionInterval", "IgnoreNew", "LOCAL SERVICE", "-Credential"):
        assert named in text


def test_by_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATLAS_EMBED_OUT", "/of/this/shell/only")
    file, out = tmp_path / "watch.toml", tmp_path / "unit"
    lines = [
        f"folder = '{tmp_path}/scans'",
        "bundle = 'atlas2-demo'",
        f"out = '{tmp_path}/out'",
        f"cache = '{tmp_path}/c'",
    ]
    file.write_text("\n".join(lines))
    typed = ["service", "--config", str(file), "--out", str(out)]
    scanner = ["--system", "systemd", "--user", "scanner"]
    assert run_app(app, [*typed, *scanner, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(out / "atlas-embed.service")
    assert f"cp {out}/atlas-embed.service /etc/systemd/system/" in said["steps"]
    text = (out / "atlas-embed.service").read_text()
    assert f'ReadWritePaths="{tmp_path}/out" "{tmp_path}/c"' in text
    assert f'-m" "atlas_edge.embed" "watch" "--config" "{file}"' in text
    assert run_app(app, [*typed, *scanner]) == 2
    assert "add --overwrite" in capsys.readouterr().err
    for change, told in (
        (["--system", "systemd", "--user", "a b"], "is no name of a user"),
        (["--system", "systemd", "--user", "root"], "would run as root"),
        (["--name", "a/b"], "--name a/b: expected letters"),
        (["--system", "windows"], "is no whole path"),
        (["--system", "windows", "--user", "me"], "--user is for systemd"),
    ):
        assert run_app(app, [*typed, "--overwrite", *change]) == 2
        assert told in capsys.readouterr().err
    for line, told in (("ouut = '/x'", "write out"), ("state = 'here'", "is no whole path")):
        file.write_text("\n".join([*lines, line]))
        assert run_app(app, [*typed, "--overwrite", *scanner]) == 2
        assert told in capsys.readouterr().err
    file.write_text("folder = 'C:/scans'\nbundle = 'atlas2-demo'\nout = '//server/share/out'")
    assert run_app(app, [*typed, "--system", "windows", "--name", "second"]) == 0
    assert "second.ps1" in capsys.readouterr().err and (out / "second.ps1").exists()
