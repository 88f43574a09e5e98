"""`atlas-embed service`, registered by `embed.cli`."""

import re
import sys
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from atlas_edge.cli import CONFIG, print_json
from atlas_edge.errors import UsageError
from atlas_edge.options import Flag, Output
from atlas_edge.system.paths import printable

System = Literal["systemd", "windows"]


def service(
    *,
    settings: Annotated[Path, Parameter(name=CONFIG)],
    out: Path,
    system: System | None = None,
    user: str | None = None,
    name: str = "atlas-embed",
    overwrite: Flag = False,
    output: Output = Output(),
) -> None:
    """Write what a service manager is given to run `atlas-embed watch --config FILE` from the start of the machine on.

    Nothing is installed: the steps are printed. Example:

        atlas-embed service --config /etc/atlas-embed.toml --user scanner --out .

    Args:
        settings: TOML file with the options of `atlas-embed watch`; its paths are whole ones.
        out: Folder for the file: NAME.service for systemd, NAME.ps1 for Windows.
        system: What starts it; that of this machine when left out.
        user: Whom it runs as (systemd); you when left out.
        name: Of the service.
        overwrite: Replace a file that is there.
        output: What is printed.
    """
    screen = output.screen()
    from atlas_edge.embed.service.plan import plan_of
    from atlas_edge.embed.service.systemd import unit
    from atlas_edge.embed.service.windows import script
    from atlas_edge.system.atomic import write_atomic

    if re.fullmatch(r"[A-Za-z0-9_.-]+", name) is None:
        raise UsageError(
            f"--name {name}: expected letters, digits, dots and dashes", hint="leave it out for atlas-embed"
        )
    system = system or ("windows" if sys.platform == "win32" else "systemd")
    if system == "windows" and user is not None:
        raise UsageError("--user is for systemd", hint="give the script -Credential where it runs")
    plan = plan_of(settings, name=name, windows=system == "windows")
    file = unit(plan, user) if system == "systemd" else script(plan)
    path = out / file.name
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", hint="add --overwrite to replace it, or choose another --out")
    out.mkdir(parents=True, exist_ok=True)
    write_atomic(path, file.data)
    steps = [step.replace(file.name, file.quoted(path.absolute()), 1) for step in file.steps]
    screen.print(f"wrote {printable(path)}; then, as administrator:", markup=False, soft_wrap=True)
    for step in steps:
        screen.print(f"  {step}", markup=False, soft_wrap=True)
    if output.json:
        print_json({"file": printable(path), "steps": steps})
