"""A process that pushes a data set to the Hub and loads it by its name.

python dataset_process.py REPO_ID
"""

import json
import sys

from datasets import Dataset, load_dataset

ROWS = {"user_id": ["u1", "u2", "Ärztin"], "age": [31, None, 47]}


def main(repo_id):
    commit = Dataset.from_dict(ROWS).push_to_hub(repo_id, private=True)
    loaded = load_dataset(repo_id, split="train")
    report = {"commit": commit.oid, "rows": loaded.to_dict(), "expected": ROWS}
    sys.stdout.write("\n" + json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
