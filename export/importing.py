"""Somebody else's checkpoint into a model folder of timm's form, compared with the network that it came from."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_edge.bundle import sha256_file
from atlas_edge.errors import InputError, UsageError
from atlas_edge.models.checkpoint import Checkpoint, find_weights, read_checkpoint
from atlas_edge.models.convert import (
    Converted,
    TransformersConfig,
    model_args,
    preprocessing,
    read_transformers,
    resample_positions,
    to_timm,
)
from atlas_edge.models.load import LoadedModel, load_model
from atlas_edge.models.published.facts import with_known
from atlas_edge.models.published.known import Known, find_known, known_encoders
from atlas_edge.models.timm_config import CONFIG, WEIGHTS, Stated, TimmConfig, read_config, stated_facts
from atlas_edge.models.timm_folder import has_architecture, timm_and_torch, with_layers
from atlas_edge.system.atomic import atomic_folder, check_vacant

if TYPE_CHECKING:
    from torch import Tensor

# By which a folder that this command wrote is known; it says what it was made of.
RECORD = "import.json"
MARKS = (RECORD, CONFIG, WEIGHTS)
# Float32 in two orders of summation; more means that the networks differ.
_TOLERANCE = 1e-5
_TILES = 2
# In timm's form; CLS beside the mean has none, so that its network leaves the tokens as they are.
_POOLINGS = {"cls": "token", "cls+mean": ""}
_TRANSFORMERS_EPS = {"vit": 1e-12, "dinov2": 1e-6, "dinov2_with_registers": 1e-6}
_TIMM_EPS = 1e-6
# It has no arguments of its own beyond those that transformers' form states.
_PLAIN = "vit_base_patch16_224"


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A checkpoint under timm's names, and the `config.json` that goes with it.

    Attributes:
        checkpoint: As it was read.
        converted: Its tensors under timm's names.
        transformers: The shape that its folder states in transformers' form; None for another form.
        config: For the new folder.
        known: Its entry in the table of known encoders.
    """

    checkpoint: Checkpoint
    converted: Converted
    transformers: TransformersConfig | None
    config: dict[str, Any]
    known: Known | None

    @property
    def aside(self) -> tuple[str, ...]:
        """Names of the tensors that were left aside."""
        return (*self.checkpoint.aside, *self.converted.aside)


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import made.

    Attributes:
        model: As it is loaded from the new folder.
        compared_with: The network that it was compared with; None where none could be built.
        difference: Worst 1 - cosine of the embedding to that network's; None where there was none.
        not_compared: Why it was compared with none.
    """

    model: LoadedModel
    compared_with: str | None
    difference: float | None
    not_compared: str | None

    @property
    def said(self) -> str:
        """The comparison in a sentence."""
        if self.difference is None:
            return f"not checked against its source network: {self.not_compared}"
        return f"embeds as {self.compared_with} does: 1 - cosine <= {self.difference:.1e} on {_TILES} tiles"


def open_source(path: Path, *, known: str | None) -> Source:
    """Read a checkpoint and what is known of it.

    Args:
        path: A checkpoint, or a folder with one and a `config.json`.
        known: Name of the known encoder that it is; what `config.json` says when None.

    Raises:
        UsageError: No such file, no such encoder, or nothing that says what network it is.
        InputError: It cannot be read, or a tensor has no place.
    """
    entry = None if known is None else find_known(known)
    folder = path if path.is_dir() else path.parent
    stated = read_transformers(folder)
    base = None
    if stated is None and (folder / CONFIG).is_file():
        base = read_config(folder)
        entry = entry or known_encoders().get(base.name or "")
    if entry is not None:
        entry.must_load()
    if stated is None and base is None and (entry is None or entry.architecture is None):
        find_weights(path)
        raise UsageError(
            f"{folder} has no {CONFIG}: nothing says what network {path.name} is of",
            hint="give --as with the name of a known encoder, such as --as uni2-h, or put its config.json beside it",
        )
    prefix, aside = ("", ()) if entry is None else (entry.prefix, entry.aside)
    checkpoint = read_checkpoint(path, prefix=prefix, aside=aside)
    converted = to_timm(checkpoint.tensors)
    if stated is not None:
        base = _of_transformers(folder, stated, converted, entry)
    elif base is None:
        assert entry is not None and entry.architecture is not None
        base = _of_known(folder, entry)
    if entry is not None:
        base = with_known(base, entry, has_architecture=has_architecture(base.architecture))
    config = _config(base, entry)
    return Source(checkpoint=checkpoint, converted=converted, transformers=stated, config=config, known=entry)


def import_model(source: Source, out: Path, *, overwrite: bool) -> Imported:
    """Write the model folder, once it loads and embeds as the network that it came from.

    Raises:
        UsageError: `out` is taken.
        InputError: The tensors do not fit the network, it embeds differently, or the disk is full.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    check_vacant(out, marks=MARKS, overwrite=overwrite)
    with atomic_folder(out, marks=MARKS, overwrite=overwrite) as folder:
        try:
            save_file(source.converted.tensors, folder / WEIGHTS)
        except SafetensorError as error:  # also of a full disk
            raise InputError(
                f"{out} cannot be written: {error}", hint="check free disk space and permissions of that path"
            ) from error
        (folder / CONFIG).write_text(json.dumps(source.config, indent=2) + "\n", encoding="utf-8")
        model = load_model(str(folder), called=out.name)
        imported = _compared(source, model)
        if imported.difference is not None and not imported.difference <= _TOLERANCE:
            raise InputError(
                f"{source.checkpoint.path}: the converted network embeds otherwise than {imported.compared_with}: "
                f"1 - cosine is {imported.difference:.2g}, expected at most {_TOLERANCE:g}",
                hint="report it with the name of the model",
            )
        record = {
            "from": source.checkpoint.path.name,
            "sha256": sha256_file(source.checkpoint.path),
            "form": source.converted.form,
            "known_encoder": None if source.known is None else source.known.name,
            "left_aside": list(source.aside),
            "check": imported.said,
            "assumptions": list(model.provenance.assumptions),
        }
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return imported


def eps_note(source: Source) -> str | None:
    """What to say where the source's norms have another epsilon than timm's; None where they have the same."""
    stated = source.transformers
    if stated is None:
        return None
    eps = stated.layer_norm_eps or _TRANSFORMERS_EPS[stated.model_type]
    return None if eps == _TIMM_EPS else f"its norms have epsilon {eps:g}, timm's {_TIMM_EPS:g}"


def _of_known(folder: Path, known: Known) -> TimmConfig:
    assert known.architecture is not None
    return TimmConfig(
        path=folder / CONFIG,
        architecture=known.architecture,
        arguments={},
        stated=Stated(),
        given=frozenset(),
        name=known.name,
        pooling=None,
        num_classes=None,
        assumptions=(),
    )


def _of_transformers(folder: Path, stated: TransformersConfig, converted: Converted, known: Known | None) -> TimmConfig:
    """The same in timm's form; DINOv2 gets the position embeddings of the tiles that it is published for."""
    arguments = model_args(stated, converted.tensors)
    facts = preprocessing(folder)
    px = facts.pop("tile_px", None) or (known.tile_px if known is not None else None) or stated.image_size
    if not stated.is_dinov2:
        px = stated.image_size
    if px != stated.image_size and px % stated.patch_size == 0:
        prefix = 0 if "reg_token" in converted.tensors else 1
        resample_positions(converted.tensors, side=px // stated.patch_size, prefix=prefix)
        arguments["img_size"] = px
    else:
        px = stated.image_size
    facts["input_size"] = [3, px, px]
    path = folder / CONFIG
    assumed = () if {"mean", "std"} <= facts.keys() else (f"{CONFIG} states no mean and no std: ImageNet's were taken",)
    return TimmConfig(
        path=path,
        architecture=_PLAIN if known is None or known.architecture is None else known.architecture,
        arguments=arguments,
        stated=stated_facts(path, facts),
        given=frozenset(facts),
        name=None,
        pooling=None,
        num_classes=0,
        assumptions=assumed,
    )


def _config(base: TimmConfig, known: Known | None) -> dict[str, Any]:
    """`config.json` in timm's form; what timm has no form of stands at its top, where timm leaves it unread."""
    arguments = dict(base.arguments)
    if base.pooling in _POOLINGS:
        arguments.setdefault("global_pool", _POOLINGS[base.pooling])
    stated = base.stated.model_dump(mode="json", include=set(base.given) - {"mpp", "mpp_range"})
    if isinstance(arguments.get("img_size"), int):
        stated.setdefault("input_size", [3, arguments["img_size"], arguments["img_size"]])
    top = {
        "name": None if known is None else known.name,
        "mpp": base.stated.mpp,
        "mpp_range": base.stated.mpp_range,
        "pooling": base.pooling,
    }
    return {
        "architecture": base.architecture,
        "num_classes": base.num_classes or 0,
        "model_args": arguments,
        **{name: value for name, value in top.items() if value is not None},
        "pretrained_cfg": stated,
    }


def _compared(source: Source, model: LoadedModel) -> Imported:
    import numpy as np

    _, torch = timm_and_torch()
    px = model.spec.tile_px
    tiles = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (_TILES, px, px, 3), dtype=np.uint8))
    with_transformers = source.transformers is not None
    title = "transformers' own network" if with_transformers else "timm's own network"
    with torch.inference_mode():
        found, images = model.module(tiles).double(), model.module.normalise(tiles)
    embed = _transformers_embedding if with_transformers else _timm_embedding
    try:
        with torch.inference_mode():
            expected = embed(source, model, images).double()
    except ImportError:
        reason = "transformers is not installed"
    except Exception as error:  # a foreign library, which raises what it likes
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))
        reason = f"it could not be built: {first[:200]}"
    else:
        cosine = torch.nn.functional.cosine_similarity(expected, found, dim=1)
        worst = float((1 - cosine).max())
        return Imported(model=model, compared_with=title, difference=worst, not_compared=None)
    return Imported(model=model, compared_with=None, difference=None, not_compared=reason)


def _timm_embedding(source: Source, model: LoadedModel, images: "Tensor") -> "Tensor":
    """By the network that timm makes of the tensors as they were found, with timm's own conversion of names."""
    import sys

    from atlas_edge.models.encoder_module import EncoderModule

    timm, _ = timm_and_torch()
    arguments = with_layers(source.config["model_args"], source.checkpoint.path)
    sized = {"img_size": model.spec.tile_px} if hasattr(model.module.backbone, "patch_embed") else {}
    network = timm.create_model(source.config["architecture"], num_classes=0, **(arguments | sized))
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    tensors = dict(source.checkpoint.tensors)
    state = tensors if convert is None else convert(tensors, network)
    network.load_state_dict({name: state[name] for name in network.state_dict()})
    return EncoderModule(network, model.spec).eval().embed(images).float()


def _transformers_embedding(source: Source, model: LoadedModel, images: "Tensor") -> "Tensor":
    """By the network that transformers makes of the folder; no code of the folder runs."""
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    network, told = transformers.AutoModel.from_pretrained(
        str(source.checkpoint.path.parent), local_files_only=True, trust_remote_code=False, output_loading_info=True
    )
    strange = [name for kind in ("missing_keys", "unexpected_keys") for name in told[kind] if "pooler" not in name]
    if strange:
        raise ValueError(f"transformers' own network has no {sorted(strange)[0]}")
    tokens: Tensor = network.eval()(pixel_values=images).last_hidden_state
    cls, patches = tokens[:, 0], tokens[:, model.module.prefix_tokens :].mean(dim=1)
    _, torch = timm_and_torch()
    embedding: Tensor = {"cls": cls, "avg": patches, "cls+mean": torch.cat([cls, patches], dim=1)}[model.spec.pooling]
    return embedding
