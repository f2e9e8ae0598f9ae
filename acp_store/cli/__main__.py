"""Where ``acp-store`` and ``python -m acp_store.cli`` begin."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec

__all__ = ["main"]

_NEEDED = ("typer", "rich")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code.

    Args:
        arguments: What follows the program's name; None takes what the process was given.
    """
    try:
        if not all(map(find_spec, _NEEDED)):
            from acp_store.errors import MissingExtraError

            print(f"error: {MissingExtraError('cli', 'the program acp-store')}", file=sys.stderr)  # noqa: T201
            return 1
        from acp_store.cli.app import run
    except KeyboardInterrupt:
        return 130
    return run(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
