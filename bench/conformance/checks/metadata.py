"""What a model file says of itself, as the library that opens it reads it."""

from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.runtimes.openvino_library import openvino_library
from atlas_edge.runtimes.plain import model_notes

_OURS = "atlas_edge_"


def _in_onnx(subject: Subject) -> Answer:
    import onnx

    if subject.onnx is None:
        raise Skip("this bundle holds no ONNX graph")
    model = onnx.load(subject.onnx, load_external_data=False)
    return _compared(subject, {entry.key: entry.value for entry in model.metadata_props})


def _in_openvino(subject: Subject) -> Answer:
    if subject.model.suffix != ".xml":
        raise Skip("this bundle holds no file of OpenVINO's")
    model = openvino_library().Core().read_model(str(subject.model))
    # Its own entries are nested and have no plain value.
    return _compared(subject, {key: str(entry.value) for key, entry in model.get_rt_info().items() if _is_ours(key)})


def _is_ours(key: str) -> bool:
    return key.startswith(_OURS)


def _compared(subject: Subject, found: dict[str, str]) -> Answer:
    manifest = subject.manifest
    wanted = model_notes(manifest.encoder, manifest.model.licence, notice=manifest.notice)
    found = {key: value for key, value in found.items() if _is_ours(key) and key in wanted}
    if f"{_OURS}mean" not in found:
        raise Skip("the file says nothing of its input: it is the graph of an engine, or was made before files did")
    differ = [
        f"{key.removeprefix(_OURS)} {found.get(key, 'missing')}, the manifest says {value}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    said = (
        "; ".join(differ) or f"{len(found)} entries (px, µm per pixel, mean, std, pooling, licence …) as the manifest"
    )
    return Answer(passed=not differ, said=said)


CHECKS = (
    Check(
        program="onnx",
        distribution="onnx",
        asked="metadata as the manifest",
        run=_in_onnx,
        command="python -c \"import onnx; print(onnx.load('MODEL', load_external_data=False).metadata_props)\"",
    ),
    Check(
        program="OpenVINO",
        distribution="openvino",
        asked="metadata as the manifest",
        run=_in_openvino,
        command="python -c \"import openvino; print(openvino.Core().read_model('MODEL').get_rt_info())\"",
    ),
)
