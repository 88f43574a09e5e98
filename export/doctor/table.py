"""The doctor's report on a terminal."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atlas_edge.export.doctor.checks import Diagnosis, Status

_STYLES = {Status.PASS: "green", Status.WARN: "yellow", Status.FAIL: "bold red"}


def print_diagnosis(diagnosis: Diagnosis) -> None:
    """Print checks with their fixes, what can be built and run, which variant to take, and the line for support."""
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
    advice = diagnosis.advice
    how = "" if advice.measured else " (a rule)"
    screen.print(f"variant for this machine: {advice.variant or 'none'}{how}: {advice.why}", soft_wrap=True)
    for upgrade in advice.upgrades:
        screen.print(f"better: {upgrade.change} -> {upgrade.brings}", soft_wrap=True)
    screen.print(f"for support: {advice.support}", soft_wrap=True)


def _yes(value: bool) -> Text:
    return Text("yes", "green") if value else Text("no", "yellow")
