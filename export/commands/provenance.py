"""`atlas-export sign` and `atlas-export sbom`: what an auditor keeps of a bundle."""

import json
import os
from pathlib import Path

from atlas_edge.errors import UsageError
from atlas_edge.options import Flag

# An option would stand in the shell's history, and in the list of processes.
PASSWORD_VARIABLE = "ATLAS_EXPORT_KEY_PASSWORD"


def sign(bundle: Path, /, *, key: Path, out: Path | None = None, overwrite: Flag = False) -> None:
    """Sign a bundle or package with a key of your own (OpenSSF model signing); no network is used.

    Who has the public key checks it: atlas-export verify BUNDLE --public-key key.pub. Example:

        atlas-export sign bundles/atlas2-s-openvino-int8 --key key.pem

    Args:
        bundle: Bundle folder, or a package of several; its files are checked first.
        key: Private key in PEM (elliptic curve P-256, P-384 or P-521); its password, where it has one, is read from
            ATLAS_EXPORT_KEY_PASSWORD.
        out: The signature; BUNDLE.sig beside the folder when left out.
        overwrite: Replace a signature that is there.
    """
    from atlas_edge.bundle import verify_bundle
    from atlas_edge.package.manifest import is_package
    from atlas_edge.package.signature import sign_folder, signature_beside
    from atlas_edge.package.verify import verify_package

    out = signature_beside(bundle) if out is None else out
    _check_file_to_write(bundle, out, overwrite=overwrite)
    if is_package(bundle):
        verify_package(bundle)
    else:
        verify_bundle(bundle)
    out.parent.mkdir(parents=True, exist_ok=True)
    sign_folder(bundle, out, private_key=key, password=os.environ.get(PASSWORD_VARIABLE))
    print(f"{out}: signed. There: atlas-export verify {bundle} --public-key KEY")


def sbom(bundle: Path, /, *, out: Path | None = None, overwrite: Flag = False) -> None:
    """Write what a bundle is made of, and what runs it in this install, as a CycloneDX 1.6 bill of materials.

    The model with its card, licence, data and hashes; its files; every distribution that its runtime needs here, with
    version and licence. The same bundle in the same install gives the same bytes. Example:

        atlas-export sbom bundles/atlas2-s-openvino-int8 --out atlas2-s.cdx.json

    Args:
        bundle: Bundle folder.
        out: File to write; stdout when left out.
        overwrite: Replace a file that is there.
    """
    from atlas_edge.export.report.sbom import bill_of_materials
    from atlas_edge.system.atomic import write_atomic

    if out is not None:
        _check_file_to_write(bundle, out, overwrite=overwrite)
    bill = bill_of_materials(bundle)
    text = json.dumps(bill, indent=2, ensure_ascii=False) + "\n"
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, text.encode())
    print(f"{out}: CycloneDX {bill['specVersion']}, {len(bill['components'])} components")


def _check_file_to_write(bundle: Path, out: Path, *, overwrite: bool) -> None:
    from atlas_edge.bundle import check_outside

    check_outside(bundle, out)
    if out.is_dir():
        raise UsageError(f"{out} is a folder, expected a file to write", hint="choose another --out")
    if out.exists() and not overwrite:
        raise UsageError(f"{out} exists", hint="add --overwrite to replace it, or choose another --out")
