"""The doctor's report on a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_edge.export.doctor.checks import Diagnosis, Status

_STYLES = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print checks with their fixes, then what can be built and run."""
    screen = Console(highlight=False, markup=False)
    for check in diagnosis.checks:
        status = (check.status.value, _STYLES[check.status])
        screen.print(Text.assemble(status, f" {check.name}: {check.found}"), soft_wrap=True)
        if check.fix:
            screen.print(f"     fix: {check.fix}", soft_wrap=True)
    table = Table("target", "build here", "run here", "")
    for ability in diagnosis.abilities:
        table.add_row(ability.target, _yes(ability.build), _yes(ability.run), ability.note)
    screen.print(table)


def _yes(value: bool) -> Text:
    return Text("yes", "green") if value else Text("no", "yellow")
