"""Tiny training runs, alone or in several processes that gloo connects; as a script, one such process."""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from atlas_edge.distill.training import loop
from atlas_edge.distill.training import state as first_state
from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.distill.training.metrics import read_metrics
from atlas_edge.distill.training.run import distill, run_folder
from support import ROOT


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a process ended: exit status (negative: the signal that ended it), and what it said on stderr."""

    status: int
    complaint: str


def tiny_config(teacher: Path, tiles: Path, student: Path, out: Path, **options: Any) -> TrainConfig:
    arguments = {
        "steps": 12, "batch": 8, "lr": 3e-3, "warmup": 2, "checkpoint_every": 5, "views": 2, "precision": "fp32",
        "threads": 1, "half": False,
    }  # fmt: skip
    return TrainConfig(
        teachers=(str(teacher),), tiles=(str(tiles),), student=str(student), out=out, **{**arguments, **options}
    )


def losses_of(out: Path) -> dict[int, float]:
    """Of a run that is done, or of one that was stopped."""
    return {row["step"]: row["loss"] for row in read_metrics(run_folder(out) if run_folder(out).is_dir() else out)}


def run_two(*configs: TrainConfig, **environment: str) -> list[Ended]:
    """Run configurations one after the other in two processes, every step logged; each must end within two minutes.

    Args:
        configs: Options.
        environment: As the launcher sets it, and what the processes read: `TINY_FAULT` is `kill` (the first one kills
            itself at step 8), `nan` or `memory` (of the second one, at step 3), `differs` (the second one sees other
            features before the first step); `TINY_HELD` a folder for `RANK.json`,
            the elements that a process of a sharded run holds.
    """
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": os.pathsep.join((str(ROOT / "src"), str(ROOT / "tests"))),
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        start = [sys.executable, __file__, folder, *(json.dumps(config.as_json()) for config in configs)]
        # They are forks of one process, which imports for both.
        process = subprocess.Popen(start, env={**os.environ, **shared, **environment}, start_new_session=True)
        try:
            process.wait(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        statuses = json.loads((Path(folder) / "statuses").read_text())
        complaints = [(Path(folder) / str(rank)).read_text() for rank in range(2)]
    return [Ended(status=status, complaint=complaint) for status, complaint in zip(statuses, complaints, strict=True)]


def _fork(folder: Path, configs: list[TrainConfig]) -> None:
    for module in ("timm", "accelerate", "sklearn.linear_model", "matplotlib.pyplot", "torch.distributed.fsdp"):
        importlib.import_module(module)
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            with (folder / str(rank)).open("wb") as complaint:
                os.dup2(complaint.fileno(), 2)
            return _main(configs, rank)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    (folder / "statuses").write_text(json.dumps(statuses))


def _main(configs: list[TrainConfig], rank: int) -> None:
    loop._LOG_EVERY = 1
    if "TINY_HELD" in os.environ:
        _write_what_is_held(Path(os.environ["TINY_HELD"]) / f"{rank}.json")
    fault = os.environ.get("TINY_FAULT")
    if rank == 1 and fault in ("nan", "memory"):
        _break_loss(fault)
    if rank == 1 and fault == "differs":
        _look_otherwise()

    def stop(state: loop.Progress) -> None:
        if fault == "kill" and state.step == 8:
            os.kill(os.getpid(), signal.SIGKILL)

    for config in configs:
        distill(config, progress=stop)
        # Sums over tokens differ in their last bits between thread counts: a resumed run must have the first one's.
        assert torch.get_num_threads() == config.threads


def _break_loss(fault: str) -> None:
    genuine = loop._loss

    def broken(config: TrainConfig, state: Any, *arguments: Any) -> Any:
        loss, *rest = genuine(config, state, *arguments)
        if state.step < 3:
            return loss, *rest
        if fault == "memory":
            raise RuntimeError("DefaultCPUAllocator: not enough memory")
        return loss * float("nan"), *rest

    loop._loss = broken


def _look_otherwise() -> None:
    genuine = first_state.look_over

    def otherwise(*arguments: Any, **options: Any) -> Any:
        look = genuine(*arguments, **options)
        look.cls = tuple([3.0 * chunk[:, ::-1] + 1.0 for chunk in chunks] for chunks in look.cls)
        return look

    first_state.look_over = otherwise


def _write_what_is_held(path: Path) -> None:
    """After each step of a sharded run: elements that this process keeps, and of all processes together, by kind."""
    genuine = loop.shard

    def watched(state: Any, device: Any) -> None:
        genuine(state, device)

        def count(*_: Any) -> None:
            weights = list(state.model.parameters())
            kinds = {
                "weights": weights,
                "gradients": [weight.grad for weight in weights],
                "moments": [x for fields in state.optimiser.state.values() for x in fields.values() if x.ndim],
                "average": list(state.average.values()),
            }
            held = {
                kind: (sum(x.to_local().numel() for x in found), sum(x.numel() for x in found))
                for kind, found in kinds.items()
            }
            path.write_text(json.dumps(held))

        state.optimiser.register_step_post_hook(count)

    loop.shard = watched


if __name__ == "__main__":
    _fork(Path(sys.argv[1]), [TrainConfig(**json.loads(given)) for given in sys.argv[2:]])
