"""Measure a package's variants on this machine, and keep the fastest that is right and whose gain is real.

Variants come from the most exact to the least. Each is compared with the full-precision embeddings that it carries, as
`atlas-bench selftest` does it, and one that is farther from them than where it was made is dropped. The others take
turns with the one that was kept so far, and replace it where they are faster with all of the 95 % interval, a less
exact one by `LEAST_GAIN`: it is taken for a gain that is there, and for nothing else. Two are open at a time.
"""

import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.interval import geometric_mean_interval
from atlas_edge.bench.selftest.run import read_selftest, run_case
from atlas_edge.bench.speed.processor_load import ProcessorLoad
from atlas_edge.bench.speed.timing import offline_batch, timed_block, timed_call
from atlas_edge.bench.speed.warnings import load_warnings
from atlas_edge.bundle import model_folder, open_verified, read_manifest
from atlas_edge.encoder import Encoder
from atlas_edge.errors import AtlasError
from atlas_edge.package.choice import Candidate, Choice, machine_sha256
from atlas_edge.package.manifest import Variant, package_sha256
from atlas_edge.package.verify import verify_package
from atlas_edge.runtimes.registry import runtime_of
from atlas_edge.spec import Precision

LEAST_GAIN = 1.05
"""Throughput over the more exact variant's below which its exactness is worth more."""

ROUNDS = 8
_BLOCK_SECONDS = 0.25
_WARM_UP_SECONDS = 0.5
_BATCH = 8
# Of a large encoder a turn takes long: a gain that four of them do not show is none.
_FEWEST_ROUNDS, _MOST_SECONDS = 4, 10.0


def choose(
    folder: Path,
    *,
    device: str | None = None,
    threads: int | None = None,
    rounds: int = ROUNDS,
    progress: Callable[[str], None] = lambda _: None,
) -> Choice:
    """Measure; a few seconds a variant.

    Args:
        folder: The package.
        device: What the variants may run on; what their runtimes find when None.
        threads: Inference threads; the runtimes' own choice when None.
        rounds: Turns of each of two variants.
        progress: Told which variant's turn it is.

    Raises:
        ChecksumError: A file differs from its manifest, or a manifest from the package's.
        InputError: The package cannot be read.
    """
    package = verify_package(folder)
    load = ProcessorLoad()
    contest = _Contest(folder, threads, rounds)
    try:
        for variant in package.variants:
            others = runtime_of(variant.target).other_devices() if device is None else ()
            for on in (device, *others):
                progress(f"{variant.name}{'' if on is None else f' on {on}'}")
                contest.meet(variant, on)
    finally:
        contest.close()
    return Choice(
        package_sha256=package_sha256(folder),
        machine_sha256=machine_sha256(),
        asked=device,
        threads=threads,
        candidates=contest.settled(),
        notes=tuple(load_warnings(load.since())),
    )


class _Contest:
    """The variants met so far, and the one of them that is kept, open."""

    def __init__(self, folder: Path, threads: int | None, rounds: int) -> None:
        self._folder, self._threads, self._rounds = folder, threads, rounds
        self._met: list[Candidate] = []
        self._drawn: NDArray[np.float32] | None = None
        self._kept: tuple[int, Encoder, Precision] | None = None
        # What was opened from where, and as what: model files that run the same way twice need not be timed twice.
        self._seen: dict[tuple[Path, str], str] = {}

    def meet(self, variant: Variant, on: str | None) -> None:
        """Open a variant, judge it, and let it take turns with the one that is kept."""
        folder, here = self._folder / variant.name, {"variant": variant.name, "device": on}
        try:
            encoder = open_verified(folder, read_manifest(folder), threads=self._threads, device=on)
        except AtlasError as error:
            self._met.append(Candidate(**here, outcome="not here", reason=_line(error, folder, variant.name)))
            return
        with ExitStack() as stack:
            stack.enter_context(closing(encoder))
            here["runtime"] = encoder.runtime
            same = self._seen.setdefault((model_folder(folder).resolve(), encoder.runtime), _name(variant.name, on))
            if same != _name(variant.name, on):
                self._met.append(Candidate(**here, outcome="same", reason=f"here it computes what {same} does"))
                return
            candidate = self._judged(folder, variant, encoder, here)
            if candidate.outcome == "chosen":
                try:
                    candidate = self._timed(candidate, encoder, variant.precision)
                except AtlasError as error:  # a device may be too small for whole batches
                    candidate = Candidate(**here, outcome="not here", reason=_line(error, folder, variant.name))
            self._met.append(candidate)
            if candidate.outcome == "chosen":
                stack.pop_all()
                self.close()
                self._kept = len(self._met) - 1, encoder, variant.precision

    def close(self) -> None:
        """Close the one that is kept."""
        if self._kept is not None:
            self._kept[1].close()

    def settled(self) -> tuple[Candidate, ...]:
        """All of them, one of them chosen for good where one is right."""
        best = None if self._kept is None else self._met[self._kept[0]]
        found = []
        for candidate in self._met:
            if candidate.outcome == "chosen" and candidate is not best and best is not None:
                winner = _name(best.variant, best.device)
                candidate = candidate.model_copy(update={"outcome": "passed", "reason": f"{winner} is faster"})
            elif candidate is best and candidate.ratio is None:
                rivals = any(other.ratio is not None for other in self._met)
                reason = "the most exact, and nothing gains on it" if rivals else "the only one that is right here"
                candidate = candidate.model_copy(update={"reason": reason})
            found.append(candidate)
        return tuple(found)

    def _judged(self, folder: Path, variant: Variant, encoder: Encoder, here: dict[str, Any]) -> Candidate:
        try:
            stored = read_selftest(folder)
            # Drawing takes longer than embedding: variants of one model carry the same tiles.
            if self._drawn is None or not np.array_equal(self._drawn, stored.tile_blocks):
                self._tiles, self._drawn = stored.draw(encoder.spec), stored.tile_blocks
            # Runtimes compile at the first call.
            encoder.encode(self._tiles[:_BATCH])
        except AtlasError as error:
            return Candidate(**here, outcome="not here", reason=_line(error, folder, variant.name))
        try:
            case = run_case(folder, encoder, variant.precision, self._tiles, stored)
        except AtlasError as error:
            return Candidate(**here, outcome="wrong", reason=_line(error, folder, variant.name))
        here |= {"distance": case.distance, "allowed": case.allowed}
        if case.passed:
            return Candidate(**here, outcome="chosen", reason="the most exact")
        far = f"1 - cosine to full precision is {case.distance:.2g}, allowed {case.allowed:.2g}"
        return Candidate(**here, outcome="wrong", reason=far if case.finite else "its embeddings are not finite")

    def _timed(self, candidate: Candidate, encoder: Encoder, precision: Precision) -> Candidate:
        if self._kept is None:
            return candidate
        place, opponent, exactness = self._kept
        rates, own = _rates((opponent, encoder), self._tiles, self._rounds)
        ratio = geometric_mean_interval(np.array(own) / np.array(rates))
        before = self._met[place]
        if before.tiles_per_s is None:
            self._met[place] = before.model_copy(update={"tiles_per_s": float(np.mean(rates))})
        against = _name(before.variant, before.device)
        least = 1.0 if precision is exactness else LEAST_GAIN
        gains = ratio.low > least
        times = f"{ratio.estimate:.2f}x [{ratio.low:.2f}, {ratio.high:.2f}] of {against}"
        return candidate.model_copy(
            update={
                "tiles_per_s": float(np.mean(own)),
                "against": against,
                "ratio": (ratio.estimate, ratio.low, ratio.high),
                "outcome": "chosen" if gains else "no gain",
                "reason": f"{times}, all of it above {least:g}x" if gains else f"{times} is no gain",
            }
        )


def _rates(pair: tuple[Encoder, Encoder], tiles: NDArray[np.uint8], rounds: int) -> tuple[list[float], list[float]]:
    """Tiles a second of two encoders, round by round, who begins taking turns."""
    timed = []
    for encoder in pair:
        batch = offline_batch(encoder, _BATCH)
        call = timed_call(encoder, tiles, batch)
        started = time.perf_counter()
        call()
        while time.perf_counter() - started < _WARM_UP_SECONDS:
            call()
        timed.append((call, batch))
    rates: tuple[list[float], list[float]] = ([], [])
    started = time.perf_counter()
    for number in range(rounds):
        if number >= _FEWEST_ROUNDS and time.perf_counter() - started > _MOST_SECONDS:
            break
        for index in (0, 1) if number % 2 == 0 else (1, 0):
            call, batch = timed[index]
            calls = timed_block(call, _BLOCK_SECONDS)
            rates[index].append(batch * len(calls) / sum(calls))
    return rates


def _name(variant: str, device: str | None) -> str:
    return variant if device is None else f"{variant} on {device}"


def _line(error: AtlasError, folder: Path, name: str) -> str:
    # Reports are sent on, and folders may be named after people.
    return " ".join(error.message.replace(str(folder), name).split())
