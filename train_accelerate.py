"""`ftmamba train` as a script: `accelerate launch --quiet train_accelerate.py --config ...`.

Accelerate launches it in several processes. The recipe holds every option; a flag overrides it;
`--help` lists them all. Without `--quiet` the launcher prints its own stack after our error.
"""

import sys
from collections.abc import Sequence

from ftmamba.__main__ import main as ftmamba


def main(argv: Sequence[str]) -> int:
    """Train and return the exit code, as `ftmamba train` does."""
    return ftmamba(["train", *argv], program="train_accelerate.py")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
