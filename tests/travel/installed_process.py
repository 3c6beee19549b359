"""A process with this project installed: push a checkpoint to the Hub, recommend from it.

python installed_process.py FOLDER REPO_ID '{"age": 31}'
"""

import json
import sys
from dataclasses import asdict

from ftmamba import Recommender
from hub_cards import push_checkpoint


def main(folder, repo_id, record):
    commit = push_checkpoint(folder, repo_id).commit
    recommender = Recommender.from_pretrained(repo_id, revision=commit)
    answers = recommender.recommend(record=json.loads(record), k=5)
    report = {
        "commit": commit,
        "answers": [asdict(answer) for answer in answers],
        "knows_users": recommender.users is not None,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
