import dataclasses
import json

import pytest

from atlas_edge.export.doctor.checks import Status, diagnose
from atlas_edge.runtimes.gpu_probe import Gpu, GpuProbe
from atlas_edge.system import hardware
from atlas_edge.system.hardware import Cpu
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
    assert "numpy" in data["versions"]
    assert "PASS" in run_command("atlas-export", "doctor").stdout


@pytest.mark.parametrize(("exact", "formats", "passed"), [(True, {"FP32", "BF16"}, True), (False, {"FP32"}, False)])
def test_openvino_is_asked_for_what_the_system_does_not_list(
    exact: bool, formats: set[str], passed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on Windows, where no library lists AVX-VNNI, AVX512-BF16 or AMX.
    pytest.importorskip("openvino")
    monkeypatch.setattr(hardware, "cpu", lambda: dataclasses.replace(OLD, avx2=True))
    monkeypatch.setattr("atlas_edge.runtimes.int8_sums.int8_sums_are_exact", lambda: exact)
    monkeypatch.setattr("atlas_edge.runtimes.devices.openvino.float_formats", lambda: frozenset(formats))
    checks = {check.name: check for check in diagnose(None, NO_CARD, frozenset({"openvino"})).checks}
    for name in ("INT8 arithmetic", "BF16 arithmetic"):
        assert (checks[name].status is Status.PASS) == passed, checks[name]


def test_a_broken_runtime_does_not_end_the_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino")

    def broken() -> bool:
        raise RuntimeError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr("atlas_edge.runtimes.int8_sums.int8_sums_are_exact", broken)
    assert diagnose(None, NO_CARD, frozenset({"openvino"})).checks
