"""Tables as one page of HTML, without jinja2: a workstation's install has no more than Python."""

from collections.abc import Sequence
from html import escape

from atlas_edge.bench.report.rows import Rows

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
  body {{ font: 15px/1.45 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
    overflow-wrap: anywhere; }}
  table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .87rem; }}
  th, td {{ text-align: left; padding: .28rem .8rem .28rem 0; border-bottom: 1px solid #d8d8dc; vertical-align: top; }}
  .note {{ color: #56565c; font-size: .87rem; }}
  .PASS {{ color: #00795a; font-weight: 700; }} .FAIL {{ color: #b83b00; font-weight: 700; }}
  .WARN {{ color: #8a6100; font-weight: 700; }}
</style>
</head>
<body>
<h1>{title}</h1>
{lines}
{tables}
</body>
</html>
"""
_MARKED = ("PASS", "FAIL", "WARN")


def tables_html(title: str, lines: Sequence[str], tables: Sequence[Rows]) -> str:
    """A page that needs nothing else, and may ask for nothing.

    Args:
        title: Of the page.
        lines: Paragraphs before the tables.
        tables: One below the other.
    """
    paragraphs = "\n".join(f"<p>{escape(line)}</p>" for line in lines)
    return _PAGE.format(title=escape(title), lines=paragraphs, tables="\n".join(map(_table, tables)))


def _table(rows: Rows) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in rows.headings)
    body = "\n".join(f"<tr>{''.join(map(_cell, cells))}</tr>" for cells in rows.rows)
    notes = "\n".join(f'<p class="note">{escape(note)}</p>' for note in rows.notes)
    table = f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
    return f"<h2>{escape(rows.title)}</h2>\n{table}\n{notes}"


def _cell(text: str) -> str:
    kind = f' class="{text}"' if text in _MARKED else ""
    return f"<td{kind}>{escape(text)}</td>"
