"""Verifies an unpacked bundle with python-tuf: every root by the one before, the manifest by the newest root, every file by the manifest."""

import pathlib
import sys

from tuf.api.metadata import Metadata, Root, Targets



def verify(by, role, metadata):
    """Raises unless enough keys of the role signed."""
    by.signed.verify_delegate(role, metadata.signed_bytes, metadata.signatures)


folder = pathlib.Path(sys.argv[1])
root = Metadata[Root].from_file(str(folder / "roots" / "1.json"))
verify(root, "root", root)
version = 1
while (path := folder / "roots" / f"{version + 1}.json").exists():
    version += 1
    newer = Metadata[Root].from_file(str(path))
    assert newer.signed.version == version
    verify(root, "root", newer)
    verify(newer, "root", newer)
    root = newer
manifest = Metadata[Targets].from_file(str(folder / "manifest.json"))
verify(root, "targets", manifest)
files = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()} - {"manifest.json"}
assert files == set(manifest.signed.targets), files
for name, target in manifest.signed.targets.items():
    target.verify_length_and_hashes((folder / name).read_bytes())
print(f"root {version}, bundle version {manifest.signed.version}")
