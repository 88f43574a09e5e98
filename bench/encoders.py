"""Several encoders side by side: what each is called in a report, and what is known of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from atlas_edge.bundle import MANIFEST, model_folder, read_manifest, sha256_file
from atlas_edge.encoder import Encoder
from atlas_edge.errors import UsageError
from atlas_edge.models.timm_config import WEIGHTS
from atlas_edge.package.choice import chosen_bundle
from atlas_edge.spec import EncoderSpec

# What a bundle runs; reports, cards and manifests beside it are not counted as its size.
_MODEL_SUFFIXES = frozenset({".xml", ".bin", ".onnx", ".data", ".engine", ".plan", ".safetensors"})
_NOT_DEPLOYED = frozenset({"selftest.safetensors"})


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderFacts:
    """What a report says of an encoder besides its figures.

    Attributes:
        given: As named on the command line.
        runtime: What executed it.
        spec: Shape and preprocessing.
        target: What a bundle was built for; None for a model run in PyTorch.
        precision: Of a bundle's compute-heavy layers; `fp32` for a model run in PyTorch.
        size_bytes: Of the model files; None where the weights were drawn at random in memory.
        is_reference: Whether the others were compared with it.
        sha256: Of `manifest.json`, which holds the hash of every other file of a bundle (all were checked), or of a
            model folder's weights; None for anything else.
    """

    given: str
    runtime: str
    spec: EncoderSpec
    target: str | None
    precision: str
    size_bytes: int | None
    is_reference: bool
    sha256: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedEncoders:
    """Encoders by label, the reference first; closed on leaving a `with` block.

    Attributes:
        encoders: Label -> encoder.
        facts: Label -> facts.
        reference: Label of the reference, or None.
    """

    encoders: dict[str, Encoder]
    facts: dict[str, EncoderFacts]
    reference: str | None

    @property
    def candidates(self) -> tuple[str, ...]:
        """Labels of all but the reference."""
        return tuple(label for label in self.encoders if label != self.reference)

    def __enter__(self) -> "OpenedEncoders":
        return self

    def __exit__(self, *_: object) -> None:
        for encoder in self.encoders.values():
            encoder.close()


def open_encoders(
    candidates: Sequence[str], reference: str | None = None, *, threads: int | None = None, device: str | None = None
) -> OpenedEncoders:
    """Open encoders and label each by its folder's name, or by as much of its path as tells it from the others.

    Args:
        candidates: Bundle folders, packages, model folders or registry names.
        reference: The full-precision encoder; it may be one of the candidates once more.
        threads: Inference threads; the runtime's own choice when None.
        device: What bundles run on, see `open_bundle`; models in PyTorch stay on the processor.

    Raises:
        UsageError: A candidate is named twice, or no such model.
        InputError: A file is missing, corrupt or does not match its hash.
        RuntimeMissing: A runtime is not installed.
    """
    from atlas_edge.models.load import load_encoder

    devices = [one_bundle(name, device, threads=threads) for name in candidates]
    candidates = [name for name, _ in devices]
    if reference is not None:
        devices.insert(0, one_bundle(reference, device, threads=threads))
        reference = devices[0][0]
    labels = encoder_labels(candidates, reference)
    encoders: dict[str, Encoder] = {}
    facts: dict[str, EncoderFacts] = {}
    for label, (name, on) in zip(labels, devices, strict=True):
        encoders[label] = load_encoder(name, threads=threads, device=on)
        is_reference = reference is not None and label == labels[0]
        facts[label] = _facts(name, encoders[label], is_reference=is_reference)
    return OpenedEncoders(encoders=encoders, facts=facts, reference=None if reference is None else labels[0])


def one_bundle(name: str, device: str | None, *, threads: int | None = None) -> tuple[str, str | None]:
    """What to open, and on what: of a package the variant that is best here."""
    folder, on = chosen_bundle(name, device=device, threads=threads)
    return (name, bundle_device(name, device)) if folder == Path(name) else (str(folder), on)


def bundle_device(name: str, device: str | None) -> str | None:
    """The device of `--device` where a bundle is opened, and none for a model: PyTorch is the yardstick."""
    return device if (Path(name) / MANIFEST).is_file() else None


def encoder_labels(candidates: Sequence[str], reference: str | None = None) -> list[str]:
    """Labels of the reference (where there is one) and the candidates, in this order.

    Raises:
        UsageError: The same candidate twice.
    """
    twice = [name for index, name in enumerate(candidates) if name in candidates[:index]]
    if twice:
        raise UsageError(f"{twice[0]} is named twice", hint="name each bundle once; give the reference by --reference")
    labels = _shortest(candidates)
    if reference is None:
        return labels
    own = _shortest([reference])[0]
    return [f"{own} (reference)" if own in labels else own, *labels]


def _shortest(names: Sequence[str]) -> list[str]:
    parts = [Path(name.removeprefix("local-dir:").rstrip("/")).parts for name in names]
    depth = 1
    while True:
        labels = ["/".join(found[-depth:]) for found in parts]
        if len(set(labels)) == len(labels) or depth > max(len(found) for found in parts):
            return labels
        depth += 1


def _facts(name: str, encoder: Encoder, *, is_reference: bool) -> EncoderFacts:
    folder = Path(name.removeprefix("local-dir:"))
    manifest = read_manifest(folder) if (folder / MANIFEST).is_file() else None
    return EncoderFacts(
        given=name,
        runtime=encoder.runtime,
        spec=encoder.spec,
        target=None if manifest is None else manifest.target.value,
        precision="fp32" if manifest is None else manifest.precision.value,
        size_bytes=_size_bytes(_files(folder)) if folder.is_dir() else None,
        is_reference=is_reference,
        sha256=_sha256(folder),
    )


def _sha256(folder: Path) -> str | None:
    found = [folder / name for name in (MANIFEST, WEIGHTS) if (folder / name).is_file()]
    return sha256_file(found[0]) if found else None


def _files(folder: Path) -> Iterable[Path]:
    return (model_folder(folder) if (folder / MANIFEST).is_file() else folder).iterdir()


def _size_bytes(files: Iterable[Path]) -> int | None:
    sizes = [path.stat().st_size for path in files if path.suffix in _MODEL_SUFFIXES and path.name not in _NOT_DEPLOYED]
    return sum(sizes) or None
