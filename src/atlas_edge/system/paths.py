"""Names of files that come from elsewhere: in a manifest, in a pack."""

# Drives and streams, the other separator, and the end of a C string.
_NEVER = frozenset(":\\\0")


def stays_inside(name: str) -> bool:
    """Whether a name with forward slashes stays below its folder, as POSIX and as Windows read it."""
    # Windows drops dots and blanks at the end: `.. ` is `..` there.
    return not _NEVER & set(name) and all(part.rstrip(". ") for part in name.split("/"))
