"""Train and evaluate a two-tower recommender: `accelerate launch train_accelerate.py --config ...`.

It is `ftmamba train` as a script, which Accelerate launches in several processes. The recipe holds
every option; a flag overrides it; `--help` lists them all.
"""

import sys
from collections.abc import Sequence

from ftmamba.commands.train import train_from_flags
from ftmamba.hub import hide_tokens, known_tokens

BAD_INPUT = 2


def main(argv: Sequence[str]) -> int:
    """Run a recipe and return the exit code: 0, or 2 after bad input."""
    try:
        train_from_flags(argv, program="train_accelerate.py")
    except (ValueError, OSError) as error:
        message = hide_tokens(str(error), known_tokens())
        print(f"train_accelerate.py: error: {message}", file=sys.stderr)
        return BAD_INPUT
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
