"""What a file is that somebody took for another, told by how it begins."""

from pathlib import Path

HEADS = {
    b"version https://git-lfs": "it is a Git LFS pointer: fetch the file itself with git lfs pull",
    b"\x1f\x8b": "it is compressed: unpack it first, with gunzip",
    b"BZh": "it is compressed: unpack it first, with bunzip2",
    b"\xfd7zXZ": "it is compressed: unpack it first, with unxz",
    b"7z\xbc\xaf": "it is an archive of 7-Zip: unpack it first",
    b"<": "it is a web page (HTML or XML), so something else was downloaded",
}


def kind_of(file: Path | bytes) -> str | None:
    """A clause that says what a file is, if nobody can have meant it; None where it may be any.

    Args:
        file: its path, or what it begins with.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            file = stream.read(512)
    if not file:
        return "it is empty: copy or download it again"
    start = file[:512].lstrip()
    return next((clause for begin, clause in HEADS.items() if start.startswith(begin)), None)
