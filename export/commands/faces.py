"""`atlas-export face` and `atlas-export layout`, registered by `export.cli`: a bundle for other people's programs."""

from pathlib import Path
from typing import Literal

from atlas_edge.cli import console, print_json
from atlas_edge.options import Flag, Json


def face(
    bundle: Path,
    /,
    *,
    face: Literal["nchw-float-0-255", "nchw-float-0-1", "nchw-float-normalised"],
    out: Path,
    overwrite: Flag = False,
    json: Json = False,
) -> None:
    """Write a bundle's model file with the input that another program feeds: `(B, 3, H, W)` float32.

    Its embeddings are the bundle's own. What it is lies in its metadata.

    Args:
        bundle: ONNX or OpenVINO bundle.
        face: What is fed: grey levels from 0 to 255 or from 0 to 1, or images that the program has normalised itself.
        out: Folder to write.
        overwrite: Replace a face that is there.
        json: Print the metadata as JSON on stdout.
    """
    from atlas_edge.export.faces.graph import write_face
    from atlas_edge.runtimes.plain import NOTICE_KEY

    notes = write_face(bundle, out, face=face, overwrite=overwrite)
    if NOTICE_KEY in notes:
        console().print(f"WARNING: {notes[NOTICE_KEY]}", style="yellow")
    if json:
        print_json(notes)
    else:
        print(f"{out}: {notes['atlas_edge_input']}, normalisation {notes['atlas_edge_normalisation']}")


def layout(
    bundle: Path,
    /,
    *,
    layout: Literal["triton", "ovms", "onnxruntime", "bioimageio"],
    out: Path,
    overwrite: Flag = False,
) -> None:
    """Copy a bundle's model into the folder that a model server or another program reads, with its configuration.

    Args:
        bundle: Bundle folder.
        layout: Triton's model repository, OpenVINO Model Server's folder with config.json, or a model package of ONNX
            Runtime, or rdf.yaml of the BioImage Model Zoo with tiles and embeddings to test it by.
        out: Folder to write.
        overwrite: Replace a folder that this command wrote.
    """
    from atlas_edge.export.faces.layouts import server_name, write_layout

    manifest = write_layout(bundle, out, layout=layout, overwrite=overwrite)
    if manifest.notice:
        console().print(f"WARNING: {manifest.notice}", style="yellow")
    version = ", version 1" if layout in ("triton", "ovms") else ""
    print(f"{out}: {server_name(manifest)}{version}, for {layout}")
