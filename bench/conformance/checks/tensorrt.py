"""The ONNX parsers of TensorRT and TensorRT-RTX, which need no GPU."""

import json
import subprocess
from functools import partial

from atlas_edge.bench.conformance.checks.tensorrt_child import ParseAnswer, ParseRequest
from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.runtimes.tensorrt_library import ENTERPRISE, RTX, TensorRTLibrary
from atlas_edge.system.child import run_module
from atlas_edge.system.hardware import installed_module

_CHILD = "atlas_edge.bench.conformance.checks.tensorrt_child"
_TIMEOUT_S = 600.0


def _parse(library: TensorRTLibrary, subject: Subject) -> Answer:
    if subject.onnx is None:
        raise Skip("this bundle holds no ONNX graph")
    module = installed_module(library.module)
    assert module is not None
    request = ParseRequest(module=module, onnx=str(subject.onnx))
    try:
        # In a process of its own: without a driver these libraries may end theirs.
        done = run_module(_CHILD, stdin=json.dumps(request), timeout_s=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Answer(passed=False, said=f"no answer within {_TIMEOUT_S:.0f} s")
    if done.returncode:
        return Answer(passed=False, said=f"ended with {done.returncode}: {' '.join(done.stderr.split())[-200:]}")
    answer: ParseAnswer = json.loads(done.stdout.splitlines()[-1])
    if answer["faults"]:
        return Answer(passed=False, said="; ".join(answer["faults"][:3]))
    return Answer(passed=True, said=f"{answer['layers']} layers; nothing was run")


def _check(library: TensorRTLibrary) -> Check:
    return Check(
        program=library.title,
        distribution=library.module.replace("_", "-"),
        asked="parses the graph",
        run=partial(_parse, library),
        command=f'python -c "import {library.module} as t; l = t.Logger(); n = t.Builder(l).create_network(); '
        "p = t.OnnxParser(n, l); print(p.parse_from_file('MODEL'))\"",
    )


CHECKS = tuple(map(_check, (RTX, ENTERPRISE)))
