#!/usr/bin/env python3
"""Writes what the package says of the libraries inside the program: their licences in full, and an SBOM (CycloneDX 1.5, JSON).

usage: cross/notices.py --target TRIPLE --licences FILE --sbom FILE

Taken from cargo's own metadata for the features and the target of the appliance. Fails where a crate names no licence, or one that is
not on the list of permissive ones: then a person must look.
"""

import argparse
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import uuid

PERMISSIVE = {
    "0BSD", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-1-Clause", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0",
    "CC0-1.0", "CDLA-Permissive-2.0", "ISC", "MIT", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib",
}  # fmt: skip
LICENCE_FILE = re.compile(r"^(licen[cs]e|copying|copyright|notice|unlicense|third.party)", re.IGNORECASE)
LONGEST = 256 * 1024


def allowed(expression: str) -> bool:
    """Whether an SPDX expression can be met with permissive licences alone."""
    tokens = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR "))
    merged = []
    for token in tokens:  # "X WITH Y" is one licence
        if token == "WITH" or merged and merged[-1].endswith(" WITH"):
            merged[-1] += " " + token
        else:
            merged.append(token)
    words = ["True" if t in PERMISSIVE else t.lower() if t in ("AND", "OR", "(", ")") else "False" for t in merged]
    # Only the words True, False, and, or, and parentheses are left.
    return bool(eval(" ".join(words), {"__builtins__": {}}))


def linked(metadata: dict) -> list[dict]:
    """The crates that are linked into the program, or whose macros wrote parts of it; no build script's."""
    packages = {p["id"]: p for p in metadata["packages"]}
    nodes = {n["id"]: n for n in metadata["resolve"]["nodes"]}
    root = metadata["resolve"]["root"]
    seen, todo = set(), [root]
    while todo:
        at = todo.pop()
        if at in seen:
            continue
        seen.add(at)
        todo += [d["pkg"] for d in nodes[at]["deps"] if any(k["kind"] is None for k in d["dep_kinds"])]
    edges = {
        i: sorted(
            d["pkg"]
            for d in nodes[i]["deps"]
            if d["pkg"] in seen and any(k["kind"] is None for k in d["dep_kinds"])
        )
        for i in seen
    }
    found = [packages[i] | {"needs": edges[i], "root": i == root} for i in seen]
    return sorted(found, key=lambda p: (not p["root"], p["name"], p["version"]))


def is_macro(package: dict) -> bool:
    return any("proc-macro" in t["kind"] for t in package["targets"])


def purl(package: dict) -> str:
    return f"pkg:cargo/{package['name']}@{package['version']}"


def texts(package: dict) -> list[tuple[str, str]]:
    """The licence files of a crate: name and text."""
    folder = pathlib.Path(package["manifest_path"]).parent
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and LICENCE_FILE.match(path.name) and path.suffix not in (".rs", ".html"):
            found.append((path.name, path.read_text(errors="replace")[:LONGEST].strip()))
    return found


def sqlite_version(packages: list[dict]) -> str | None:
    """The version of SQLite inside libsqlite3-sys, which is C and not a crate of its own."""
    for p in packages:
        if p["name"] == "libsqlite3-sys":
            header = pathlib.Path(p["manifest_path"]).parent / "sqlite3/sqlite3.h"
            return re.search(r'#define SQLITE_VERSION\s+"([^"]+)"', header.read_text()).group(1)
    return None


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    for name in ("target", "licences", "sbom"):
        arguments.add_argument(f"--{name}", required=True)
    args = arguments.parse_args()
    metadata = json.loads(
        subprocess.check_output(
            ["cargo", "metadata", "--format-version=1", "--locked", "--no-default-features", "--filter-platform", args.target]
        )
    )
    packages = linked(metadata)
    compiler = subprocess.check_output(["rustc", "-V"], text=True).split()[1]
    lock = checksums(pathlib.Path(metadata["workspace_root"]) / "Cargo.lock")
    root, crates = packages[0], packages[1:]

    wrong = [f"{p['name']} {p['version']}: {p['license']}" for p in crates if not allowed(p["license"] or "none")]
    if wrong:
        sys.exit("cross/notices.py: not on the list of permissive licences: " + "; ".join(wrong))

    components = []
    for p in crates:
        c = {"type": "library", "bom-ref": purl(p), "name": p["name"], "version": p["version"], "purl": purl(p)}
        c["scope"] = "excluded" if is_macro(p) else "required"
        c["licenses"] = [{"expression": p["license"].replace("/", " OR ")}]
        if p["repository"]:
            c["externalReferences"] = [{"type": "vcs", "url": p["repository"]}]
        if checksum := lock.get((p["name"], p["version"])):
            c["hashes"] = [{"alg": "SHA-256", "content": checksum}]
        components.append(c)
    refs = {p["id"]: purl(p) for p in packages}
    edges = [{"ref": purl(p), "dependsOn": [refs[n] for n in p["needs"]]} for p in packages]
    components.append(
        {
            "type": "library", "bom-ref": f"rust-std@{compiler}", "name": "rust-std", "version": compiler,
            "licenses": [{"expression": "MIT OR Apache-2.0"}],
        }
    )  # fmt: skip
    if sqlite := sqlite_version(packages):
        components.append(
            {
                "type": "library", "bom-ref": f"sqlite@{sqlite}", "name": "sqlite", "version": sqlite,
                "purl": f"pkg:generic/sqlite@{sqlite}", "licenses": [{"license": {"name": "public domain"}}],
            }
        )  # fmt: skip
    body = json.dumps(components, sort_keys=True)
    sbom = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        # The same content has the same number, so that a build can be repeated.
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, hashlib.sha256(body.encode()).hexdigest())}",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": purl(root), "name": root["name"], "version": root["version"],
                "purl": purl(root), "licenses": [{"expression": root["license"]}],
            },
            "properties": [{"name": "target", "value": args.target}, {"name": "rustc", "value": compiler}],
        },
        "components": components,
        "dependencies": edges,
    }  # fmt: skip
    pathlib.Path(args.sbom).write_text(json.dumps(sbom, indent=1) + "\n")

    # Equal texts are printed once, under all the crates that have them.
    by_text: dict[str, list[str]] = {}
    without = []
    for p in crates:
        of_crate = texts(p)
        if not of_crate:
            without.append(f"{p['name']} {p['version']}: {p['license']}; {', '.join(p['authors']) or p['repository']}")
        for _, text in of_crate:
            by_text.setdefault(text, []).append(f"{p['name']} {p['version']}")
    with open(args.licences, "w") as out:
        print(f"Libraries in the program scanside {root['version']} and their licences.\n", file=out)
        for p in crates:
            print(f"  {p['name']} {p['version']}: {p['license']}", file=out)
        print(f"  Rust's standard library {compiler}: MIT OR Apache-2.0", file=out)
        if sqlite:
            print(f"  SQLite {sqlite}: public domain", file=out)
        if without:
            print("\nThese crates come without a licence file; their manifests name licence and authors:\n", file=out)
            for line in without:
                print(f"  {line}", file=out)
        for text, of in sorted(by_text.items(), key=lambda e: e[1][0]):
            print(f"\n{'=' * 100}\n{', '.join(sorted(set(of)))}\n{'-' * 100}\n{text}", file=out)
    print(f"{len(crates)} crates, {len(by_text)} licence texts, {len(without)} crates without a licence file", file=sys.stderr)


def checksums(lock: pathlib.Path) -> dict:
    """sha256 of each crate's archive, as the lock file has it."""
    found, name, version = {}, None, None
    for line in lock.read_text().splitlines():
        key, _, value = line.partition(" = ")
        value = value.strip('"')
        if key == "name":
            name = value
        elif key == "version":
            version = value
        elif key == "checksum":
            found[(name, version)] = value
    return found


if __name__ == "__main__":
    main()
