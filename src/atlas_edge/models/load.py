"""Full-precision models in PyTorch: from a registry name, a timm folder or the Hugging Face hub."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from atlas_edge.bundle import MANIFEST, open_bundle, sha256_file
from atlas_edge.encoder import Encoder
from atlas_edge.errors import ChecksumError, InputError, RuntimeMissing, UsageError
from atlas_edge.manifest import ModelProvenance
from atlas_edge.models.hub import download
from atlas_edge.models.published.facts import with_known
from atlas_edge.models.published.known import Known, find_known, known_encoders, known_of_hub
from atlas_edge.models.students import (
    EMBEDDED,
    OWN_NAMES,
    STUDENT_MPP,
    STUDENT_TILE_PX,
    STUDENTS,
    EmbeddedStudent,
    find_student,
)
from atlas_edge.models.timm_config import CONFIG, WEIGHTS, read_config
from atlas_edge.models.timm_folder import has_architecture, load_backbone, patch_side, timm_and_torch
from atlas_edge.package.manifest import is_package
from atlas_edge.spec import EncoderSpec, Pooling

if TYPE_CHECKING:
    from torch import nn

    from atlas_edge.models.bundle_module import BundleModule
    from atlas_edge.models.encoder_module import EncoderModule

_LOGGER = logging.getLogger("atlas_edge")
DEFAULT_MODEL = "atlas2-demo"
# LayerScale of a random-weight student: 0.1 for depth up to 18 (Touvron et al. 2021, CaiT, section 2.1). DINOv2's
# own 1e-5 would leave the blocks of an untrained network without a say, and any precision would look lossless.
_RANDOM_LAYER_SCALE = 0.1

_Source = Literal["registry", "checkpoint", "hf-hub"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A network with what is known of it.

    Attributes:
        module: uint8 tiles `(B, H, W, 3)` in, float32 embeddings `(B, D)` out; in eval mode.
        spec: Shape and preprocessing.
        provenance: Where the weights came from.
        known: Its entry in the table of known encoders.
        stated: Facts that its own files state, such as `mean`, `mpp` and `pooling`.
    """

    module: "EncoderModule"
    spec: EncoderSpec
    provenance: ModelProvenance
    known: Known | None = None
    stated: frozenset[str] = frozenset()

    def with_tokens(self) -> "LoadedModel":
        """The same, with patch tokens beside the embedding: what it is exported to has them, too.

        Raises:
            UsageError: The network has no patch tokens.
        """
        grid = self.module.token_grid
        if grid is None:
            raise UsageError(
                f"{self.spec.name}: {self.spec.architecture} is no vision transformer and has no patch tokens",
                hint="leave out --output tokens",
            )
        spec = self.spec.model_copy(update={"tokens": grid})
        return replace(self, module=self.module.giving_tokens(), spec=spec)


def load_encoder(
    name: str, *, threads: int | None = None, device: str | None = None, cache_dir: Path | None = None
) -> Encoder:
    """Open a bundle folder, or a package, in its own runtime, or any other model in PyTorch.

    In PyTorch patch tokens are included where the model has them.

    Args:
        name: See `open_bundle` and `load_model`.
        threads: Inference threads; the runtime's own choice when None.
        device: See `open_bundle`; `cpu`, `cuda` or `cuda:1` for PyTorch.
        cache_dir: See `open_bundle`.

    Raises:
        InputError: A file is missing, corrupt or does not match its hash.
        RuntimeMissing: The runtime is not installed.
        UsageError: No such model.
    """
    if (Path(name) / MANIFEST).is_file() or is_package(name):
        return open_bundle(name, threads=threads, device=device, cache_dir=cache_dir)
    from atlas_edge.runtimes.torch import TorchEncoder

    model = load_model(name)
    if model.module.token_grid is not None:
        model = model.with_tokens()
    return TorchEncoder(model.module, model.spec, threads=threads, device=device or "cpu")


def torch_module(
    bundle: str | Path,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> "BundleModule":
    """Open a bundle, or any model that `load_encoder` takes, as a PyTorch module.

    Args:
        bundle: Bundle folder, or a model's name or folder for full precision.
        mean: Per-channel mean by which the caller normalises, 0-1 scale; the encoder's own, as in `transform`, when
            None.
        std: The same of the standard deviation.
        device: See `open_bundle`. `module.to(…)` moves nothing: a bundle stays where its runtime opened it.
        threads: Inference threads; the runtime's own choice when None.

    Raises:
        UsageError: `mean` or `std` are no three numbers, or a deviation is not above zero.
        InputError, ChecksumError, RuntimeMissing: As `load_encoder`, and without PyTorch.
    """
    try:
        from atlas_edge.models.bundle_module import BundleModule
    except ImportError as error:
        raise RuntimeMissing(f"this needs PyTorch: {error}", hint="pip install torch") from error
    return BundleModule(bundle, mean, std, device, threads)


def load_model(
    name: str,
    *,
    patch: int | None = None,
    registers: int | None = None,
    pooling: Pooling | None = None,
    tile_px: int | None = None,
    seed: int = 0,
    known: str | None = None,
    called: str | None = None,
) -> LoadedModel:
    """Load a full-precision model; what its files leave open is logged as a warning.

    What the files of a known encoder do not say is taken from the table of known encoders, pooling included; it is
    known by its repository, or by the name that its folder's `config.json` has.

    Args:
        name: A registry name (`atlas2-s`, `atlas2-demo`), a folder with `config.json` and `model.safetensors` (timm's
            form, with or without the prefix `local-dir:`), or `hf-hub:organisation/name` (`@revision`), which uses the
            network.
        patch: Patch side of a registry student, pixels.
        registers: Register tokens of a registry student.
        pooling: `cls`, `cls+mean` or `avg` of the tokens; the model's own when None.
        tile_px: Build the network for tiles of this side, position embeddings resampled; its own side when None.
        seed: Seed of a registry student's random weights.
        known: Name of the known encoder that a folder holds; what `config.json` says of it when None.
        called: What the model of a folder is called; as its folder when None.

    Raises:
        UsageError: No such model, or an option that it does not have.
        InputError: A file is missing, truncated, or does not fit the architecture.
        RuntimeMissing: PyTorch or timm is not installed.
    """
    entry = None if known is None else find_known(known)
    loaded = _load(name, patch, registers, pooling, tile_px=tile_px, seed=seed, known=entry, called=called)
    embedding: Any = getattr(loaded.module.backbone, "patch_embed", None)
    side = loaded.spec.patch or 1
    # Patches that overlap cover a rim of any width.
    apart = getattr(getattr(embedding, "proj", None), "stride", None) == (side, side)
    if tile_px is not None and apart and tile_px % side:
        below = tile_px // side * side
        raise UsageError(
            f"--tile-px {tile_px} is no multiple of the patch side {side} px: the rim of every tile would not be seen",
            hint=f"give --tile-px {below or side} or {below + side}",
        )
    return loaded


def free_weights(module: "nn.Module") -> None:
    """Give the memory of a network back that nobody runs any more; its shapes stay."""
    module.to("meta")


def _load(
    name: str,
    patch: int | None,
    registers: int | None,
    pooling: Pooling | None,
    *,
    tile_px: int | None,
    seed: int,
    known: Known | None,
    called: str | None,
) -> LoadedModel:
    if name in OWN_NAMES and (Path(name) / CONFIG).is_file():
        _LOGGER.warning("%s is a model of atlas-edge's own; to read the folder of that name, write ./%s", name, name)
    if name in STUDENTS:
        return _registry_student(name, patch, registers, pooling, tile_px=tile_px or STUDENT_TILE_PX, seed=seed)
    if patch is not None or registers is not None:
        raise UsageError(f"--patch and --registers shape a registry student; {name} has its own", hint="leave them out")
    if name in EMBEDDED:
        return _embedded_student(EMBEDDED[name], pooling=pooling, tile_px=tile_px)
    if name.startswith("hf-hub:"):
        repository, _, revision = name.removeprefix("hf-hub:").partition("@")
        known = known or known_of_hub(repository)
        if known is not None:
            known.must_load()
            revision = revision or known.revision or ""
        folder = download(repository, revision or None, known)
        short = repository.rpartition("/")[2]
        loaded = _checkpoint(folder, short, "hf-hub", pooling=pooling, tile_px=tile_px, known=known)
        # A snapshot lies in a folder that is called by its commit.
        return replace(loaded, provenance=loaded.provenance.model_copy(update={"revision": folder.name}))
    folder = Path(name.removeprefix("local-dir:"))
    if not folder.exists():
        raise UsageError(
            f"no model is called {name!r}, and no such folder exists",
            hint=f"give {', '.join([*EMBEDDED, *STUDENTS])}, a folder with {CONFIG} and {WEIGHTS}, or "
            "hf-hub:organisation/name",
        )
    called = called or folder.resolve().name
    return _checkpoint(folder, called, "checkpoint", pooling=pooling, tile_px=tile_px, known=known)


def _registry_student(
    name: str, patch: int | None, registers: int | None, pooling: Pooling | None, *, tile_px: int, seed: int
) -> LoadedModel:
    student = find_student(name, patch=patch, registers=registers)
    timm, torch = timm_and_torch()
    arguments = {"img_size": tile_px, "init_values": _RANDOM_LAYER_SCALE, **student.shape()}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        backbone = timm.create_model(student.architecture, pretrained=False, num_classes=0, **arguments)
    known = {"name": name, "mpp": STUDENT_MPP, "mean": student.mean, "std": student.std, "random_weights": True}
    provenance = ModelProvenance(name=name, source="registry", licence="apache-2.0", seed=seed)
    return _loaded(backbone, known, provenance, student.architecture, tile_px, pooling, stated=student.pooling)


def _embedded_student(student: EmbeddedStudent, *, pooling: Pooling | None, tile_px: int | None) -> LoadedModel:
    for name, expected in ((WEIGHTS, student.weights_sha256), (CONFIG, student.config_sha256)):
        path = student.folder / name
        if not path.is_file():
            raise InputError(f"{path} is missing", hint="install atlas-edge again")
        found = sha256_file(path)
        if found != expected:
            raise ChecksumError(
                f"{path} has SHA-256 {found[:12]}…, expected {expected[:12]}…", hint="install atlas-edge again"
            )
    loaded = _checkpoint(student.folder, student.name, "registry", pooling=pooling, tile_px=tile_px)
    return replace(loaded, spec=loaded.spec.model_copy(update={"demonstration": True}))


def _checkpoint(
    folder: Path,
    name: str,
    source: _Source,
    *,
    pooling: Pooling | None,
    tile_px: int | None,
    known: Known | None = None,
) -> LoadedModel:
    config = read_config(folder, known=None if known is None else known.name)
    own = config
    known = known or known_encoders().get(config.name or "")
    if known is not None:
        known.must_load()
        config = with_known(config, known, has_architecture=has_architecture(config.architecture))
    weights = folder / WEIGHTS
    digest = sha256_file(weights) if weights.is_file() else None
    backbone = load_backbone(config, tile_px=tile_px)
    stated = config.stated
    provenance = ModelProvenance(
        name=name, source=source, sha256=digest, licence=stated.license, assumptions=backbone.assumptions
    )
    facts = {"name": name, "mpp": stated.mpp, "mpp_range": stated.mpp_range, "mean": stated.mean, "std": stated.std}
    loaded = _loaded(
        backbone.network,
        facts,
        provenance,
        config.architecture,
        backbone.tile_px,
        pooling,
        stated=own.pooling,
        published=config.pooling,
    )
    given = own.given | ({"pooling"} if own.pooling or own.arguments.get("global_pool") else set())
    return replace(loaded, known=known, stated=frozenset(given))


def _loaded(
    backbone: "nn.Module",
    known: dict[str, Any],
    provenance: ModelProvenance,
    architecture: str,
    tile_px: int,
    asked: Pooling | None,
    *,
    stated: Pooling | None = None,
    published: Pooling | None = None,
) -> LoadedModel:
    """Choose the pooling and run one tile: attributes of a network do not say how wide its embedding is."""
    from atlas_edge.models.encoder_module import EncoderModule, has_class_token, own_pooling

    own = own_pooling(backbone)
    prefix, cls = int(getattr(backbone, "num_prefix_tokens", 0)), has_class_token(backbone)
    wanted = asked or stated or published
    pooling, said = _choose_pooling(architecture, own, wanted, asked=asked is not None, prefix=bool(prefix), cls=cls)
    if asked or stated:  # whoever asked for it, or wrote it down, knows
        said = ()
    spec = EncoderSpec(
        **known,
        architecture=architecture,
        embed_dim=1,
        tile_px=tile_px,
        pooling=pooling,
        own_pooling=own if asked not in (None, own) else None,
        patch=patch_side(backbone),
        registers=prefix - cls - hasattr(backbone, "dist_token") if prefix else 0,
    )
    module = EncoderModule(backbone, spec).eval()
    spec = spec.model_copy(update={"embed_dim": _embed_dim(module, spec)})
    assumptions = (*provenance.assumptions, *said)
    for sentence in assumptions:
        _LOGGER.warning("%s: %s", provenance.name, sentence)
    return LoadedModel(module=module, spec=spec, provenance=provenance.model_copy(update={"assumptions": assumptions}))


def _choose_pooling(
    architecture: str, own: Pooling | None, wanted: Pooling | None, *, asked: bool, prefix: bool, cls: bool
) -> tuple[Pooling, tuple[str, ...]]:
    """The pooling, and what is to be said where nobody asked for it: as published, the network's own, or CLS."""
    if wanted not in (None, own) and not (prefix and (cls or wanted == "avg")):
        message = f"{architecture} has no CLS token: pooling {wanted} cannot be had"
        if asked:
            raise UsageError(message, hint="leave out --pooling")
        raise InputError(message, hint=f'leave "pooling" out of {CONFIG}')
    if wanted is None and own is None and prefix and cls:
        return "cls", ("the network names no pooling: its CLS token was taken (--pooling cls+mean for more)",)
    if wanted is not None and wanted != own:
        without = "names no pooling" if own is None else f"by itself has pooling {own}"
        return wanted, (f"the network {without}: {wanted} was taken, as it is published",)
    return wanted or own or "own", ()


def _embed_dim(module: "EncoderModule", spec: EncoderSpec) -> int:
    import torch

    tile = (torch.arange(spec.tile_px**2 * 3) % 251).to(torch.uint8).view(1, spec.tile_px, spec.tile_px, 3)
    try:
        with torch.inference_mode():
            found = module(tile)
    except Exception as error:
        raise InputError(
            f"{spec.name}: {spec.architecture} does not take tiles of {spec.tile_px} px: {error}",
            hint="give --tile-px with the side that it was made for",
        ) from error
    if found.ndim != 2 or not found.isfinite().all():
        what = "numbers that are not finite" if found.ndim == 2 else f"an array of shape {tuple(found.shape)}"
        raise InputError(
            f"{spec.name}: {spec.architecture} returns {what}, expected one vector a tile",
            hint="choose a global_pool in model_args, or check the weights",
        )
    return int(found.shape[1])
