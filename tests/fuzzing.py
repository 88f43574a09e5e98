"""Damages files in many ways, tries each in a process of its own, and counts what came of it. POSIX only."""

import argparse
import importlib
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from atlas_edge.errors import AtlasError

MOST_SECONDS = 20
_MOST_WALL_SECONDS = 6 * MOST_SECONDS  # other processes may have the processor

_ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 2**31, 2**63, 1e308, float("nan"), 0.3, "", "x", "0.5", "x" * 10_000, "../../etc/passwd",
    "[/bold]", "\u0000", [], {}, [1], [0.5, "a"], [[1]], {"a": 1},
)  # fmt: skip
_ODD_NUMBERS = (0, 1, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


def damage(path: Path, rng: np.random.Generator) -> bytes:
    """One way of many in which a file can be wrong; texts are also damaged in their meaning."""
    data = path.read_bytes()
    if path.suffix in _IN_MEANING and rng.random() < 0.7:
        return _IN_MEANING[path.suffix](data, rng)
    out = bytearray(data)
    # Headers and footers say how large the rest is.
    near = min(len(out), 256)
    spot = int(rng.choice([rng.integers(len(out)), rng.integers(near), len(out) - 1 - rng.integers(near)]))
    span = int(2 ** rng.uniform(0, 10))
    match int(rng.integers(8)):
        case 0:
            for at in rng.integers(len(out), size=int(rng.integers(1, 9))):
                out[at] ^= 1 << int(rng.integers(8))
        case 1:
            out[spot] ^= 1 << int(rng.integers(8))
        case 2:
            out[spot : spot + 4] = int(rng.choice(_ODD_NUMBERS)).to_bytes(4, str(rng.choice(["little", "big"])))
        case 3:
            del out[spot:]
        case 4:
            del out[spot : spot + span]
        case 5:
            out[spot:spot] = out[spot : spot + span]
        case 6:
            out[spot:spot] = rng.bytes(span)
        case _:
            out[spot : spot + span] = bytes([int(rng.choice([0, 255, 127]))]) * len(out[spot : spot + span])
    return bytes(out)


@dataclass(frozen=True, slots=True)
class Kind:
    """Files of one kind.

    Attributes:
        write: Puts whole ones into a folder.
        damaged: Which of them is damaged.
        use: What is done with the folder; returns the exit code of it.
        imports: Modules to import once, not in every process.
        damage: How.
    """

    write: Callable[[Path], Any]
    damaged: str
    use: Callable[[Path], int]
    imports: tuple[str, ...] = ()
    damage: Callable[[Path, np.random.Generator], bytes] = damage

    def write_whole(self, folder: Path) -> int:
        """Write files that can be used."""
        folder.mkdir(parents=True)
        self.write(folder)
        return self.use(folder)


@dataclass(frozen=True, slots=True)
class Limits:
    """What is allowed to a process.

    Attributes:
        mib: Memory that it may add to what it began with.
        address_mib: The same of its address space, so that no file takes the machine's memory while it is tried.
        results: Exit codes.
    """

    mib: int
    address_mib: int
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """Exit code, `traceback`, `hang` or `signal N`, and what it took; `seconds` are the processor's."""

    result: str
    seconds: float
    mib: float
    said: str

    def is_good(self, limits: Limits) -> bool:
        return self.result in limits.results and self.seconds <= MOST_SECONDS and self.mib <= limits.mib


def fuzz(description: str, kinds: Mapping[str, Kind], limits: Limits) -> int:
    """Run as a command: exit code 1 where a file was neither used nor refused within the limits."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=list(kinds), default=list(kinds))
    parser.add_argument("--keep", type=Path)
    options = parser.parse_args()
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    for module in {module for name in options.kinds for module in kinds[name].imports}:
        importlib.import_module(module)
    with tempfile.TemporaryDirectory() as work:
        for name in options.kinds:
            whole = _in_child(kinds[name].write_whole, Path(work, "whole", name), limits)
            if whole.result != "0":
                sys.exit(f"{name} cannot be written whole: {whole.result} {whole.said}")
        for number in range(options.count):
            name = options.kinds[number % len(options.kinds)]
            kind, folder = kinds[name], Path(work, "case")
            shutil.copytree(Path(work, "whole", name), folder)
            victim = folder / kind.damaged
            victim.write_bytes(kind.damage(victim, np.random.default_rng([options.seed, number])))
            outcome = _in_child(kind.use, folder, limits)
            outcomes[name].append(outcome)
            if not outcome.is_good(limits):
                print(f"{name} {number}: {outcome.result}, {outcome.seconds:.1f} s, {outcome.mib:.0f} MiB")
                print("    " + outcome.said.strip().replace("\n", "\n    ")[-2000:], flush=True)
                if options.keep is not None:
                    shutil.copytree(folder, options.keep / f"{name}-{number}", dirs_exist_ok=True)
            shutil.rmtree(folder)
    _print_table(outcomes)
    return 0 if all(outcome.is_good(limits) for found in outcomes.values() for outcome in found) else 1


def _odd_json(data: bytes, rng: np.random.Generator) -> bytes:
    return json.dumps(_odd_value_within(json.loads(data), rng)).encode()


def _odd_value_within(value: Any, rng: np.random.Generator) -> Any:
    """The same with one part of it odd, doubled or gone."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = str(rng.choice(list(value)))
        if rng.random() < 0.1:
            return {name: part for name, part in value.items() if name != key}
        return value | {key: _odd_value_within(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        at = int(rng.integers(len(value)))
        return [*value[:at], _odd_value_within(value[at], rng), *value[at + int(rng.integers(2)) :]]
    return _odd_value(rng)


def _odd_csv(data: bytes, rng: np.random.Generator) -> bytes:
    rows = [line.split(b",") for line in data.splitlines()]
    row = rows[int(rng.integers(len(rows)))]
    row[int(rng.integers(len(row)))] = _odd_text(rng)
    return b"\r\n".join(b",".join(cells) for cells in rows)


def _odd_ini(data: bytes, rng: np.random.Generator) -> bytes:
    """Up to three lines with another value, doubled or gone."""
    lines = data.splitlines()
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(len(lines)))
        key = lines[at].partition(b"=")[0]
        odd = _odd_text(rng) if rng.random() < 0.5 else str(rng.choice(_ODD_NUMBERS)).encode()
        lines[at : at + 1] = [[key + b"=" + odd], [key + b"=" + odd], [lines[at]] * 2, []][int(rng.integers(4))]
    return b"\n".join(lines) + b"\n"


def _odd_text(rng: np.random.Generator) -> bytes:
    return str(_odd_value(rng)).encode() if rng.random() < 0.8 else rng.bytes(6)


def _odd_value(rng: np.random.Generator) -> Any:
    return _ODD_VALUES[int(rng.integers(len(_ODD_VALUES)))]


_IN_MEANING = {".json": _odd_json, ".csv": _odd_csv, ".ini": _odd_ini, ".vms": _odd_ini}


def _in_child(use: Callable[[Path], int], folder: Path, limits: Limits) -> Outcome:
    with tempfile.TemporaryFile() as said:
        process = os.fork()
        if process == 0:
            _become(use, folder, said.fileno(), limits.address_mib)
        _, status, used = os.wait4(process, 0)
        said.seek(0)
        before, _, text = said.read().decode(errors="replace").partition("\n")
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        result = "hang" if number == signal.SIGALRM else f"signal {number}"
    else:
        code = os.WEXITSTATUS(status)
        result = "traceback" if code == 1 else str(code)
    return Outcome(result, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024 - float(before), text)


def _become(use: Callable[[Path], int], folder: Path, said: int, address_mib: int) -> None:
    os.dup2(said, 1)
    os.dup2(said, 2)
    pages, resident = (int(found) for found in Path("/proc/self/statm").read_text().split()[:2])
    print(resident * resource.getpagesize() / 2**20, flush=True)
    signal.alarm(_MOST_WALL_SECONDS)
    limit = pages * resource.getpagesize() + address_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    code = 1
    try:
        code = use(folder)
    except AtlasError as error:
        print(error)
        code = error.exit_code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _print_table(outcomes: dict[str, list[Outcome]]) -> None:
    results = sorted({outcome.result for found in outcomes.values() for outcome in found})
    print("| kind | files |", " | ".join(results), "| longest, s | most, MiB |")
    print("|---|--:|" + "--:|" * (len(results) + 2))
    everything = [outcome for found in outcomes.values() for outcome in found]
    for name, found in [*outcomes.items(), ("all", everything)]:
        counts = Counter(outcome.result for outcome in found)
        cells = [str(counts[result]) for result in results]
        longest, most = max(one.seconds for one in found), max(one.mib for one in found)
        print(f"| {name} | {len(found)} | {' | '.join(cells)} | {longest:.1f} | {most:.0f} |")
