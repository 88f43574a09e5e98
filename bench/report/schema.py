"""`report.json`: everything that one run of `atlas-bench` measured, in a versioned schema."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from atlas_edge.bench.accuracy.measure import AccuracyReport
from atlas_edge.bench.encoders import EncoderFacts
from atlas_edge.bench.judge.budgets import GateResult
from atlas_edge.bench.machine import Machine
from atlas_edge.bench.speed.cold_start import ColdStart
from atlas_edge.bench.speed.energy import Energy
from atlas_edge.bench.speed.figures import SpeedReport
from atlas_edge.bench.speed.layers import LayerTimes
from atlas_edge.bench.speed.pace import Pace
from atlas_edge.bench.speed.roofline import Roofline
from atlas_edge.bench.speed.sweep import Sweep
from atlas_edge.errors import InputError
from atlas_edge.manifest import TilesProvenance

SCHEMA_VERSION = 2
REPORT_FILE = "report.json"


class Report(BaseModel):
    """What one run measured; a section that was not asked for is null.

    Numbers that do not exist are the strings `NaN`, `Infinity` and `-Infinity`, as JSON has no such numbers. Fields
    are added without a new version; a field that changes its meaning or goes away raises `schema_version`.

    Attributes:
        schema_version: Version of this schema.
        created_utc: ISO 8601.
        command: The command line.
        machine: Hardware and software.
        encoders: Label -> what is known of the encoder; the labels are the keys of every other section.
        evaluation: Tiles that the encoders were compared on.
        fit: Tiles that the probes were fitted on.
        accuracy: Agreement, drops, robustness and stress.
        speed: Latency and throughput.
        sweeps: Label -> throughput over batch, streams and threads.
        cold_starts: Label -> opening to first embedding, and peak memory.
        energies: Label -> energy; empty where no counter can be read, never estimated.
        roofline: This machine's peaks and the encoders' fractions of them.
        layers: Label -> time by group of layers.
        paces: Label -> tiles a slide, slides an hour, and whether that keeps up with a scanner.
        gate: The budgets and what was found of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")

    schema_version: Literal[2] = 2
    created_utc: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    command: tuple[str, ...]
    machine: Machine
    encoders: dict[str, EncoderFacts]
    evaluation: TilesProvenance | None = None
    fit: TilesProvenance | None = None
    accuracy: AccuracyReport | None = None
    speed: SpeedReport | None = None
    sweeps: dict[str, Sweep] = Field(default_factory=dict)
    cold_starts: dict[str, ColdStart] = Field(default_factory=dict)
    energies: dict[str, Energy] = Field(default_factory=dict)
    roofline: Roofline | None = None
    layers: dict[str, LayerTimes] = Field(default_factory=dict)
    paces: dict[str, Pace] = Field(default_factory=dict)
    gate: GateResult | None = None


def read_report(path: Path) -> Report:
    """Read a `report.json`, or the one in a folder.

    Raises:
        InputError: Not there, not JSON, of another schema version, or with fields that do not fit.
    """
    file = path / REPORT_FILE if path.is_dir() else path
    try:
        return Report.model_validate_json(file.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{file} does not exist, expected a report", hint="write one with --report DIR") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{file} is no report of schema version {SCHEMA_VERSION}: {where or 'the file'}: {first['msg']}",
            hint="write it again with this atlas-bench: --report DIR",
        ) from error
