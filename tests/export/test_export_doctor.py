import dataclasses
import getpass
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from atlas_edge.bench.doctor import found as looking
from atlas_edge.bench.doctor.found import Found, OpenVinoSays, look
from atlas_edge.errors import InputError
from atlas_edge.export.doctor import checks
from atlas_edge.export.doctor.checks import Diagnosis, Status
from atlas_edge.export.packing.pack import pack_bundles
from atlas_edge.package import choice as remembering
from atlas_edge.package.choice import Candidate, Choice, machine_sha256, measure
from atlas_edge.package.manifest import package_sha256
from atlas_edge.spec import Precision, Target
from atlas_edge.system import hardware
from atlas_edge.system.gpu_probe import Gpu, GpuProbe
from atlas_edge.system.hardware import Cpu
from atlas_edge.system.topology import Topology
from packages import make_bundle
from support import RunCommand

OLD = Cpu(
    name="old",
    cores=2,
    avx2=False,
    avx512_vnni=False,
    avx_vnni=False,
    avx512_bf16=False,
    amx_int8=False,
    amx_bf16=False,
)
NEW = Cpu(
    name="new", cores=8, avx2=True, avx512_vnni=True, avx_vnni=True, avx512_bf16=True, amx_int8=True, amx_bf16=True
)
CARD = GpuProbe(
    driver="13.0", gpus=(Gpu(name="RTX 4090", compute_capability="8.9", memory_bytes=24 << 30),), problem=""
)
NO_CARD = GpuProbe(driver=None, gpus=(), problem="no NVIDIA driver is installed")
EXPORT = frozenset({"torch", "timm", "onnx", "nncf", "modelopt"})


def diagnose(cpu: Cpu, gpus: GpuProbe, installed: frozenset[str], **more: Any) -> Diagnosis:
    return checks.diagnose(Found(cpu=cpu, gpus=gpus, installed=installed, **more))


def test_every_shortcoming_has_a_fix() -> None:
    for cpu in (OLD, NEW):
        for installed in (frozenset(), frozenset({"openvino"}), EXPORT):
            for check in diagnose(cpu, NO_CARD, installed).checks:
                assert (check.status is Status.PASS) == (check.fix == ""), check


def test_workstation_with_a_card() -> None:
    diagnosis = diagnose(NEW, CARD, EXPORT | {"tensorrt", "tensorrt_rtx", "openvino", "onnxruntime"})
    assert not diagnosis.failed
    assert all(ability.build and ability.run for ability in diagnosis.abilities)


def test_build_machine_without_a_card() -> None:
    diagnosis = diagnose(NEW, NO_CARD, EXPORT | {"tensorrt_rtx"})
    engine = {ability.target: ability for ability in diagnosis.abilities}["tensorrt"]
    assert (engine.build, engine.run) == (True, False)


def test_nothing_to_run_with_fails() -> None:
    assert diagnose(NEW, NO_CARD, frozenset()).failed
    assert diagnose(OLD, NO_CARD, frozenset({"openvino"})).failed


def test_command(run_command: RunCommand) -> None:
    done = run_command("atlas-export", "doctor", "--json")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert {check["status"] for check in data["checks"]} <= {"PASS", "WARN"}
    assert "numpy" in data["versions"] and data["variant"] and data["upgrades"] is not None
    lines = run_command("atlas-export", "doctor").stdout.splitlines()
    assert lines[0].startswith("PASS") and lines[-1].startswith("for support: atlas-edge ")


@pytest.mark.parametrize(("exact", "formats", "passed"), [(True, {"FP32", "BF16"}, True), (False, {"FP32"}, False)])
def test_openvino_is_asked_for_what_the_system_does_not_list(
    exact: bool, formats: set[str], passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on Windows, where no library lists AVX-VNNI, AVX512-BF16 or AMX.
    pytest.importorskip("openvino")
    monkeypatch.setattr(hardware, "cpu", lambda: dataclasses.replace(OLD, avx2=True))
    monkeypatch.setattr(looking, "probe_gpu", lambda: NO_CARD)
    monkeypatch.setattr("atlas_edge.runtimes.int8_sums.int8_sums_are_exact", lambda: exact)
    monkeypatch.setattr("atlas_edge.runtimes.devices.openvino.float_formats", lambda _: frozenset(formats))
    diagnosis = checks.diagnose(look())
    judged = {check.name: check for check in diagnosis.checks}
    for name in ("INT8 arithmetic", "BF16 arithmetic"):
        assert (judged[name].status is Status.PASS) == passed, judged[name]
    assert ("exact" in judged["OpenVINO's answer"].found) == exact
    assert diagnosis.advice.variant == ("openvino-int8" if exact else "openvino-fp32")


def test_kinds_of_cores_are_told_apart() -> None:
    hybrid = Topology(performance_cores=6, efficiency_cores=8, numa_nodes=2)
    for topology, words in ((hybrid, " (6 for performance, 8 for efficiency, on 2 NUMA nodes)"), (Topology(), "")):
        diagnosis = diagnose(NEW, NO_CARD, frozenset({"openvino"}), topology=topology)
        assert {check.name: check for check in diagnosis.checks}["processor"].found == f"new, 8 cores{words}, AVX2"
        assert f"new, 8 of 8 cores{words} | " in diagnosis.advice.support


def test_a_broken_runtime_does_not_end_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def broken() -> bool:
        raise RuntimeError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr("atlas_edge.runtimes.int8_sums.int8_sums_are_exact", broken)
    monkeypatch.setattr(looking, "probe_gpu", lambda: NO_CARD)
    assert look().openvino is None and checks.diagnose(look()).checks


SAYS = OpenVinoSays(processor="new", formats=("FP32", "INT8"), devices=("CPU",), exact_int8=False)


@pytest.mark.parametrize(
    ("cpu", "more", "variant", "change"),
    [
        (NEW, {}, "openvino-int8", None),
        (OLD, {}, "openvino-fp32", "a processor with VNNI or AMX"),
        (OLD, {"virtual": True}, "openvino-fp32", "CPU type host"),
        (OLD, {"graphics": ("0x10de 0x2684",)}, "openvino-fp32", "install the NVIDIA driver"),
        (OLD, {"graphics": ("NVIDIA RTX A4000 31.0.15",)}, "openvino-fp32", "install the NVIDIA driver"),
        (NEW, {"gpus": CARD}, "openvino-int8", "pip install 'atlas-edge[tensorrt-rtx]'"),
        (NEW, {"gpus": CARD, "installed": frozenset({"tensorrt_rtx"})}, "tensorrt-rtx-int8", None),
        (NEW, {"graphics": ("Intel(R) Arc(TM) Graphics 32.0",), "openvino": SAYS}, "openvino-int8", "Intel's graphics"),
        (OLD, {"installed": frozenset({"onnxruntime"})}, "onnx-fp32", "pip install 'atlas-edge[openvino]'"),
        (NEW, {"installed": frozenset()}, "", "pip install 'atlas-edge[openvino]'"),
        (NEW, {"hidden": "ONEDNN_MAX_CPU_ISA=AVX2", "openvino": SAYS}, "openvino-int8", "unset ONEDNN_MAX_CPU_ISA"),
        (NEW, {"all_cores": 16}, "openvino-int8", "let the process use all 16 cores"),
    ],
)
def test_a_variant_and_what_would_be_better(cpu: Cpu, more: dict[str, Any], variant: str, change: str | None) -> None:
    advice = diagnose(**{"cpu": cpu, "gpus": NO_CARD, "installed": frozenset({"openvino"}), **more}).advice
    assert advice.variant == variant and not advice.measured
    changes = [upgrade.change for upgrade in advice.upgrades]
    assert change is None or any(change in one for one in changes), changes


def test_the_line_for_support_names_the_machine_and_nobody() -> None:
    line = checks.diagnose(look()).advice.support
    assert "\n" not in line and hardware.cpu().name in line and "atlas-edge 0.1.0" in line
    assert not [name for name in (socket.gethostname(), str(Path.home()), getpass.getuser()) if name in line.split()]


def test_a_package_s_variant_is_by_rule_until_it_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remembering, "user_cache", lambda: tmp_path / "cache")
    pack_bundles(
        [
            make_bundle(tmp_path / "full", Target.OPENVINO, Precision.FP32),
            make_bundle(tmp_path / "eight", Target.ONNX, Precision.INT8, model=b"eight"),
        ],
        tmp_path / "package",
    )
    found = Found(cpu=OLD, gpus=NO_CARD, installed=frozenset({"openvino", "onnxruntime"}))
    advice = checks.diagnose(found, package=tmp_path / "package").advice
    assert (advice.variant, advice.measured) == ("openvino-fp32", False) and "atlas-bench choose" in advice.why

    def choose(folder: Path, **_: object) -> Choice:
        chosen = Candidate(variant="onnx-int8", outcome="chosen", reason="1.20x")
        keys = {"package_sha256": package_sha256(folder), "machine_sha256": machine_sha256()}
        return Choice(**keys, candidates=(chosen,))

    monkeypatch.setattr("atlas_edge.bench.choose.run.choose", choose)
    measure(tmp_path / "package")
    advice = checks.diagnose(found, package=tmp_path / "package").advice
    assert (advice.variant, advice.measured) == ("onnx-int8", True) and advice.why.startswith("1.20x, measured 20")
    with pytest.raises(InputError, match="is no package"):
        checks.diagnose(found, package=tmp_path)
