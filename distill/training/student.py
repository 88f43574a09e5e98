"""The network in training, and the folder in timm's own form that it becomes."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F

from atlas_edge.distill.closed_form.inherit import inherit
from atlas_edge.distill.closed_form.inheritable import check_parts
from atlas_edge.distill.targets.losses import TeacherHead
from atlas_edge.distill.targets.phis import TargetTransform
from atlas_edge.errors import UsageError
from atlas_edge.manifest import ModelProvenance
from atlas_edge.models.load import load_model
from atlas_edge.models.students import EMBEDDED, STUDENT_TILE_PX, STUDENTS, find_student
from atlas_edge.models.timm_config import CONFIG, WEIGHTS
from atlas_edge.spec import Pooling

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from atlas_edge.distill.training.config import FitOptions, HeadName, TrainConfig

_BATCH = 32
_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What timm needs to build the student again.

    Attributes:
        name: timm architecture.
        arguments: Arguments that shape it.
        mean: Normalisation, 0-1 scale.
        std: The same.
        tile_px: Input side.
        mpp: µm per pixel, or None.
        mpp_range: Finest and coarsest µm per pixel, where all between them are learnt; None otherwise.
        pooling: `cls`, or `cls+mean`: CLS beside the mean patch token.
    """

    name: str
    arguments: dict[str, Any]
    mean: tuple[float, float, float] = _MEAN
    std: tuple[float, float, float] = _STD
    tile_px: int = 224
    mpp: float | None = None
    mpp_range: tuple[float, float] | None = None
    pooling: Pooling = "cls"

    def of_tiles(self, mpp_range: tuple[float, float] | None) -> "Architecture":
        """As it is once it has learnt tiles of a range of µm per pixel; None are tiles of single ones."""
        return self if mpp_range is None else replace(self, mpp_range=mpp_range)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What `inherit_from` achieved.

    Attributes:
        stream_kept: Share of the teacher's normalised stream energy inside the student's subspace, 0-1.
        cls_cosine: Mean cosine of the mapped CLS token with the teacher's on the fitted views.
    """

    stream_kept: float
    cls_cosine: float


class Distiller(nn.Module):
    """The student's backbone and one head a teacher.

    Args:
        backbone: timm ViT without classifier.
        heads: One a teacher.
    """

    def __init__(self, backbone: nn.Module, heads: Sequence[TeacherHead], pooling: Pooling = "cls") -> None:
        super().__init__()
        self.backbone = backbone
        self.heads = nn.ModuleList(heads)
        self.prefix_tokens = int(backbone.num_prefix_tokens)
        self.pooling = pooling

    def embed(self, tokens: Tensor) -> Tensor:
        """Embedding `(B, D)` of tokens `(B, prefix + grid², width)`."""
        return pooled(tokens, self.prefix_tokens, self.pooling)

    def forward(self, images: Tensor) -> Tensor:
        """Final normalised tokens `(B, prefix + grid², width)` of normalised images."""
        tokens: Tensor = self.backbone.forward_features(images)
        return tokens


def pooled(tokens: Tensor, prefix: int, pooling: Pooling) -> Tensor:
    """Embedding `(B, D)` of tokens `(B, prefix + grid², width)`: CLS, or CLS beside the mean patch token."""
    cls = tokens[:, 0]
    return cls if pooling == "cls" else torch.cat([cls, tokens[:, prefix:].mean(dim=1)], dim=-1)


def embed_dim(backbone: nn.Module, pooling: Pooling) -> int:
    """Dimensions of the embedding."""
    return int(backbone.num_features) * (2 if pooling == "cls+mean" else 1)


def student_of(config: "FitOptions") -> tuple[nn.Module, Architecture]:
    """The student that options name; see `build_student`."""
    return build_student(
        config.student, seed=config.seed, patch=config.patch, registers=config.registers, pooling=config.pooling
    )


def build_student(
    name: str,
    *,
    arguments: dict[str, Any] | None = None,
    seed: int = 0,
    patch: int | None = None,
    registers: int | None = None,
    pooling: Pooling | None = None,
) -> tuple[nn.Module, Architecture]:
    """A student to train: a registry name, `atlas2-demo` or a folder to go on from, or any timm ViT by its name.

    Args:
        name: See above.
        arguments: For a timm architecture.
        seed: Of random weights.
        patch: Patch side of a registry student.
        registers: Register tokens of a registry student.
        pooling: `cls` or `cls+mean`; the student's own when None.

    Raises:
        UsageError: No such student, or a network that does not embed by a CLS token beside patch tokens.
    """
    import timm

    folder = student_folder(name)
    if name in STUDENTS or folder is not None:
        loaded = load_model(name, patch=patch, registers=registers, pooling=pooling, seed=seed)
        backbone, spec = loaded.module.backbone, loaded.spec
        if spec.pooling not in ("cls", "cls+mean"):
            raise UsageError(
                f"{name} embeds by {spec.pooling}, and students by CLS token, or that beside the mean patch token",
                hint="add --pooling cls or cls+mean, or choose another --student",
            )
        shape = (
            _registry_arguments(name, spec.tile_px, patch, registers) if folder is None else _folder_arguments(folder)
        )
        architecture = Architecture(
            name=spec.architecture,
            arguments=shape,
            mean=spec.mean,
            std=spec.std,
            tile_px=spec.tile_px,
            mpp=spec.mpp,
            mpp_range=spec.mpp_range,
            pooling=spec.pooling,
        )
    elif patch is not None or registers is not None:
        raise UsageError(
            f"--patch and --registers are of {' and '.join(STUDENTS)}; {name} has its own",
            hint="leave them out, or choose another --student",
        )
    elif timm.is_model(name):
        shape = {"num_classes": 0, **_size(name), **(arguments or {})}
        backbone = _random_weights(name, shape, seed=seed)
        if getattr(backbone, "cls_token", None) is not None and backbone.global_pool != "token":
            shape["global_pool"] = "token"
            backbone = _random_weights(name, shape, seed=seed)
        side = int(shape.get("img_size", STUDENT_TILE_PX))
        architecture = Architecture(name=name, arguments=shape, tile_px=side, pooling=pooling or "cls")
    else:
        raise UsageError(
            f"no student is called {name!r}",
            hint=f"give {', '.join([*EMBEDDED, *STUDENTS])}, a folder, or a timm architecture such as "
            "vit_tiny_patch16_224",
        )
    if getattr(backbone, "cls_token", None) is None or not hasattr(backbone, "patch_embed"):
        raise UsageError(f"{name} has no CLS and patch tokens", hint="choose a ViT with a CLS token as student")
    return backbone.train(), architecture


def _size(name: str) -> dict[str, int]:
    """Students take tiles of one size, whatever their architecture was trained at."""
    import timm

    known = timm.get_pretrained_cfg(name)
    return {} if known is None or known.input_size[-1] == STUDENT_TILE_PX else {"img_size": STUDENT_TILE_PX}


def _random_weights(name: str, shape: dict[str, Any], *, seed: int) -> Any:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            return timm.create_model(name, pretrained=False, **shape)
        except Exception as error:  # architectures raise what they like for an argument that they do not take
            given = ", ".join(f"{key}={value}" for key, value in shape.items())
            raise UsageError(
                f"timm cannot build {name} with {given}: {error}",
                hint=f"choose a ViT with a CLS token that takes tiles of {STUDENT_TILE_PX} px",
            ) from error


def first_weights(config: "TrainConfig") -> tuple[ModelProvenance, ...]:
    """The models whose weights a student begins with, the teacher that teaches it left out."""
    if config.init == "teacher":
        names = [] if config.init_from is None else [config.init_from]
    else:
        names = [] if student_folder(config.student) is None else [config.student]
    return tuple(load_model(name).provenance for name in names)


def student_folder(name: str) -> Path | None:
    """The folder whose weights a student begins with; None where they are random. Names of our own come first."""
    if name in STUDENTS:
        return None
    if name in EMBEDDED:
        return EMBEDDED[name].folder
    return Path(name) if Path(name).is_dir() else None


def patch_grid(backbone: nn.Module) -> int:
    """Side of the student's patch grid."""
    return int(backbone.patch_embed.grid_size[0])


def make_heads(
    backbone: nn.Module,
    transforms: Sequence[tuple[TargetTransform, TargetTransform | None]],
    *,
    kind: "HeadName",
    pooling: Pooling,
) -> list[TeacherHead]:
    """One fresh head a teacher."""
    width, dim = int(backbone.num_features), embed_dim(backbone, pooling)
    return [TeacherHead(width, cls, patches, embed_dim=dim, kind=kind) for cls, patches in transforms]


def inherit_from(
    teacher: str,
    backbone: nn.Module,
    architecture: Architecture,
    *,
    student_views: "NDArray[Any]",
    teacher_views: "NDArray[Any]",
    half: bool = False,
    whitening: float = 0.5,
    rounded: bool = False,
) -> Fitted:
    """Give the student weights fitted to a ViT teacher (see `inherit`).

    Args:
        teacher: A folder in timm's form, or `hf-hub:organisation/name`.
        backbone: The student; changed in place.
        architecture: Of the student.
        student_views: `(N, H, W, 3)` uint8 as the student sees them.
        teacher_views: The same views without the fresh half.
        half: Compute activations in bfloat16.
        whitening: See `inherit`.
        rounded: See `inherit`.

    Raises:
        UsageError: The teacher is a cache, has random weights, or the two networks do not fit each other.
    """
    if (Path(teacher) / "cache.json").is_file():
        raise UsageError(
            f"{teacher} holds features and no teacher to inherit weights from",
            hint="name the teacher with --init-from, or use --init random",
        )
    own = load_model(teacher)
    if own.spec.random_weights:
        raise UsageError(f"{teacher} has random weights: there is nothing to inherit", hint="use --init random")
    if own.spec.patch is None or own.spec.pooling not in ("cls", "cls+mean"):
        kind = "is a CNN" if own.spec.patch is None else f"embeds by {own.spec.pooling} and not by its CLS token"
        raise UsageError(f"{teacher} {kind}: a ViT cannot inherit its weights", hint="use --init random")
    # The teacher runs at the resolution at which its patch grid is the student's.
    side = patch_grid(backbone) * own.spec.patch
    vit = own.module.backbone

    def teacher_images() -> Iterator[Tensor]:
        for images in _batches(teacher_views, own.spec.mean, own.spec.std):
            yield F.interpolate(images, size=side, mode="bicubic", antialias=True, align_corners=False)

    try:
        check_parts(backbone, vit)
        vit.set_input_size((side, side))
        backbone.eval()
        images = _batches(student_views, architecture.mean, architecture.std)
        found = inherit(backbone, vit, images, teacher_images(), half=half, whitening=whitening, rounded=rounded)
    except ValueError as error:
        raise UsageError(
            f"the student cannot inherit from {teacher}: {error}", hint="use --init random, or another --student"
        ) from error
    finally:
        backbone.train()
    return Fitted(stream_kept=found.stream_kept, cls_cosine=found.cls_cosine)


def save_student(
    folder: Path, state: dict[str, Tensor], architecture: Architecture, *, licence: str, half: bool
) -> None:
    """Write `model.safetensors` and `config.json`, which `timm.create_model("local-dir:…")` and `load_model` read.

    Args:
        folder: Where; must exist.
        state: The backbone's weights.
        architecture: Of the student.
        licence: SPDX name for the weights.
        half: Store float16 instead of float32.

    Raises:
        UsageError: A weight is too large for float16, whose largest is 65,504.
    """
    kind = torch.float16 if half else torch.float32
    stored = {name: value.detach().to(kind).contiguous() for name, value in state.items()}
    overflown = [name for name, value in stored.items() if not value.isfinite().all()]
    if half and overflown:
        raise UsageError(
            f"{overflown[0]} holds weights that float16 cannot",
            hint="store float32: --no-half in training, a fit without --half",
        )
    (folder / WEIGHTS).write_bytes(save(stored))
    width = next(value.shape[-1] for name, value in state.items() if name == "cls_token")
    config = {
        "architecture": architecture.name,
        "num_classes": 0,
        "num_features": width,
        "global_pool": "token",
        "model_args": architecture.arguments,
        # Beside pretrained_cfg: in it, timm refuses names that it does not know.
        **({} if architecture.pooling == "cls" else {"pooling": architecture.pooling}),
        **({} if architecture.mpp is None else {"mpp": architecture.mpp}),
        **({} if architecture.mpp_range is None else {"mpp_range": architecture.mpp_range}),
        "pretrained_cfg": {
            "input_size": [3, architecture.tile_px, architecture.tile_px],
            "mean": list(architecture.mean),
            "std": list(architecture.std),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "num_classes": 0,
            "license": licence,
        },
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _batches(views: "NDArray[Any]", mean: tuple[float, ...], std: tuple[float, ...]) -> Iterator[Tensor]:
    """Normalised `(B, 3, H, W)` batches, made one at a time."""
    for start in range(0, len(views), _BATCH):
        images = torch.from_numpy(views[start : start + _BATCH]).permute(0, 3, 1, 2).float() / 255.0
        yield (images - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)


def _folder_arguments(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")).get("model_args") or {})


def _registry_arguments(name: str, side: int, patch: int | None, registers: int | None) -> dict[str, Any]:
    shape = find_student(name, patch=patch, registers=registers).shape()
    return {"img_size": side, "init_values": 0.1, "num_classes": 0, **shape}
