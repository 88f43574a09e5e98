"""Which variant of a package is chosen, on encoders whose speed and error are known."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from atlas_edge.bench.choose import run as under_test
from atlas_edge.bench.choose.rows import choice_rows
from atlas_edge.bench.cli import app
from atlas_edge.bench.encoders import one_bundle
from atlas_edge.bench.speed.processor_load import LoadShares
from atlas_edge.bundle import open_bundle, sha256_file
from atlas_edge.cli import run_app
from atlas_edge.embed import workers
from atlas_edge.encoder import Capabilities
from atlas_edge.errors import ChecksumError, GateFailed, InputError, RuntimeMissing
from atlas_edge.export.packing.pack import pack_bundles
from atlas_edge.options import Running
from atlas_edge.package import choice as remembering
from atlas_edge.package.choice import Choice, chosen_bundle, measure, remembered
from atlas_edge.spec import Precision, Target
from packages import KnownEncoder, make_bundle

OPENVINO, ONNX = Target.OPENVINO, Target.ONNX
VARIANTS = {
    "openvino-fp32": (OPENVINO, Precision.FP32, b"full"),
    "openvino-bf16": (OPENVINO, Precision.BF16, b"full"),
    "openvino-int8": (OPENVINO, Precision.INT8, b"eight"),
    "onnx-fp32": (ONNX, Precision.FP32, b"full for onnx"),
    "onnx-int8": (ONNX, Precision.INT8, b"eight for onnx"),
}
Outcomes = dict[str, str]
Here = Callable[..., None]


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    made = [
        make_bundle(folder / name, target, precision, model=model, noise=0.01 if precision is Precision.INT8 else 0.0)
        for name, (target, precision, model) in VARIANTS.items()
    ]
    pack_bundles(made, folder / "package")
    return folder / "package"


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, clock: None) -> Here:
    """Say what each variant is on this machine: seconds a tile, or an error; a home of its own."""
    monkeypatch.setattr(remembering, "user_cache", lambda: tmp_path / "cache")
    monkeypatch.setattr(remembering, "_measured", {})

    def set_up(**encoders: "KnownEncoder | Exception | float") -> None:
        known = {name.replace("_", "-"): encoder for name, encoder in encoders.items()}

        def open_one(folder: Path, *_: object, device: str | None = None, **__: object) -> KnownEncoder:
            found = known.get(folder.name, RuntimeMissing(f"{folder.name} is not installed"))
            if isinstance(found, Exception):
                raise found
            if isinstance(found, KnownEncoder):
                found.closed = False
                return found
            return KnownEncoder(folder.name, seconds=found, noise=0.01 if "int8" in folder.name else 0.0)

        monkeypatch.setattr(under_test, "open_verified", open_one)
        monkeypatch.setattr("atlas_edge.bundle.open_verified", open_one)

    return set_up


def outcomes(choice: Choice) -> Outcomes:
    return {candidate.variant: candidate.outcome for candidate in choice.candidates}


def test_the_fastest_whose_gain_is_real_is_chosen(package: Path, here: Here) -> None:
    here(openvino_fp32=0.010, openvino_bf16=0.008, openvino_int8=0.004, onnx_int8=0.006, onnx_fp32=0.011)
    choice = measure(package)
    assert outcomes(choice) == {
        "openvino-fp32": "passed", "onnx-fp32": "no gain", "openvino-bf16": "passed", "openvino-int8": "chosen",
        "onnx-int8": "no gain",
    }  # fmt: skip
    bf16, int8 = choice.candidates[2], choice.candidates[3]
    assert bf16.against == "openvino-fp32" and bf16.ratio == pytest.approx((1.25, 1.25, 1.25))
    assert int8.against == "openvino-bf16" and int8.ratio == pytest.approx((2.0, 2.0, 2.0))
    assert choice.candidates[0].tiles_per_s == pytest.approx(100) and int8.tiles_per_s == pytest.approx(250)
    assert "2.00x [2.00, 2.00] of openvino-bf16" in int8.reason


def test_without_a_gain_it_is_fp32(package: Path, here: Here) -> None:
    # 4 % faster is not worth the bits, unless they are as many.
    here(openvino_fp32=0.0100, openvino_bf16=0.0100, openvino_int8=0.0096, onnx_int8=0.02, onnx_fp32=0.01)
    choice = measure(package)
    assert choice.chosen is not None and choice.chosen.variant == "openvino-fp32"
    assert choice.chosen.reason == "the most exact, and nothing gains on it"
    assert set(outcomes(choice).values()) == {"chosen", "no gain"}
    here(openvino_fp32=0.0100, openvino_bf16=0.0093, openvino_int8=0.0093, onnx_int8=0.0093, onnx_fp32=0.0096)
    assert (chosen := measure(package).chosen) is not None and chosen.variant == "onnx-fp32"


def test_what_computes_something_else_here_is_dropped_however_fast(package: Path, here: Here) -> None:
    wrong, broken = KnownEncoder("w", seconds=0.001, noise=0.3), KnownEncoder("b", seconds=0.001, noise=float("nan"))
    here(openvino_fp32=0.01, openvino_bf16=broken, openvino_int8=wrong, onnx_int8=RuntimeMissing("no onnxruntime"))
    choice = measure(package)
    assert outcomes(choice) == {
        "openvino-fp32": "chosen", "onnx-fp32": "not here", "openvino-bf16": "wrong", "openvino-int8": "wrong",
        "onnx-int8": "not here",
    }  # fmt: skip
    reasons = [candidate.reason for candidate in choice.candidates if candidate.variant != "onnx-fp32"]
    assert reasons[0] == "the only one that is right here"
    assert "not finite" in reasons[1] and "allowed" in reasons[2] and reasons[3] == "no onnxruntime"
    text = "\n".join(choice_rows("package", choice).notes)
    assert all(reason in text for reason in reasons)
    assert wrong.closed and broken.closed


class TooSmall(KnownEncoder):
    """A device on which the selftest's eight tiles fit, and a whole batch does not."""

    capabilities = Capabilities(batch=16)

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        if len(tiles) > 8:
            raise InputError("out of device memory")
        return super().encode(tiles)


def test_what_opens_and_does_not_compile_is_not_here(package: Path, here: Here) -> None:
    class Uncompiled(KnownEncoder):
        def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
            raise InputError("OpenVINO cannot compile it")

    here(openvino_fp32=Uncompiled(), onnx_fp32=0.01)
    choice = measure(package)
    assert choice.chosen is not None and choice.chosen.variant == "onnx-fp32"
    first = choice.candidates[0]
    assert (first.variant, first.outcome, first.reason) == ("openvino-fp32", "not here", "OpenVINO cannot compile it")


def test_a_device_that_a_batch_does_not_fit_on_is_passed_over(package: Path, here: Here) -> None:
    here(openvino_fp32=0.01, openvino_int8=TooSmall("small", seconds=0.001, noise=0.01))
    choice = measure(package)
    assert choice.chosen is not None and choice.chosen.variant == "openvino-fp32"
    assert [one.reason for one in choice.candidates if one.variant == "openvino-int8"] == ["out of device memory"]


def test_model_files_that_run_the_same_way_are_timed_once(package: Path, here: Here) -> None:
    same = "OpenVINO f32"
    here(openvino_fp32=KnownEncoder(same), openvino_bf16=KnownEncoder(same, seconds=0.001), openvino_int8=0.02)
    choice = measure(package)
    assert outcomes(choice)["openvino-bf16"] == "same"
    assert "openvino-fp32" in choice.candidates[2].reason


def test_nothing_right_is_told_from_nothing_here(package: Path, here: Here, tmp_path: Path) -> None:
    here(openvino_int8=KnownEncoder(noise=0.5))
    with pytest.raises(GateFailed, match="no variant computes here"):
        open_bundle(package)
    here()
    with pytest.raises(RuntimeMissing, match="onnx-int8 is not installed"):
        open_bundle(package)
    assert not (tmp_path / "cache").exists()


def test_it_is_measured_once_and_remembered_for_this_package_on_this_machine(
    package: Path, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here(openvino_fp32=0.01, openvino_int8=0.002)
    assert chosen_bundle(package)[0] == package / "openvino-int8"
    # From now on it would be another one.
    here(openvino_fp32=0.01, openvino_int8=0.02)
    monkeypatch.setattr(remembering, "_measured", {})
    assert chosen_bundle(package)[0] == package / "openvino-int8"
    assert open_bundle(package).runtime == "openvino-int8"
    assert remembered(package, device="GPU") is None and remembered(package, threads=2) is None
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    assert remembered(package) is None
    assert chosen_bundle(package)[0] == package / "openvino-fp32"
    assert len(list((tmp_path / "cache" / "choices").iterdir())) == 2


def test_commands_open_the_chosen_variant_and_label_embeddings_with_its_hash(package: Path, here: Here) -> None:
    here(openvino_fp32=0.01, openvino_int8=0.002)
    chosen = package / "openvino-int8"
    assert one_bundle(str(package), None) == (str(chosen), None)
    assert workers.one_bundle(str(package), Running()) == (str(chosen), Running())
    assert workers.read_spec(str(chosen))[1] == sha256_file(chosen / "manifest.json")
    for name in (str(chosen), "atlas2-demo", "hf-hub:organisation/name"):
        assert workers.one_bundle(name, Running(device="GPU")) == (name, Running(device="GPU"))


def test_a_busy_machine_is_told(
    package: Path, here: Here, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shares = LoadShares(own=0.1, others=0.9, stolen=0.0)
    monkeypatch.setattr(under_test.ProcessorLoad, "since", lambda _: shares)
    here(openvino_fp32=0.01, openvino_int8=0.002)
    chosen_bundle(package)
    assert "other programs used 90% of the processor" in caplog.text and "choose --again" in caplog.text
    choice = remembered(package)
    assert choice is not None and "used 90%" in choice_rows("package", choice).notes[-1]


def test_watchers_on_different_gpus_agree(package: Path, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    here(openvino_fp32=0.01, openvino_int8=0.002)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    measure(package)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert remembered(package) is not None
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert remembered(package) is None


def test_a_memory_that_does_not_fit_is_none(
    package: Path, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here(openvino_fp32=0.01, openvino_int8=0.002)
    measure(package)
    monkeypatch.setattr(remembering, "_measured", {})
    (file,) = (tmp_path / "cache" / "choices").iterdir()
    whole = file.read_text()
    damages: list[Callable[[str], str]] = [
        lambda text: text[: len(text) // 2],
        lambda text: "[" * 100_000,
        lambda text: text.replace("openvino-int8", "../elsewhere"),
        lambda text: text.replace("openvino-int8", "openvino-fp16"),
        *(
            lambda text, other=other: json.dumps(json.loads(text) | other)  # type: ignore[misc]
            for other in (
                {"package_sha256": "0" * 64},
                {"machine_sha256": "0" * 64},
                {"candidates": []},
                {"asked": "GPU"},
            )
        ),
    ]
    for damage in damages:
        file.write_text(damage(whole))
        assert remembered(package) is None, damage(whole)
    assert chosen_bundle(package)[0] == package / "openvino-int8"
    assert remembered(package) is not None


def test_a_tampered_package_is_refused_before_and_after_it_is_measured(here: Here, tmp_path: Path) -> None:
    made = [make_bundle(tmp_path / "a"), make_bundle(tmp_path / "b", ONNX, Precision.INT8, model=b"x")]
    pack_bundles(made, tmp_path / "package")
    here(onnx_fp32=0.01, onnx_int8=0.001)
    weights = tmp_path / "package" / "onnx-int8" / "weights.bin"
    whole = weights.read_bytes()
    weights.write_bytes(b"y" + whole[1:])
    with pytest.raises(ChecksumError, match=r"weights\.bin"):
        open_bundle(tmp_path / "package")
    weights.write_bytes(whole)
    assert open_bundle(tmp_path / "package").runtime == "onnx-int8"
    weights.write_bytes(b"y" + whole[1:])
    with pytest.raises(ChecksumError, match=r"weights\.bin"):
        open_bundle(tmp_path / "package")


def test_a_home_that_cannot_be_written_costs_a_measurement_only(
    package: Path, here: Here, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(remembering, "user_cache", lambda: tmp_path / "file")
    here(openvino_fp32=0.01, openvino_int8=0.002)
    assert chosen_bundle(package)[0] == package / "openvino-int8"
    here(openvino_fp32=0.01, openvino_int8=0.02)
    # A process does not change its mind.
    assert chosen_bundle(package)[0] == package / "openvino-int8"
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize("command", ["choose NAME", "speed NAME", "pace NAME", "accuracy NAME --eval synthetic:8"])
def test_less_than_one_thread_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_app(app, [*command.split(), "--threads", "0"]) == 2
    assert 'Invalid value "0" for --threads. Must be >= 1.' in capsys.readouterr().err
