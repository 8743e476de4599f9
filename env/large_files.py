"""Write large_files.yml for the model zoo, which takes no file of more than 25 MB but the address of each.

`make release` calls it: python env/large_files.py BUNDLE ADDRESS
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

LIMIT = 25 * 10**6


def large_files(bundle: Path, address: str) -> str:
    """The content of large_files.yml, empty where no file is over the limit.

    Args:
        bundle: its folder.
        address: where the files will lie under the same paths.

    Raises:
        ValueError: there are such files and no address.
    """
    files = sorted(file for file in bundle.rglob("*") if file.is_file() and file.stat().st_size > LIMIT)
    paths = [file.relative_to(bundle).as_posix() for file in files]
    if paths and not address:
        raise ValueError(f"{', '.join(paths)}: over 25 MB, say where they will lie: make release LARGE_FILES=https://…")
    entries = [
        f'  - path: "{path}"\n    url: "{address.rstrip("/")}/{path}"\n'
        f'    hash_val: "{hashlib.md5(file.read_bytes()).hexdigest()}"\n    hash_type: "md5"\n'
        for path, file in zip(paths, files, strict=True)
    ]
    return "large_files:\n" + "".join(entries) if entries else ""


def main() -> None:
    bundle, address = Path(sys.argv[1]), sys.argv[2]
    try:
        content = large_files(bundle, address)
    except ValueError as error:
        sys.exit(f"make: {error}")
    if content:
        (bundle / "large_files.yml").write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
