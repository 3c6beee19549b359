"""A process with torch and transformers and nothing else: records in, recommendations out.

python bare_pipeline.py '{"blocked": [...], "place": "name/repo", "records": [...], ...}'

Run by path, never imported, as `bare_process.py`, beside which it stands.
"""

import json
import sys
from pathlib import Path

from bare_process import OnlyWhatIsLeft, refuse_other_machines


def recommend(place, records, token):
    from transformers import pipeline

    pipe = pipeline("recommendation", model=place, trust_remote_code=True, token=token)
    best = pipe(records[0], top_k=1)[0]["item_key"]
    return pipe, {
        "class": type(pipe).__name__,
        "module": type(pipe).__module__,
        "one": pipe(records[0], top_k=5),
        "list": pipe(records, top_k=5, batch_size=2),
        "stream": list(pipe(iter(records), top_k=5)),
        "excluded": pipe(records[0], top_k=5, exclude=[best]),
    }


def ask_handler(folder, records):
    """Import the folder's own handler as an endpoint does."""
    sys.path.insert(0, folder)
    from handler import EndpointHandler

    handler = EndpointHandler(folder)
    return {
        "one": handler({"inputs": records[0], "parameters": {"top_k": 5}}),
        "list": handler({"inputs": records, "parameters": {"top_k": 5}}),
        "wrong": handler({"inputs": [records[0], {"age": "old"}]}),
    }


def main(order):
    at_start = set(sys.modules)
    sys.meta_path[:] = [OnlyWhatIsLeft(list(sys.meta_path), order["blocked"])]
    sys.addaudithook(refuse_other_machines)
    import torch

    torch.set_num_threads(1)
    records = order["records"]
    pipe, report = recommend(order["place"], records, order.get("token"))
    again = Path("saved-again").resolve()
    pipe.save_pretrained(again)
    report["again"] = recommend(str(again), records, None)[1]
    if "handler" in order:
        report["handler"] = ask_handler(order["handler"], records)
    report["imported"] = sorted({name.partition(".")[0] for name in set(sys.modules) - at_start})
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
