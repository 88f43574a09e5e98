"""From each claim to what it rests on: budget, test, figure, report and its hash, as a table in docs/.

    python tools/traceability.py docs/bench.md

The claims are in `parts/claims.toml`. What is named there and is not in the repository is refused.
"""

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from atlas_edge.bundle import sha256_file
from atlas_edge.cli import make_app, run_app
from atlas_edge.errors import InputError
from atlas_edge.system.atomic import write_atomic
from parts.marked import around

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- traceability: begin -->", "<!-- traceability: end -->"
_CLAIMS, _BUDGETS = "tools/parts/claims.toml", ".ci/budgets.toml"
_HEAD = "| claim | budget | test | figure, or what the page says | report, SHA-256 |\n|---|---|---|---|---|"
_HASH_SHOWN = 16

app = make_app("traceability", __doc__ or "")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Budget(_Model):
    """A limit that CI holds: its key in the budgets' file, dots between, and its value."""

    key: str
    value: float


class Figure(_Model):
    """Where a figure stands: the page, and words of it."""

    page: str
    words: str


class Claim(_Model):
    """One claim, and what it rests on."""

    says: str
    budget: Budget | str
    test: str
    figure: Figure
    report: str | None = None


@app.default
def traceability(document: Path, /) -> None:
    """Write the table.

    Args:
        document: Markdown file with the two marks.
    """
    before, after = around(document, BEGIN, END)
    lines = "\n".join(table(read_claims()))
    write_atomic(document, f"{before}{BEGIN}\n{lines}\n{END}{after}".encode())


def read_claims() -> list[Claim]:
    """All claims, in their order."""
    data = tomllib.loads((ROOT / _CLAIMS).read_text(encoding="utf-8"))
    return [Claim.model_validate(claim) for claim in data["claim"]]


def table(claims: list[Claim]) -> list[str]:
    """The table as lines of Markdown.

    Raises:
        InputError: A budget, test, figure or report is not what a claim says.
    """
    return [_HEAD, *map(_row, claims)]


def _row(claim: Claim) -> str:
    file, _, function = claim.test.partition("::")
    _look_up(file, rf"^(?:async )?def {re.escape(function)}\(", claim)
    _look_up(claim.figure.page, re.escape(claim.figure.words), claim)
    report = ""
    if claim.report is not None:
        if not (ROOT / claim.report).is_file():
            raise InputError(f"{claim.says}: {claim.report} is not there", hint=f"mend {_CLAIMS}")
        report = f"`{claim.report}` `{sha256_file(ROOT / claim.report)[:_HASH_SHOWN]}…`"
    figure = f"{claim.figure.words} (`{claim.figure.page}`)"
    return f"| {claim.says} | {_budget(claim)} | `{claim.test}` | {figure} | {report} |"


def _budget(claim: Claim) -> str:
    if isinstance(claim.budget, str):
        return claim.budget
    found: Any = tomllib.loads((ROOT / _BUDGETS).read_text(encoding="utf-8"))
    for part in claim.budget.key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    if found != claim.budget.value:
        raise InputError(
            f"{claim.says}: {_BUDGETS} has {claim.budget.key} = {found}, the claim says {claim.budget.value}",
            hint=f"mend {_CLAIMS}",
        )
    return f"`{claim.budget.key.rpartition('.')[2]}` {claim.budget.value:g}"


def _look_up(name: str, pattern: str, claim: Claim) -> None:
    path = ROOT / name
    # What the table itself says is no evidence.
    text = re.sub(f"{BEGIN}.*?{END}", "", path.read_text(encoding="utf-8"), flags=re.DOTALL) if path.is_file() else ""
    if re.search(pattern, text, re.MULTILINE) is None:
        raise InputError(f"{claim.says}: {name} has no {pattern!r}", hint=f"mend {_CLAIMS}")


if __name__ == "__main__":
    sys.exit(run_app(app))
