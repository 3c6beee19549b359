"""A process that loads a recommender by its name on the Hub and asks it once.

python loading_process.py '{"repo": "user/name", "revision": "main", "record": {"age": 31}}'
"""

import json
import sys

from ftmamba import Recommender


def main(order):
    try:
        recommender = Recommender.from_pretrained(order["repo"], revision=order["revision"])
    except OSError as error:
        sys.stdout.write(json.dumps({"error": str(error)}))
        return
    answers = recommender.recommend(record=order["record"], k=3)
    report = {
        "keys": [one.item_key for one in answers],
        "titles": [one.title for one in answers],
        "n_items": len(recommender.catalogue),
        "knows_users": recommender.users is not None,
    }
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
