"""Kill a training run with SIGKILL at random moments, go on each time, and compare it with a run left alone.

    python tests/distill/training/kill_five_times.py TEACHER TILES STUDENT SCRATCH [SEED] [THREADS]

Prints JSON: when each kill came (so many steps into that run, and seconds more), the last step that it had logged,
and whether every step's loss and every weight equal those of the run left alone. The runs are forked from one process
that has imported everything but computed nothing, so that a run's start costs little.
"""

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import timm  # noqa: F401 - so that every fork has it
import torch
import torch.utils.tensorboard
from safetensors.torch import load_file

from atlas_edge.distill.training import loop
from atlas_edge.distill.training.config import TrainConfig
from atlas_edge.distill.training.metrics import read_metrics
from atlas_edge.distill.training.run import distill, run_folder

KILLS = 5
STEPS = 160


def main(teacher: str, tiles: str, student: str, scratch: Path, seed: int, threads: int) -> None:
    """Run, kill, go on, compare, print."""
    loop._LOG_EVERY = 1
    generator = random.Random(seed)
    whole, broken = (_config(teacher, tiles, student, scratch / name, threads) for name in ("whole", "broken"))
    process = _start(whole)
    begun = time.monotonic()
    _wait(process[0])
    took = time.monotonic() - begun
    kills = []
    for _ in range(KILLS):
        # Steps of all five together stay below those of a whole run, so that each of them meets a run under way.
        steps, moment = generator.randint(1, STEPS // KILLS - 2), generator.uniform(0.0, took / STEPS)
        process, reading = _start(broken)
        for _ in range(steps - 1):
            os.read(reading, 1)
        time.sleep(moment)
        os.kill(process, signal.SIGKILL)
        killed = os.WIFSIGNALED(os.waitpid(process, 0)[1])
        last = read_metrics(run_folder(broken.out))[-1]["step"]
        kills.append({"after_steps": steps, "after_s": round(moment, 3), "killed": killed, "logged": last})
    _wait(_start(broken)[0])
    losses = [{row["step"]: row["loss"] for row in read_metrics(run.out)} for run in (whole, broken)]
    weights = [load_file(run.out / "model.safetensors") for run in (whole, broken)]
    print(
        json.dumps(
            {
                "seed": seed,
                "training_s": round(took, 2),
                "kills": kills,
                "steps": len(losses[0]),
                "first_loss": losses[0][1],
                "last_loss": losses[0][STEPS],
                "losses_equal": losses[0] == losses[1],
                "weights_equal": all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0]),
            },
            indent=2,
        )
    )


def _config(teacher: str, tiles: str, student: str, out: Path, threads: int) -> TrainConfig:
    return TrainConfig(
        teachers=(teacher,),
        tiles=(tiles,),
        student=student,
        out=out,
        steps=STEPS,
        batch=8,
        fit_heads=False,
        lr=1e-3,
        warmup=10,
        views=2,
        checkpoint_every=7,
        threads=threads,
        half=False,
    )


def _start(config: TrainConfig) -> tuple[int, int]:
    """Fork a run; returns, once it has done its first step, its process and what to read a byte a further step from."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(reading)
        distill(config, progress=lambda _: os.write(writing, b"."))
        os._exit(0)
    os.close(writing)
    os.read(reading, 1)  # and left open: the run goes on writing
    return process, reading


def _wait(process: int) -> None:
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code:
        raise SystemExit(f"a run that was left alone ended with {code}")


if __name__ == "__main__":
    arguments = [*sys.argv[1:], *("0", "1")[len(sys.argv) - 5 :]]
    main(*arguments[:3], Path(arguments[3]), int(arguments[4]), int(arguments[5]))
