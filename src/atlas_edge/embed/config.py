"""How slides are embedded: the options that one slide, a drop folder and a cluster share."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from annotated_types import Ge, Gt, Le
from cyclopts import Parameter

from atlas_edge.errors import UsageError
from atlas_edge.options import Flag, NotTyped, Options, Stain

Patterns = Annotated[tuple[str, ...], Parameter(negative="")]

# What the environment says is one name, which may hold spaces.
Bundles = Annotated[list[str], Parameter(negative="", env_var_split=lambda _, name, **__: [name])]
"""Bundles, one each time that the option is given."""

MAGNIFICATION_MPP = 10.0
"""µm per pixel at 1x: how TRIDENT turns magnifications into µm per pixel and back."""

SLIDE_LIST = "--slides"
"""The option that names a list of slides."""


@dataclass(frozen=True, kw_only=True)
class SlideFacts:
    """What the user says of one slide.

    Attributes:
        mpp: µm per pixel of level 0, whatever the slide says; its own where None.
        mask: File that says where tissue is; it is looked for where None.
    """

    mpp: float | None = None
    mask: Path | None = None


@dataclass(frozen=True, kw_only=True)
class EmbedConfig(Options):
    """How slides are embedded.

    A small slide may have a few unreadable tiles all the same, unless `max_unreadable` is 0.

    Attributes:
        mpp: µm per pixel of slides that do not say it.
        override_mpp: `mpp` holds for slides that say another, too.
        mpp_said_by: Where `mpp` was given.
        mask: File that says where tissue is; it is looked for where None.
        of_slides: What holds for single slides; see `of_slide`.
        tile_mpp: µm per pixel of tiles; the encoder's own by default.
        magnification: Of tiles, in place of --tile-mpp: 20 stands for 0.5 µm per pixel, 40 for 0.25.
        overlap: Pixels that a tile shares with each neighbour, as the encoder sees them.
        min_tissue: Least share of tissue in a tile, 0-1.
        tissue: Look for tissue; --no-tissue embeds all that was scanned.
        pen: Leave out strokes of pen and black borders; --no-pen takes them for tissue.
        stain: Where it is known, he, ihc, special (trichrome, Alcian blue and others) or dark (silver, melanin, coal):
            what may be pen, and what is tissue.
        icc: Turn colours into sRGB by the ICC profile that a slide holds; pixels as they are stored when left out.
        most_tiles: Most tiles of a slide that are embedded, spread evenly over its tissue; the output lists the others,
            and which tile stands for each. All are embedded when left out.
        tokens: Keep the patch tokens of every tile, too, as float16, where the bundle gives them: 0.2 MB a tile.
        max_unreadable: Largest share of unreadable tiles that a slide may have, 0-1.
        threads: Decode threads; two, and more while the encoder waits for them, when left out.
        batch: Tiles a batch; more where the encoder's streams are then equally busy.
        overview: Draw NAME.overview.jpg: the slide, its tiles, and the embeddings as colours.
        geojson: Write NAME.geojson: tissue and tiles, for QuPath.
    """

    mpp: Annotated[float | None, Gt(0)] = None
    override_mpp: Annotated[bool, NotTyped] = False
    mpp_said_by: Annotated[str, NotTyped] = "--mpp"
    mask: Annotated[Path | None, NotTyped] = None
    of_slides: Annotated[Mapping[Path, SlideFacts] | None, NotTyped] = None
    tile_mpp: Annotated[float | None, Gt(0)] = None
    magnification: Annotated[float | None, Gt(0)] = None
    overlap: Annotated[int, Ge(0)] = 0
    min_tissue: Annotated[float, Ge(0), Le(1)] = 0.1
    tissue: bool = True
    pen: bool = True
    stain: Stain | None = None
    icc: Flag = False
    most_tiles: Annotated[int | None, Ge(1)] = None
    tokens: Flag = False
    max_unreadable: Annotated[float, Ge(0), Le(1)] = 0.01
    threads: Annotated[int | None, Ge(1), Le(64)] = None
    batch: Annotated[int, Ge(1), Le(4096)] = 64
    overview: bool = True
    geojson: Flag = False

    def __post_init__(self) -> None:
        Options.__post_init__(self)
        if self.magnification is not None:
            mpp = MAGNIFICATION_MPP / self.magnification
            if self.tile_mpp not in (None, mpp):
                said = f"--magnification {self.magnification:g} is {mpp:g} µm per pixel"
                raise UsageError(f"{said}, --tile-mpp says {self.tile_mpp:g}", hint="give one of them")
            object.__setattr__(self, "tile_mpp", mpp)
        if self.stain is not None and not (self.tissue and self.pen):
            other = "--no-pen" if self.tissue else "--no-tissue"
            raise UsageError(
                f"--stain {self.stain} says what may be pen, {other} that nobody asks", hint="leave one of them out"
            )

    def of_slide(self, path: Path) -> "EmbedConfig":
        """What holds for one slide."""
        facts = (self.of_slides or {}).get(path)
        if facts is None:
            return replace(self, of_slides=None) if self.of_slides else self
        config = replace(self, of_slides=None, mask=facts.mask)
        if facts.mpp is None:
            return config
        return replace(config, mpp=facts.mpp, override_mpp=True, mpp_said_by=SLIDE_LIST)


@dataclass(frozen=True, kw_only=True)
class WatchOptions(Options):
    """How a folder is watched.

    Attributes:
        form: Form of the embeddings: h5, h5ad, zarr, spatialdata, parquet or pt.
        settle_s: A slide is finished when none of its files has changed for so long, or NAME.done is there.
        marker_only: A slide is finished only when NAME.done is there.
        poll_s: Pause between looks at the folder.
        most_attempts: After so many failures a slide is quarantined: left alone until it changes.
        retry_s: Pause before the second attempt; it doubles each time.
        re_embed: Embed again what another bundle, scale or tissue limit embedded; refused when left out.
        include: Only slides whose name, or path below the folder, fits one of these patterns; may be repeated.
        exclude: No slides whose name, or path below the folder, fits one of these patterns; may be repeated.
        on_quarantine: Command to run for each slide that is quarantined, with the path of its report as last argument
            and in ATLAS_EMBED_REPORT; without a shell, for at most a minute.
        min_free_gb: Wait while less is left on the disk of --out or --state, GB.
        log_mb: Size at which the log begins a new file, MB.
        log_files: Full files of the log that are kept.
        once: End when every slide is embedded or quarantined; after a minute without folder or room, too.
    """

    form: str = "h5"
    settle_s: Annotated[float, Ge(0), Parameter(name="--settle-seconds")] = 30.0
    marker_only: Flag = False
    poll_s: Annotated[float, Ge(0), Parameter(name="--poll-seconds")] = 5.0
    most_attempts: Annotated[int, Ge(1), Parameter(name="--attempts")] = 3
    retry_s: Annotated[float, Ge(0), Parameter(name="--retry-seconds")] = 60.0
    re_embed: Flag = False
    include: Patterns = ()
    exclude: Patterns = ()
    on_quarantine: str = ""
    min_free_gb: Annotated[float, Ge(0), Parameter(name="--min-free")] = 0.0
    log_mb: Annotated[float, Gt(0), Parameter(name="--log-mb")] = 16.0
    log_files: Annotated[int, Ge(0)] = 5
    once: Flag = False
