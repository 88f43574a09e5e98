"""`atlas-bench selftest`: does a bundle compute here what it computed where it was made, and how fast is it here?

A bundle carries the full-precision embeddings of 64 synthetic tiles. The tiles are drawn again on the workstation,
the bundle embeds them, and the report says how far it is from full precision, compared with how far the same graph
was where it was made. It works for every target; for an engine it is the first run that the engine ever gets.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import Agreement, embedding_agreement
from atlas_edge.bench.machine import Machine, this_machine
from atlas_edge.bench.selftest.probe import StoredProbe, read_probe
from atlas_edge.bench.speed.timing import SpeedReport, paired_speed
from atlas_edge.bundle import BESIDE, MANIFEST, open_bundle, read_manifest
from atlas_edge.encoder import Encoder
from atlas_edge.errors import InputError
from atlas_edge.spec import EncoderSpec, Precision
from atlas_edge.tiles.synthetic.source import SyntheticTiles

SELFTEST_FILE = "selftest.safetensors"
TILES = 64
_SEED = 20
_PIECE = 8
_BLOCKS = 8
# Redrawn tiles may differ by a grey level in single pixels where float32 rounds differently; block means then move by
# a hundredth. Another generator moves them by tens.
_SAME_TILES = 0.5
# Median 1 - cosine to full precision that is taken as sound where the bundle does not say what it was when it was
# made; from the formats' precision, with room for another order of summation.
SOUND = {
    Precision.FP32: 1e-5,
    Precision.FP16: 1e-3,
    Precision.BF16: 1e-2,
    Precision.INT8: 5e-2,
    Precision.FP8: 5e-2,
}
# Other kernels round differently: twice the distance measured where it was made still is the same graph.
_ROOM = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What the probe beside a bundle (`atlas-bench probe`) decides of the selftest tiles.

    Attributes:
        tiles: Tiles.
        changed: So many are decided otherwise on the embeddings made here than on the full-precision ones.
        changed_when_made: The same of the embeddings made where the bundle was made; None where those were not stored.
    """

    tiles: int
    changed: int
    changed_when_made: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestCase:
    """One precision of a bundle, run here.

    Attributes:
        path: Folder of the bundle.
        runtime: What executed it.
        precision: Of its compute-heavy layers.
        agreement: With full precision, on the stored embeddings.
        distance: Median 1 - cosine to full precision, here.
        distance_when_made: The same where it was made, None where that was not recorded.
        allowed: Largest distance that passes.
        finite: Whether every number is finite.
        decisions: Of the probe beside the bundle; None where there is none.
        passed: Finite, and no farther than allowed.
    """

    path: str
    runtime: str
    precision: Precision
    agreement: Agreement
    distance: float
    distance_when_made: float | None
    allowed: float
    finite: bool
    passed: bool
    decisions: Decisions | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSelftest:
    """What a bundle carries to be tested by.

    Attributes:
        reference: `(N, D)` full-precision embeddings of the tiles.
        tile_blocks: `(N, 8, 8, 3)` mean grey levels of the tiles, to know them again.
        deployed: `(N, D)` embeddings of what was exported, where it was made; None where that was not recorded.
    """

    reference: NDArray[np.float32]
    tile_blocks: NDArray[np.float32]
    deployed: NDArray[np.float32] | None

    def draw(self, spec: EncoderSpec) -> NDArray[np.uint8]:
        """The tiles, drawn again.

        Raises:
            InputError: They come out otherwise than where the bundle was made.
        """
        tiles = selftest_tiles(spec, len(self.reference))
        drawn = _block_means(tiles)
        same_form = drawn.shape == self.tile_blocks.shape
        off = float(np.abs(drawn - self.tile_blocks).max()) if same_form else float("inf")
        if off > _SAME_TILES:
            raise InputError(
                f"the selftest tiles drawn here differ from those of the bundle by {off:.1f} grey levels",
                hint="use the atlas-edge that made the bundle (its version is in manifest.json)",
            )
        return tiles


@dataclass(frozen=True, slots=True, kw_only=True)
class SelftestReport:
    """The outcome on this machine; goes back to whoever made the bundle.

    Attributes:
        cases: By precision; the bundle itself comes first.
        speed: The cases against each other, None for a single case that was not timed.
        keep: Which precision to run here, and why.
    """

    created_utc: str
    bundle: str
    model: str
    target: str
    machine: Machine
    cases: dict[str, SelftestCase]
    speed: SpeedReport | None
    keep: str
    passed: bool


def selftest_tiles(spec: EncoderSpec, count: int = TILES) -> NDArray[np.uint8]:
    """Draw the tiles: `(count, tile_px, tile_px, 3)` uint8, the same for every encoder of that size."""
    source = SyntheticTiles(count, _SEED, tile_px=spec.tile_px)
    return np.stack([source.read(record) for record in source.records()])


def write_selftest(
    folder: Path, encoder: Encoder, tiles: NDArray[np.uint8] | None = None, *, deployed: Encoder | None = None
) -> Path:
    """Store the full-precision embeddings of the selftest tiles in a bundle, before its manifest is written.

    Args:
        folder: The bundle.
        encoder: Full precision.
        tiles: From `selftest_tiles`; drawn when None.
        deployed: What was exported, run on this machine (the very ONNX of an engine): how far it is from full
            precision is stored, too.

    Returns:
        The file written.
    """
    tiles = selftest_tiles(encoder.spec) if tiles is None else tiles
    arrays = {"reference": _embed(encoder, tiles), "tile_blocks": _block_means(tiles)}
    if deployed is not None:
        arrays["deployed"] = _embed(deployed, tiles)
    return _write(folder, arrays, {"tiles": f"synthetic:{len(tiles)}:{_SEED}", "reference": encoder.runtime})


def add_deployed(folder: Path, deployed: Encoder, tiles: NDArray[np.uint8]) -> Path:
    """Store what was exported made of the tiles, too, in the file of `write_selftest`; see there.

    For a reference that is closed by then: two large encoders need not be open at once.
    """
    from safetensors import safe_open

    with safe_open(folder / SELFTEST_FILE, framework="numpy") as file:
        metadata = file.metadata()
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return _write(folder, {**arrays, "deployed": _embed(deployed, tiles)}, metadata)


def run_selftest(
    bundle: Path, *, speed: bool = True, rounds: int = 6, batch: int = 32, device: str | None = None
) -> SelftestReport:
    """Run a bundle, and the FP16 bundle inside it where there is one, on the selftest tiles.

    Args:
        bundle: Bundle folder.
        speed: Time it.
        rounds: Turns of each precision.
        batch: Tiles a call in the throughput scenario.
        device: See `open_bundle`.

    Raises:
        InputError: The bundle carries no selftest, is damaged, or its tiles cannot be drawn here.
        RuntimeMissing: Its runtime or device is not here.
        ChecksumError: A file differs from the manifest.
    """
    manifest = read_manifest(bundle)
    stored, probe = read_selftest(bundle), read_probe(bundle)
    tiles = stored.draw(manifest.encoder)
    folders = [bundle, *(path for path in (bundle / BESIDE,) if (path / MANIFEST).is_file())]
    encoders: dict[str, Encoder] = {}
    cases: dict[str, SelftestCase] = {}
    try:
        for folder in folders:
            precision = read_manifest(folder).precision
            encoders[precision.value] = open_bundle(folder, device=device, rehash=True)
            kept = stored if folder == bundle else replace(stored, deployed=None)
            cases[precision.value] = run_case(folder, encoders[precision.value], precision, tiles, kept, probe)
        measured = _time(encoders, tiles, rounds, batch) if speed else None
    finally:
        for encoder in encoders.values():
            encoder.close()
    return SelftestReport(
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        bundle=bundle.name,
        model=manifest.encoder.name,
        target=manifest.target.value,
        machine=this_machine(),
        cases=cases,
        speed=measured,
        keep=_keep(cases, measured),
        passed=all(case.passed for case in cases.values()),
    )


def _write(folder: Path, arrays: dict[str, NDArray[Any]], metadata: dict[str, str]) -> Path:
    from safetensors.numpy import save

    path = folder / SELFTEST_FILE
    path.write_bytes(save(arrays, metadata=metadata))
    return path


def _embed(encoder: Encoder, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.concatenate([encoder.encode(tiles[start : start + _PIECE]) for start in range(0, len(tiles), _PIECE)])


def _block_means(tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    """`(N, 8, 8, 3)` mean grey levels, to tell whether tiles were drawn as they were."""
    count, side = len(tiles), tiles.shape[1] // _BLOCKS
    cropped = tiles[:, : side * _BLOCKS, : side * _BLOCKS].astype(np.float32)
    means: NDArray[np.float32] = cropped.reshape(count, _BLOCKS, side, _BLOCKS, side, 3).mean(axis=(2, 4))
    return means


def read_selftest(bundle: Path) -> StoredSelftest:
    """The selftest of a bundle; of FP16 inside another bundle, which has none, that of the outer one.

    Raises:
        InputError: It carries none, or one that cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    inside = bundle.name == BESIDE and not (bundle / SELFTEST_FILE).is_file()
    path = (bundle.parent if inside else bundle) / SELFTEST_FILE
    if not path.is_file():
        raise InputError(f"{bundle} carries no {SELFTEST_FILE}", hint="export it again with this atlas-export")
    try:
        stored = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} cannot be read: {error}", hint="copy the bundle again") from error
    missing = {"reference", "tile_blocks"} - set(stored)
    if missing:
        raise InputError(f"{path} lacks {', '.join(sorted(missing))}", hint="export the bundle again")
    deployed = None if inside else stored.get("deployed")
    return StoredSelftest(reference=stored["reference"], tile_blocks=stored["tile_blocks"], deployed=deployed)


def run_case(
    folder: Path,
    encoder: Encoder,
    precision: Precision,
    tiles: NDArray[np.uint8],
    stored: StoredSelftest,
    probe: StoredProbe | None = None,
) -> SelftestCase:
    """Embed the tiles, and judge how far from full precision that is.

    Args:
        folder: The bundle.
        encoder: The bundle, opened.
        precision: Of the bundle.
        tiles: From `StoredSelftest.draw`.
        stored: What it is judged by.
        probe: Beside the bundle, for decisions; None without.
    """
    found = _embed(encoder, tiles)
    finite = bool(np.isfinite(found).all())
    agreement = embedding_agreement(stored.reference, found if finite else np.nan_to_num(found))
    made, allowed = allowed_distance(stored, precision)
    distance = 1.0 - agreement.cosine_median
    return SelftestCase(
        path=folder.name,
        runtime=encoder.runtime,
        precision=precision,
        agreement=agreement,
        distance=distance,
        distance_when_made=made,
        allowed=allowed,
        finite=finite,
        passed=finite and distance <= allowed,
        decisions=None if probe is None else _decisions(probe, found, stored),
    )


def _decisions(probe: StoredProbe, found: NDArray[np.float32], stored: StoredSelftest) -> Decisions:
    wanted = probe.decide(stored.reference)
    deployed = stored.deployed
    return Decisions(
        tiles=len(found),
        changed=int((probe.decide(found) != wanted).sum()),
        changed_when_made=None if deployed is None else int((probe.decide(deployed) != wanted).sum()),
    )


def allowed_distance(stored: StoredSelftest, precision: Precision) -> tuple[float | None, float]:
    """Median 1 - cosine to full precision: what it was where the bundle was made, and the largest that passes."""
    if stored.deployed is None:
        return None, SOUND[precision]
    made = 1.0 - embedding_agreement(stored.reference, stored.deployed).cosine_median
    return made, max(_ROOM * made, SOUND[Precision.FP32])


def _time(encoders: dict[str, Encoder], tiles: NDArray[np.uint8], rounds: int, batch: int) -> SpeedReport:
    slowest_first = BESIDE if BESIDE in encoders else next(iter(encoders))
    return paired_speed(encoders, tiles, reference=slowest_first, batch=min(batch, len(tiles)), rounds=rounds)


def _keep(cases: dict[str, SelftestCase], speed: SpeedReport | None) -> str:
    sound = [name for name, case in cases.items() if case.passed]
    if not sound:
        return "none: no precision computes here what it computed where it was made"
    if len(sound) == 1:
        return f"{sound[0]}: the only one that passes"
    if speed is None:
        return "undecided: not timed"
    first = sound[0]
    ratio = speed.encoders[first].throughput_ratio
    if ratio is None or ratio.low > 1.0:
        gain = (
            ""
            if ratio is None
            else f": {ratio.estimate:.2f}x the throughput of {BESIDE} ({ratio.low:.2f}-{ratio.high:.2f})"
        )
        return first + gain
    measured = f"{ratio.estimate:.2f}x, {ratio.low:.2f}-{ratio.high:.2f}"
    return f"{BESIDE}: {first} is not faster here ({measured}) and costs accuracy"
