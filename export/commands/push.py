"""`atlas-export push`, registered by `export.cli`: a bundle to the Hugging Face Hub."""

from pathlib import Path

from atlas_edge.cli import console, print_json
from atlas_edge.options import Flag, Json


def push(
    bundle: Path,
    to: str,
    /,
    *,
    rights: str | None = None,
    public: Flag = False,
    overwrite: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
) -> None:
    """Send a bundle, with its model card and hashes, to a model repository of the Hugging Face Hub.

    Refused where the licence of its weights or of its calibration tiles does not allow that, or says nothing. Log in
    first: hf auth login. Example:

        atlas-export push bundles/atlas2-s-onnx-int8 hf-hub:my-lab/atlas2-s-onnx-int8 --dry-run

    Args:
        bundle: Bundle folder.
        to: hf-hub:organisation/name; made where it is not there.
        rights: Why it may be given on, where the bundle does not say so; goes into the commit's description.
        public: A repository that is made is open to everybody; private when left out.
        overwrite: Replace a bundle that is there.
        dry_run: Check the bundle and its licences, say what would be sent, and use no network.
        json: Print what was sent as JSON on stdout.
    """
    from atlas_edge.export.sharing import push_bundle

    pushed = push_bundle(bundle, to, rights=rights, public=public, overwrite=overwrite, dry_run=dry_run)
    for doubt in pushed.doubts:
        console().print(f"WARNING: {doubt}; given on since: {rights}", style="yellow", soft_wrap=True)
    files = pushed.manifest.files
    size = sum(file.size_bytes for file in files) / 1e6
    if json:
        print_json(
            {
                "repository": pushed.repository,
                "commit": pushed.commit,
                "doubts": pushed.doubts,
                "files": [file.model_dump() for file in files],
            }
        )
    elif dry_run:
        print(f"would send {len(files) + 1} files, {size:.1f} MB, to {to}; nothing was sent")
    else:
        print(f"{to}: {len(files) + 1} files, {size:.1f} MB, commit {pushed.commit}")
        print(f"there: hf download {pushed.repository} --revision {pushed.commit} --local-dir BUNDLE")
