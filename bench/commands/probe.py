"""`atlas-bench probe BUNDLE`, registered by `bench.cli`."""

from pathlib import Path

from atlas_edge.cli import print_json
from atlas_edge.errors import InputError, UsageError
from atlas_edge.options import Flag, Limit, Output, TileFit


def probe(
    bundle: Path,
    /,
    *,
    reference: str,
    fit: str,
    limit: Limit = None,
    tile_fit: TileFit = "exact",
    keep_names: Flag = False,
    overwrite: Flag = False,
    output: Output = Output(),
) -> None:
    """Fit a linear classifier on the full-precision encoder's embeddings, and store it beside a bundle.

    From then on atlas-bench selftest compares decisions, too: those on the bundle's embeddings with those on the
    full-precision ones. It goes where the bundle goes, as BUNDLE.probe.safetensors and its .sha256. Example:

        atlas-bench probe bundles/atlas2-s-openvino-int8 --reference atlas2-s --fit tiles

    Args:
        bundle: Bundle folder.
        reference: The full-precision encoder: a model folder, a registry name or an fp32 bundle.
        fit: Labelled tiles; the train split where there are splits.
        limit: Most tiles to fit on, balanced over the labels.
        tile_fit: What to do with tiles of another size than the encoder takes.
        keep_names: Write the names of classes and tile set, too; they are left out otherwise, since they may name
            patients.
        overwrite: Replace a probe that is there.
        output: What is printed.
    """
    import numpy as np

    from atlas_edge.bench.accuracy.probe import LinearProbe, fit_probe
    from atlas_edge.bench.accuracy.tileset import embed_tiles, pick_tiles
    from atlas_edge.bench.encoders import open_encoders
    from atlas_edge.bench.selftest.probe import StoredProbe, probe_beside, write_probe
    from atlas_edge.bundle import verify_bundle
    from atlas_edge.package.manifest import place_in_package
    from atlas_edge.tiles import open_tiles
    from atlas_edge.unnamed import class_numbers, unnamed_tiles

    screen = output.screen()
    path = probe_beside(bundle)
    if place_in_package(bundle) is not None:
        raise UsageError(
            f"{bundle} is part of a package, which holds nothing but what it lists", hint="give a bundle by itself"
        )
    if path.exists() and not overwrite:
        raise UsageError(f"{path} exists", hint="add --overwrite to replace it")
    manifest = verify_bundle(bundle)
    tiles = pick_tiles(open_tiles(fit, role="calibration"), limit=limit, fit=tile_fit)
    if tiles.labels is None:
        raise InputError(f"the tiles of {fit} have no labels", hint="give class folders, or a label column")
    with open_encoders([reference]) as opened:
        ((label, encoder),) = opened.encoders.items()
        wanted, found = manifest.encoder, encoder.spec
        if (found.embed_dim, found.tile_px) != (wanted.embed_dim, wanted.tile_px):
            raise InputError(
                f"{reference} gives {found.embed_dim} numbers for {found.tile_px} px, "
                f"the bundle {wanted.embed_dim} for {wanted.tile_px} px",
                hint="give the encoder that the bundle was made of",
            )
        embedded = embed_tiles(opened.encoders, tiles)[label]
        facts = opened.facts[label]
    fitted = fit_probe("linear", embedded, np.asarray(tiles.labels))
    assert isinstance(fitted, LinearProbe)
    said = tiles.provenance()
    stored = StoredProbe(
        linear=fitted.weights(),
        classes=fitted.classes if keep_names else class_numbers(fitted.classes),
        tiles=said if keep_names else unnamed_tiles(said) or said,
        reference_sha256=facts.sha256,
    )
    write_probe(bundle, stored)
    screen.print(f"{path}: {len(stored.classes)} classes, fitted on {len(tiles.records)} tiles", soft_wrap=True)
    screen.print(f"next: atlas-bench selftest {bundle}   # on the workstation", soft_wrap=True)
    if output.json:
        tiles_json = stored.tiles.model_dump(mode="json")
        print_json({"probe": path.name, "classes": stored.classes, "tiles": tiles_json})
