"""The command `apem-fast`, also as `python -m apem_fast`: refused in a sentence where its libraries are missing."""

from __future__ import annotations

import sys

from apem_fast.extras import MissingExtra, extra


def main() -> None:
    """The entry point: as a program, not as a library."""
    try:
        with extra("experiment", "the command"):
            from apem_fast.cli.main import main as command
    except MissingExtra as error:
        sys.exit(f"apem-fast: {error}")
    command()


if __name__ == "__main__":
    main()
