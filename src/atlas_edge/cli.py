"""What the five commands share: exit codes, errors without tracebacks, `--json`, verbosity, configuration."""

import difflib
import io
import json
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.errors import AtlasError, RuntimeMissing, UsageError
from atlas_edge.system.paths import printable

if TYPE_CHECKING:
    import cyclopts
    from rich.console import Console

CONFIG = "--config"
"""Option of those commands that take theirs from a file, too."""

EXIT_BUG = 1
EXIT_USAGE = 2
EXIT_INPUT = 5
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141

_LOGGER = logging.getLogger("atlas_edge")


def make_app(name: str, summary: str) -> "cyclopts.App":
    """A command with the house's behaviour.

    Values come from the command line, then `ATLAS_<COMMAND>_<OPTION>` in the environment, then the command's
    table in `atlas.toml` of the working folder: `[export]` for `atlas-export MODEL`, `[export.rebuild]` for
    `atlas-export rebuild`.

    Args:
        name: `atlas-export`.
        summary: Help text, Markdown; it holds an example, but not below a line `Example:`, which cyclopts takes for a
            section of a docstring and leaves out.
    """
    import cyclopts

    from atlas_edge import __version__

    table = name.removeprefix("atlas-")
    toml = cyclopts.config.Toml("atlas.toml", root_keys=[table], search_parents=False)
    return cyclopts.App(
        name=name,
        help=summary,
        help_format="markdown",
        version=__version__,
        # `run_app` says what became of it; cyclopts would leave without a word.
        suppress_keyboard_interrupt=False,
        config=[
            cyclopts.config.Env(f"ATLAS_{table.upper()}_", command=False),
            lambda *_: _read(toml),
            toml,
            lambda app, commands, arguments: _check_table(app, commands, arguments, toml.config.get(table)),
        ],
    )


def take_file(app: "cyclopts.App", command: str) -> None:
    """Have a command take values from the file that its `--config` names, next after those of the environment."""
    environment, *tables = app.config
    app[command].config = (environment, apply_file, *tables)


def apply_file(app: "cyclopts.App", commands: tuple[str, ...], arguments: "cyclopts.ArgumentCollection") -> None:
    """Options from the file that `--config` names, by the names that they have on the command line."""
    import cyclopts

    named = given_value(arguments, CONFIG)
    if named is None:
        return
    path = Path(named)
    if not path.is_file():
        raise UsageError(f"{CONFIG} {path} is not a file, expected options in TOML", hint="check the path")
    file = cyclopts.config.Toml(path, use_commands_as_keys=False)
    tables = [key for key, value in _read(file).items() if isinstance(value, dict)]
    if tables:
        raise UsageError(f"{path}: [{tables[0]}] is a table, expected options only", hint="leave that line out")
    try:
        file(app, commands, arguments)
    except cyclopts.UnknownOptionError as error:
        key = str(error.token.keyword).strip("[]")
        names = [name.removeprefix("--") for argument in arguments if argument.parse for name in argument.names]
        near = difflib.get_close_matches(key, names, n=1)
        hint = f"write {near[0]}" if near else "see the command's --help"
        raise UsageError(f"{path}: {key} is no option of this command", hint=hint) from error


def given_value(arguments: "cyclopts.ArgumentCollection", option: str) -> str | None:
    """What an option was given before the command runs, as it was typed; None where it was not."""
    found = [token.value for argument in arguments if option in argument.names for token in argument.tokens]
    return found[-1] if found else None


def run_app(app: "cyclopts.App", argv: Sequence[str] | None = None) -> int:
    """Run a command and turn what happens into an exit code (see `errors`).

    Returns:
        0 done · 1 bug · 2 usage · 3 gate · 4 runtime missing · 5 bad input · 130 interrupted · 141 the reader of a pipe
        left.
    """
    import cyclopts

    arguments = list(sys.argv[1:] if argv is None else argv)
    _never_fail_to_print()
    try:
        result = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
        sys.stdout.flush()
    except AtlasError as error:
        return report_error(app.name[0], str(error), error.exit_code)
    except cyclopts.CycloptsError as error:
        return report_error(app.name[0], f"{_one_line(error)}\n  fix: see {app.name[0]} --help", EXIT_USAGE)
    except KeyboardInterrupt:
        message = "interrupted; nothing unfinished was written at its final place"
        return report_error(app.name[0], message, EXIT_INTERRUPTED)
    except BrokenPipeError:
        # Whoever read has seen enough. What is still buffered must not raise again when Python ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE
    except OSError as error:
        return report_error(app.name[0], system_error(error), EXIT_INPUT)
    except Exception:  # the one place that may: a bug must leave as exit code 1, with its traceback
        traceback.print_exc()
        return report_error(app.name[0], "this is a bug in atlas-edge: please report the lines above", EXIT_BUG)
    return int(result) if isinstance(result, int) else 0


def system_error(error: OSError) -> str:
    """What the system refused, of which path, and what to look at."""
    # Of a copy it names two, and does not say which of them it is.
    names = [printable(name) for name in (error.filename, error.filename2) if isinstance(name, str)]
    where = f": {' -> '.join(names)}" if names else ""
    return f"{error.strerror or error}{where}\n  fix: check free disk space and permissions of that path"


def report_error(command: str, message: str, exit_code: int) -> int:
    """Print an error to stderr and return its exit code."""
    print(f"{command}: error: {message}", file=sys.stderr)
    return exit_code


def console(*, quiet: bool = False) -> "Console":
    """The stderr console: progress and tables go there, so that stdout holds data only.

    Brackets are printed as they are: names of files hold them.
    """
    from rich.console import Console

    return Console(stderr=True, quiet=quiet, highlight=False, markup=False, soft_wrap=False)


def set_verbosity(*, quiet: bool, verbose: bool) -> None:
    """Log level of our own loggers and of the libraries that talk too much."""
    level = logging.ERROR if quiet else logging.DEBUG if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(name)s: %(message)s", stream=sys.stderr)
    for name in ("nncf", "torch.onnx", "torch.utils.cpp_extension", "onnxscript", "onnx_ir", "openvino", "modelopt"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.ERROR)
    for name in ("PIL", "matplotlib", "pydot"):  # they log each chunk of an image and each font
        logging.getLogger(name).setLevel(logging.WARNING)


def print_json(data: Any) -> None:
    """Write one JSON document to stdout."""
    json.dump(data, sys.stdout, indent=2, default=str)
    sys.stdout.write("\n")


def require_module(module: str, *, extra: str) -> None:
    """Raise RuntimeMissing, naming the extra to install, where a module cannot be found."""
    from atlas_edge.system.hardware import installed_module

    if installed_module(module) is None:
        raise RuntimeMissing(f"{module} is not installed", hint=f"pip install 'atlas-edge[{extra}]'")


def existing_folder(path: Path, what: str) -> Path:
    """Return `path`, or raise UsageError naming what was expected there."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder, expected {what}")
    return path


def _read(file: "cyclopts.config.Toml") -> dict[str, Any]:
    import cyclopts

    try:
        return file.config
    except cyclopts.CycloptsError as error:
        raise UsageError(
            f"{printable(file.path)} is no TOML: {error.__cause__}", hint="correct it, in UTF-8"
        ) from error


def _never_fail_to_print() -> None:
    """Print `?` for what the console's encoding lacks: cp1252 has no arrow, ASCII no µ."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _check_table(
    app: "cyclopts.App", commands: Sequence[str], arguments: "cyclopts.ArgumentCollection", table: Any
) -> None:
    """Refuse settings beside the subcommands' tables that no command would read; tell those that this one leaves."""
    root = app.app_stack.current_frame[0]
    own = [] if not isinstance(table, dict) else [key for key in table if key not in root]
    name = root.name[0].removeprefix("atlas-")
    taken = {option for argument in arguments for option in argument.names}
    unread = [key for key in own if "--" + key.replace("_", "-") in taken]
    if commands and unread and root.default_command:
        table_of = ".".join([name, *commands])
        _LOGGER.warning(
            "atlas.toml: %s in [%s] is not for %s: put it into [%s]",
            ", ".join(unread), name, " ".join([root.name[0], *commands]), table_of,
        )  # fmt: skip
    stray = [] if root.default_command else own
    if stray:
        command = next(command for command in root.resolved_commands() if not command.startswith("-"))
        raise UsageError(
            f"atlas.toml: [{name}] holds {stray[0]}, and no command of {root.name[0]} reads that table",
            hint=f"put it into the table of a command, such as [{name}.{command}]",
        )


def _one_line(error: "cyclopts.CycloptsError") -> str:
    from atlas_edge.options import out_of_range

    # Where pydantic is loaded already, cyclopts asks it before `Options` does.
    if error.argument is not None and hasattr(error.__cause__, "errors"):
        return out_of_range(error.argument.name, error.__cause__)
    return " ".join(str(error).split())
