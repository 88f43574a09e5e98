"""Which variant of a package runs on this machine: measured once, and remembered for package and machine."""

import hashlib
import json
import logging
import os
import pkgutil
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_edge.errors import GateFailed, RuntimeMissing
from atlas_edge.package.manifest import (
    Sha256,
    VariantName,
    is_package,
    package_sha256,
    read_package,
    variant_folder,
)
from atlas_edge.system import hardware
from atlas_edge.system.atomic import write_atomic
from atlas_edge.system.graphics import graphics
from atlas_edge.system.user_cache import user_cache

# module:function that measures; it lies above the core, with the clock and the intervals.
CHOOSER = "atlas_edge.bench.choose.run:choose"
# What decides how fast a variant is, or what it computes, beside the hardware.
_DISTRIBUTIONS = (
    "atlas-edge",
    "onnxruntime",
    "onnxruntime-directml",
    "onnxruntime-ep-nv-tensorrt-rtx",
    "onnxruntime-ep-openvino",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
)
_VARIABLES = ("DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA")
_MOST_BYTES = 1 << 20
# What this process measured, where the user's cache cannot be written.
_measured: "dict[Path, Choice]" = {}
_LOGGER = logging.getLogger("atlas_edge")

Outcome = Literal["chosen", "passed", "no gain", "same", "wrong", "not here"]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Candidate(_Model):
    """A variant, as it did here.

    Attributes:
        variant: Its name.
        device: What it was opened on; None for its runtime's own choice.
        runtime: What executed it; None where it did not open.
        distance: Median 1 - cosine to the stored full-precision embeddings.
        allowed: Largest distance that passes.
        tiles_per_s: Throughput; None where it was not timed.
        against: The variant that it took turns with.
        ratio: Its throughput over that one's, with the ends of the 95 % interval: estimate, low, high.
        outcome: `chosen`; `passed` by a faster one; `no gain` over a more exact one; `same` as another one here;
            `wrong`, farther from full precision than allowed; `not here`, its runtime or device is missing.
        reason: The same in words.
    """

    variant: VariantName
    device: str | None = None
    runtime: str | None = None
    distance: float | None = None
    allowed: float | None = None
    tiles_per_s: float | None = None
    against: str | None = None
    ratio: tuple[float, float, float] | None = None
    outcome: Outcome
    reason: str


class Choice(_Model):
    """What was measured of a package on a machine.

    Attributes:
        package_sha256: See `package_sha256`.
        machine_sha256: See `machine_sha256`.
        asked: The device that was asked for.
        threads: The threads that were asked for.
        candidates: From the most exact to the least.
        notes: What makes the timings less certain, such as other programs.
    """

    schema_version: Literal[1] = 1
    created_utc: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    package_sha256: Sha256
    machine_sha256: Sha256
    asked: str | None = None
    threads: int | None = None
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...] = ()

    @property
    def chosen(self) -> Candidate | None:
        """The variant to run; None where none runs rightly."""
        return next((candidate for candidate in self.candidates if candidate.outcome == "chosen"), None)


def chosen_bundle(
    path: str | Path, *, device: str | None = None, threads: int | None = None
) -> tuple[Path, str | None]:
    """The bundle that a path stands for: itself, or the variant of a package that is best on this machine.

    Args:
        path: Bundle folder, package, or anything else, which is given back as it is.
        device: What the variants may run on; their runtimes' own choice when None.
        threads: Inference threads.

    Returns:
        Its folder, and the device to open it on.

    Raises:
        InputError: The package cannot be read.
        ChecksumError: It was changed (found before anything in it is run).
        GateFailed: Every variant that runs here computes something else than it should.
        RuntimeMissing: None runs here.
    """
    folder = Path(path)
    if not is_package(folder):
        return folder, device
    package = read_package(folder)
    if len(package.variants) == 1:
        return variant_folder(folder, package.variants[0].name), device
    choice = remembered(folder, device=device, threads=threads)
    if choice is None:
        _LOGGER.warning("%s: measuring once which of its %d variants is best here", folder, len(package.variants))
        choice = measure(folder, device=device, threads=threads)
        for note in choice.notes:
            _LOGGER.warning("%s: %s (atlas-bench choose --again)", folder, note)
    found = the_chosen(folder, choice)
    return variant_folder(folder, found.variant), found.device


def measure(
    folder: Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Measure a package's variants here, and remember what was found.

    Args:
        folder: The package.
        device: What the variants may run on.
        threads: Inference threads.
        progress: Told what is being done.
    """
    choose: Callable[..., Choice] = pkgutil.resolve_name(CHOOSER)
    choice = choose(folder, device=device, threads=threads, progress=progress)
    if choice.chosen is not None:
        _LOGGER.info("%s: %s, %s", folder, choice.chosen.variant, choice.chosen.reason)
        _remember(choice)
    return choice


def the_chosen(folder: Path, choice: Choice) -> Candidate:
    """What was chosen.

    Raises:
        GateFailed: Every variant that runs here computes something else than it should.
        RuntimeMissing: None runs here.
    """
    if choice.chosen is not None:
        return choice.chosen
    wrong = [candidate.variant for candidate in choice.candidates if candidate.outcome == "wrong"]
    hint = "; ".join(f"{candidate.variant}: {candidate.reason}" for candidate in choice.candidates)
    if wrong:
        raise GateFailed(f"{folder}: no variant computes here what it computed where it was made", hint=hint)
    raise RuntimeMissing(f"{folder}: no variant runs on this machine", hint=hint)


def remembered(folder: Path, *, device: str | None = None, threads: int | None = None) -> Choice | None:
    """What was measured of this very package on this very machine; None where nothing is, or cannot be relied on.

    It says which variant to open, and nothing else: the variant's hashes are compared whenever it is opened.
    """
    known = {"package_sha256": package_sha256(folder), "machine_sha256": machine_sha256()}
    path = _place(**known, asked=device, threads=threads)
    choice: Choice | None
    try:
        with path.open("rb") as file:
            choice = Choice.model_validate_json(file.read(_MOST_BYTES))
    except (OSError, ValidationError):
        choice = _measured.get(path)
    if choice is None:
        return None
    said = {"package_sha256": choice.package_sha256, "machine_sha256": choice.machine_sha256}
    same = said == known and (choice.asked, choice.threads) == (device, threads)
    chosen = choice.chosen
    there = chosen is not None and read_package(folder).variant(chosen.variant) is not None
    return choice if same and there else None


def machine() -> dict[str, Any]:
    """What decides which variant is best: processor and cores, graphics cards, runtimes, and their variables."""
    return {
        "cpu": asdict(hardware.cpu()),
        "logical_cores": hardware.logical_cores(),
        "graphics": graphics(),
        "versions": {**hardware.installed_versions(_DISTRIBUTIONS), **hardware.system()},
        "environment": {name: os.environ[name] for name in _VARIABLES if name in os.environ},
        # Which of them does not count: several watchers, one a GPU, must agree.
        "gpus_hidden": os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"),
    }


def machine_sha256() -> str:
    """`machine` in one number."""
    return hashlib.sha256(json.dumps(machine(), sort_keys=True).encode()).hexdigest()


def _remember(choice: Choice) -> None:
    path = _place(
        package_sha256=choice.package_sha256,
        machine_sha256=choice.machine_sha256,
        asked=choice.asked,
        threads=choice.threads,
    )
    _measured[path] = choice
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, choice.model_dump_json(indent=2).encode())
    except OSError as error:
        _LOGGER.warning("%s cannot be written (%s): it will be measured again", path, error.strerror)


def _place(*, package_sha256: str, machine_sha256: str, asked: str | None, threads: int | None) -> Path:
    key = json.dumps([package_sha256, machine_sha256, asked, threads])
    return user_cache() / "choices" / f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
