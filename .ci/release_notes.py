"""What CHANGELOG.md says of a version, for the page of its release: `python .ci/release_notes.py v0.1.0`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def notes(tag: str, package: str, changelog: str) -> str:
    """Raises ValueError where the tag, `__version__` in the package's text and the changelog's first heading differ."""
    said = re.search(r'^__version__ = "(.+)"$', package, re.MULTILINE)
    version = said[1] if said else "no version"
    if tag != f"v{version}":
        raise ValueError(f"{tag}: bco_ray/__init__.py says {version}; tag v{version}, or change it and commit")
    heading, _, rest = changelog.partition("\n## ")[2].partition("\n")
    if not re.fullmatch(rf"{re.escape(version)} \(\d{{4}}-\d\d-\d\d\)", heading):
        raise ValueError(f"{tag}: CHANGELOG.md begins with `{heading}`; say `{version} (YYYY-MM-DD)`")
    return rest.partition("\n## ")[0].strip()


if __name__ == "__main__":
    try:
        text = notes(sys.argv[1], (ROOT / "bco_ray/__init__.py").read_text(), (ROOT / "CHANGELOG.md").read_text())
    except ValueError as error:
        sys.exit(str(error))
    print(text)  # noqa: T201
