"""OpenSSF model signing of the signature beside a bundle."""

from atlas_edge.bench.conformance.finding import Answer, Check, Skip
from atlas_edge.bench.conformance.subject import Subject
from atlas_edge.errors import ChecksumError
from atlas_edge.package.signature import check_signature, signature_beside


def _signed(subject: Subject) -> Answer:
    signature = signature_beside(subject.bundle)
    if not signature.is_file():
        said = f"no {signature.name} beside the bundle (atlas-export sign)"
        if subject.public_key is None:
            raise Skip(said)
        return Answer(passed=False, said=said)
    if subject.public_key is None:
        raise Skip(f"{signature.name} is there; by whom it is, --public-key says")
    try:
        check_signature(subject.bundle, subject.public_key)
    except ChecksumError as error:
        return Answer(passed=False, said=error.message)
    return Answer(passed=True, said=f"all files are as the holder of {subject.public_key.name} signed them")


CHECKS = (
    Check(
        program="model-signing",
        distribution="model-signing",
        asked="signature beside the bundle",
        run=_signed,
        command="model_signing verify key BUNDLE --signature BUNDLE.sig --public_key KEY",
    ),
)
