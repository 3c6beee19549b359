"""A process that follows a user of a history model from the Hub, as `AutoModel` loads it.

python history_process.py '{"repo": "user/name", "revision": "sha", "record": {...},
                            "items": {...}, "raw": {...}, "outputs": "file"}'

Run by path, never imported: it stands where somebody without this project stands.
"""

import json
import sys


def main(order):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoFeatureExtractor, AutoModel, pipeline

    place = {"revision": order["revision"], "trust_remote_code": True}
    model = AutoModel.from_pretrained(order["repo"], **place).eval()
    processor = AutoFeatureExtractor.from_pretrained(order["repo"], **place)
    with torch.inference_mode():
        items = model.get_item_embeddings(**processor(items=order["items"]))
        state = model.start(**processor(users=order["record"]))
        features = torch.tensor(order["features"])
        for item, feature in zip(items, features, strict=True):
            state = model.observe(state, item[None, None], event_features=feature[None, None])
        followed = model.embed(state)
    save_file({"followed": followed.clone()}, order["outputs"])
    recommend = pipeline("recommendation", model=order["repo"], **place)
    keys = [one["item_key"] for one in recommend(order["raw"], top_k=3)]
    sys.stdout.write(json.dumps({"class": type(model).__name__, "keys": keys}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
