"""The console entry. It works without click and rich, to say how to get them."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("click", "rich")
USAGE = 2


def main() -> None:
    """Runs ``meshmsg`` with the arguments of the process; exits with 2 if the extra ``cli`` is missing."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f'the command line needs {" and ".join(missing)}: pip install "meshmsg[cli]"',
            file=sys.stderr,
        )
        sys.exit(USAGE)
    from meshmsg.cli.verbs import meshmsg

    meshmsg(prog_name="meshmsg")
