"""Commands that the pages show, and the command lines that they must fit."""

import re
import shlex
from importlib import import_module
from pathlib import Path

from support import ROOT

COMMANDS = ("atlas-bench", "atlas-distill", "atlas-embed", "atlas-export", "atlas-quantize")


def pages() -> list[Path]:
    """Every page that a user reads."""
    return [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def shell_lines(text: str, *kinds: str) -> list[str]:
    """Command lines of a page's code blocks, continued lines joined, without comments and prompts.

    Args:
        text: Markdown.
        kinds: Of fenced blocks, such as `sh`; blocks that are only indented count always.
    """
    blocks = [
        block for kind, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.DOTALL | re.MULTILINE) if kind in kinds
    ]
    blocks += re.findall(r"(?:^    (?:atlas-|python tools/).*\n(?:^    .*\n)*)", text, re.MULTILINE)
    joined = re.sub(r"\\\n\s*", " ", "\n".join(blocks))
    lines = (re.sub(r"\s+# .*", "", line).strip() for line in joined.splitlines())
    return [line for line in lines if line]


def spans(text: str) -> list[str]:
    """Commands that stand in running text, between backticks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    found = (" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text))
    return [span for span in found if span.startswith(("python tools/", *COMMANDS))]


def own_words(line: str) -> list[str]:
    """The words of one of our commands, also where a launcher starts it; empty for any other command."""
    line = re.sub(r"^accelerate launch .*-m atlas_edge\.", "atlas-", line)
    line = re.sub(r"^python (tools/\w+\.py)", r"\1", line)
    line = re.sub(r"^\.venv\\Scripts\\", "", line)
    words = shlex.split(line)
    return words if words and (words[0] in COMMANDS or words[0].startswith("tools/")) else []


def misfit(words: list[str], *, whole: bool = True) -> str | None:
    """Why a command line is none that the real command takes; None where it is one. Nothing is run.

    Args:
        words: The command and its arguments.
        whole: Bind every argument, required ones, too; otherwise look for unknown subcommands and options only.
    """
    import cyclopts

    if "--config" in words:
        # A file of the reader's own says the rest.
        where = words.index("--config")
        words, whole = [*words[:where], *words[where + 2 :]], False
    # Tests find the modules of tools by their names.
    tool = re.fullmatch(r"tools/(\w+)\.py", words[0])
    app = import_module(tool[1] if tool else f"atlas_edge.{words[0].removeprefix('atlas-')}.cli").app
    try:
        app.parse_args([word for word in words[1:] if word != "…"], exit_on_error=False, print_error=False)
    except (cyclopts.MissingArgumentError, cyclopts.CoercionError) as error:
        return " ".join(str(error).split()) if whole else None
    except cyclopts.CycloptsError as error:
        return " ".join(str(error).split())
    return None
