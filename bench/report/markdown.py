"""`report.md`: every table of a report, for a pull request or a run's page."""

from atlas_edge.bench.report.rows import Rows, accuracy_rows, gate_rows
from atlas_edge.bench.report.schema import Report
from atlas_edge.bench.report.speed_rows import speed_rows


def report_markdown(report: Report) -> str:
    """The report as GitHub-flavoured Markdown."""
    lines = [f"# {report_title(report)}", "", report_subtitle(report), ""]
    lines += [line for warning in report_warnings(report) for line in (f"> **{warning}**", "")]
    for rows in report_tables(report):
        lines += table_markdown(rows)
    accuracy = report.accuracy
    if accuracy is not None and accuracy.candidates:
        lines += ["## Worst tiles", ""]
        for name, found in accuracy.candidates.items():
            if found.agreement is not None:
                pairs = zip(found.worst_tiles, found.agreement.worst_cosines, strict=True)
                lines.append(f"- {name}: " + ", ".join(f"`{tile}` {cosine:.4f}" for tile, cosine in pairs))
        lines.append("")
    if accuracy is not None:
        lines += [f"- {note}" for note in accuracy.notes]
        lines.append(f"- Encoding took {accuracy.encoding_s:.0f} s, everything else {accuracy.statistics_s:.0f} s.")
    return "\n".join(lines).rstrip() + "\n"


def report_title(report: Report) -> str:
    """What was measured, of what."""
    candidates = [name for name, facts in report.encoders.items() if not facts.is_reference] or list(report.encoders)
    references = [name for name, facts in report.encoders.items() if facts.is_reference]
    what = "Accuracy drop" if report.accuracy is not None and report.accuracy.candidates else "Accuracy"
    if report.accuracy is None:
        what = "Speed"
    against = f" against {references[0]}" if references else ""
    return f"{what} of {', '.join(candidates)}{against}"


def report_subtitle(report: Report) -> str:
    """When, where and on which tiles."""
    machine = report.machine
    gpus = f", {', '.join(machine.gpus)}" if machine.gpus else ""
    text = f"{report.created_utc} on {machine.cpu} ({machine.logical_cores} cores{gpus}), {machine.system}."
    for tiles, purpose in ((report.evaluation, "Compared on"), (report.fit, "Probes fitted on")):
        if tiles is not None:
            split = f" ({tiles.split})" if tiles.split else ""
            text += f" {purpose} {tiles.tiles} tiles of {tiles.name}{split}."
    return text


def report_warnings(report: Report) -> list[str]:
    """What must not be overlooked."""
    found = [
        f"{name} has RANDOM weights: its figures show that the tool works, nothing about tissue"
        for name, facts in report.encoders.items()
        if facts.spec.random_weights
    ]
    if report.evaluation is not None and report.evaluation.synthetic:
        found.append("SYNTHETIC tiles: these figures say nothing about tissue")
    return found


def report_tables(report: Report) -> list[Rows]:
    """Every table, the gate first and last what was measured, down to the bytes."""
    return [*gate_rows(report), *accuracy_rows(report), *speed_rows(report), _encoders(report)]


def table_markdown(rows: Rows) -> list[str]:
    """One table with its title and notes, line by line."""
    lines = [f"## {rows.title}", ""]
    lines.append("| " + " | ".join(_cell(heading) for heading in rows.headings) + " |")
    lines.append("|" + "---|" * len(rows.headings))
    lines += ["| " + " | ".join(_cell(cell) for cell in cells) + " |" for cells in rows.rows]
    lines.append("")
    for note in rows.notes:
        lines += [note, ""]
    return lines


def _encoders(report: Report) -> Rows:
    headings = ("encoder", "runtime", "precision", "model files", "SHA-256 of its manifest or weights")
    rows = tuple(
        (
            name,
            facts.runtime,
            facts.precision,
            "" if facts.size_bytes is None else f"{facts.size_bytes / 1e6:.1f} MB",
            facts.sha256 or "",
        )
        for name, facts in report.encoders.items()
    )
    notes = ("A bundle's manifest holds the SHA-256 of each of its files; all were checked when it was opened.",)
    return Rows(title="What was measured", headings=headings, rows=rows, notes=notes)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
