"""The command `apem-fast`, also `python -m apem_fast`. It says in one sentence which libraries it lacks."""

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
