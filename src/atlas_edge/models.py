"""Full-precision models in PyTorch: from a registry name, a timm folder or the Hugging Face hub.

Nothing is unpickled and no code of a model folder runs: weights are safetensors, the architecture must be one that
the installed timm knows, and only arguments that shape the network are taken from `config.json`.
"""

import json
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from atlas_edge.bundle import MANIFEST, open_bundle, sha256_file
from atlas_edge.encoder import Encoder
from atlas_edge.errors import ChecksumError, InputError, RuntimeMissing, UsageError
from atlas_edge.interrupts import held_interrupts
from atlas_edge.manifest import ModelProvenance
from atlas_edge.spec import EncoderSpec, Pooling
from atlas_edge.students import (
    EMBEDDED,
    OWN_NAMES,
    STUDENT_MPP,
    STUDENT_TILE_PX,
    STUDENTS,
    EmbeddedStudent,
    find_student,
)

if TYPE_CHECKING:
    from torch import nn

    from atlas_edge.encoder_module import EncoderModule

_LOGGER = logging.getLogger("atlas_edge")
DEFAULT_MODEL = "atlas2-demo"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"

# timm.create_model would fetch or unpickle a file for these.
_REFUSED_ARGUMENTS = frozenset(
    {"pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "scriptable", "device"}
)
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_STD = (0.229, 0.224, 0.225)
# LayerScale of a random-weight student: 0.1 for depth up to 18 (Touvron et al. 2021, CaiT, section 2.1). DINOv2's
# own 1e-5 would leave the blocks of an untrained network without a say, and any precision would look lossless.
_RANDOM_LAYER_SCALE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A network with what is known of it.

    Attributes:
        module: uint8 tiles `(B, H, W, 3)` in, float32 embeddings `(B, D)` out; in eval mode.
        spec: Shape and preprocessing.
        provenance: Where the weights came from.
    """

    module: "EncoderModule"
    spec: EncoderSpec
    provenance: ModelProvenance


def load_encoder(name: str, *, threads: int | None = None) -> Encoder:
    """Open a bundle folder in its own runtime, or any other model in PyTorch.

    Raises:
        InputError: A file is missing, corrupt or does not match its hash.
        RuntimeMissing: The runtime is not installed.
        UsageError: No such model.
    """
    if (Path(name) / MANIFEST).is_file():
        return open_bundle(name, threads=threads)
    from atlas_edge.runtimes.torch import TorchEncoder

    model = load_model(name)
    return TorchEncoder(model.module, model.spec, threads=threads)


def load_model(
    name: str,
    *,
    patch: int | None = None,
    registers: int | None = None,
    pooling: Pooling | None = None,
    seed: int = 0,
) -> LoadedModel:
    """Load a full-precision model.

    Args:
        name: A registry name (`atlas2-s`, `atlas2-demo`), a folder with `config.json` and `model.safetensors` (timm's
            form, with or without the prefix `local-dir:`), or `hf-hub:organisation/name`, which uses the network.
        patch: Patch side of a registry student, pixels.
        registers: Register tokens of a registry student.
        pooling: `cls` or `cls+mean`; the model's own when None.
        seed: Seed of a registry student's random weights.

    Raises:
        UsageError: No such model, or an option that it does not have.
        InputError: A file is missing, truncated, or does not fit the architecture.
        RuntimeMissing: PyTorch or timm is not installed.
    """
    if name in OWN_NAMES and (Path(name) / CONFIG).is_file():
        _LOGGER.warning("%s is a model of atlas-edge's own; to read the folder of that name, write ./%s", name, name)
    if name in STUDENTS:
        return _registry_student(name, patch=patch, registers=registers, pooling=pooling, seed=seed)
    if patch is not None or registers is not None:
        raise UsageError(f"--patch and --registers shape a registry student; {name} has its own", hint="leave them out")
    if name in EMBEDDED:
        return _embedded_student(EMBEDDED[name], pooling=pooling)
    if name.startswith("hf-hub:"):
        folder = _download(name.removeprefix("hf-hub:"))
        return _checkpoint(folder, name.rpartition("/")[2], source="hf-hub", pooling=pooling)
    folder = Path(name.removeprefix("local-dir:"))
    if not folder.exists():
        raise UsageError(
            f"no model is called {name!r}, and no such folder exists",
            hint=f"give {', '.join([*EMBEDDED, *STUDENTS])}, a folder with {CONFIG} and {WEIGHTS}, or "
            "hf-hub:organisation/name",
        )
    return _checkpoint(folder, folder.resolve().name, source="checkpoint", pooling=pooling)


def _registry_student(
    name: str, *, patch: int | None, registers: int | None, pooling: Pooling | None, seed: int
) -> LoadedModel:
    student = find_student(name, patch=patch, registers=registers)
    timm, torch = _timm_and_torch()
    arguments: dict[str, Any] = {
        "img_size": STUDENT_TILE_PX,
        "patch_size": student.patch,
        "reg_tokens": student.registers,
        "init_values": _RANDOM_LAYER_SCALE,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = timm.create_model(student.architecture, pretrained=False, num_classes=0, **arguments)
    spec = EncoderSpec(
        name=name,
        architecture=student.architecture,
        embed_dim=_embed_dim(backbone, pooling or "cls"),
        tile_px=STUDENT_TILE_PX,
        mpp=STUDENT_MPP,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        pooling=pooling or "cls",
        patch=student.patch,
        registers=student.registers,
        random_weights=True,
    )
    provenance = ModelProvenance(name=name, source="registry", licence="apache-2.0", seed=seed)
    return _loaded(backbone, spec, provenance)


def _embedded_student(student: EmbeddedStudent, *, pooling: Pooling | None) -> LoadedModel:
    for name, expected in ((WEIGHTS, student.weights_sha256), (CONFIG, student.config_sha256)):
        path = student.folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing", hint="install atlas-edge again")
        found = sha256_file(path)
        if found != expected:
            raise ChecksumError(
                f"{path} has SHA-256 {found[:12]}…, expected {expected[:12]}…", hint="install atlas-edge again"
            )
    loaded = _checkpoint(student.folder, student.name, source="checkpoint", pooling=pooling)
    return replace(
        loaded,
        spec=loaded.spec.model_copy(update={"demonstration": True}),
        provenance=loaded.provenance.model_copy(update={"source": "registry"}),
    )


def _checkpoint(folder: Path, name: str, *, source: str, pooling: Pooling | None) -> LoadedModel:
    config = _read_config(folder)
    architecture, arguments = config["architecture"], config["model_args"]
    cfg = config["pretrained_cfg"]
    timm, _ = _timm_and_torch()
    if not timm.is_model(architecture):
        raise InputError(
            f"{folder / CONFIG} names architecture {architecture!r}, which timm {timm.__version__} does not have",
            hint="pip install --upgrade timm",
        )
    try:
        backbone = timm.create_model(architecture, pretrained=False, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError) as error:
        raise InputError(
            f"{folder / CONFIG}: timm cannot build {architecture} from its model_args: {error}",
            hint="compare model_args with timm's documentation of that architecture",
        ) from error
    _load_weights(backbone, folder / WEIGHTS)
    backbone.reset_classifier(0)
    own = _own_pooling(backbone, folder)
    pooling = pooling or own
    if pooling != own and not hasattr(backbone, "num_prefix_tokens"):
        raise UsageError(
            f"{architecture} has no CLS token: pooling {pooling} cannot be had", hint="leave out --pooling"
        )
    patch_embed = getattr(backbone, "patch_embed", None)
    side = patch_embed.img_size[0] if patch_embed is not None else int(cfg["input_size"][-1])
    spec = EncoderSpec(
        name=name,
        architecture=architecture,
        embed_dim=_embed_dim(backbone, pooling),
        tile_px=side,
        mpp=cfg.get("mpp"),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
        pooling=pooling,
        patch=patch_embed.patch_size[0] if patch_embed is not None else None,
        registers=getattr(backbone, "num_reg_tokens", 0),
    )
    provenance = ModelProvenance(
        name=name,
        source="hf-hub" if source == "hf-hub" else "checkpoint",
        sha256=sha256_file(folder / WEIGHTS),
        licence=cfg.get("license"),
    )
    return _loaded(backbone, spec, provenance)


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not path.is_file():
        raise InputError(
            f"{folder} is no model folder: it has no {CONFIG}", hint=f"give a folder with {CONFIG} and {WEIGHTS}"
        )
    try:
        config = json.loads(path.read_bytes())
        architecture = str(config["architecture"])
        cfg = dict(config.get("pretrained_cfg") or {})
        arguments = dict(config.get("model_args") or {})
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} cannot be read: {error!r}", hint="give timm's form: architecture, model_args, pretrained_cfg"
        ) from error
    refused = sorted(_REFUSED_ARGUMENTS & arguments.keys())
    if refused:
        raise InputError(
            f"{path}: model_args holds {refused[0]!r}, which could load another file", hint="remove it from model_args"
        )
    arguments.setdefault("num_classes", config.get("num_classes", 0))
    if "global_pool" in config:
        arguments.setdefault("global_pool", config["global_pool"])
    cfg.setdefault("mean", _IMAGENET_MEAN)
    cfg.setdefault("std", _IMAGENET_STD)
    cfg.setdefault("input_size", (3, STUDENT_TILE_PX, STUDENT_TILE_PX))
    return {"architecture": architecture, "model_args": arguments, "pretrained_cfg": cfg}


def _load_weights(backbone: "nn.Module", path: Path) -> None:
    import safetensors
    import torch
    from safetensors.torch import load_file

    if not path.is_file():
        raise InputError(
            f"{path} is missing", hint="save the weights as safetensors; pickled checkpoints are never loaded"
        )
    try:
        state = load_file(path)
    except (safetensors.SafetensorError, ValueError) as error:
        raise InputError(
            f"{path} is no readable safetensors file ({error})", hint="it may be truncated: copy it again"
        ) from error
    try:
        backbone.load_state_dict(state, strict=True)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise InputError(
            f"{path} does not fit the architecture: {lines[1] if len(lines) > 1 else lines[0]}",
            hint="check architecture and model_args in config.json",
        ) from error
    broken = [name for name, tensor in state.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise InputError(f"{path}: {broken[0]} holds NaN or infinity", hint="train or save the model again")


def _own_pooling(backbone: "nn.Module", folder: Path) -> Pooling:
    own = getattr(backbone, "global_pool", "avg")
    if not isinstance(own, str):  # a CNN's pooling is a module
        return "avg"
    if own in ("token", ""):
        return "cls"
    if own == "avg":
        return "avg"
    raise InputError(f"{folder}: pooling {own!r} is not supported", hint="choose global_pool token or avg")


def _embed_dim(backbone: "nn.Module", pooling: Pooling) -> int:
    width = int(cast(int, backbone.num_features))
    return 2 * width if pooling == "cls+mean" else width


def _loaded(backbone: "nn.Module", spec: EncoderSpec, provenance: ModelProvenance) -> LoadedModel:
    from atlas_edge.encoder_module import EncoderModule

    return LoadedModel(module=EncoderModule(backbone, spec).eval(), spec=spec, provenance=provenance)


def _download(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise RuntimeMissing("huggingface_hub is not installed", hint="pip install 'atlas-edge[torch]'") from error
    try:
        hf_hub_download(repository, CONFIG)
        return Path(hf_hub_download(repository, WEIGHTS)).parent
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise InputError(
            f"hf-hub:{repository}: {str(error).splitlines()[0]}",
            hint=f"copy {CONFIG} and {WEIGHTS} into a folder and give that folder",
        ) from error


def _timm_and_torch() -> tuple[Any, Any]:
    try:
        with held_interrupts():
            import timm
            import torch
    except ImportError as error:
        raise RuntimeMissing(
            f"a full-precision model needs PyTorch and timm: {error}", hint="pip install 'atlas-edge[torch]'"
        ) from error
    return timm, torch
