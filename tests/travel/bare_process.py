"""A process with torch and transformers and nothing else: raw records in, recommendations out.

python bare_process.py '{"blocked": [...], "places": [...], "records": {...}, "outputs": "folder"}'

Run by path, never imported: it stands where a person without this project stands.
"""

import json
import sys
from importlib.abc import MetaPathFinder
from itertools import chain
from pathlib import Path


class OnlyWhatIsLeft(MetaPathFinder):
    """Finds as the given finders do, but nothing of the blocked packages, as if uninstalled."""

    def __init__(self, finders, blocked):
        self.finders, self.blocked = finders, frozenset(blocked)

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.blocked:
            return None
        specs = (finder.find_spec(fullname, path, target) for finder in self.finders)
        return next((spec for spec in specs if spec is not None), None)

    def find_distributions(self, *arguments, **options):
        finders = [finder for finder in self.finders if hasattr(finder, "find_distributions")]
        return chain.from_iterable(
            finder.find_distributions(*arguments, **options) for finder in finders
        )


def refuse_other_machines(event, arguments):
    """Audit hook: an attempt to reach anything but this machine is an error."""
    if event == "socket.connect" and isinstance(arguments[1], tuple):
        host = arguments[1][0]
        if host not in ("127.0.0.1", "::1"):
            raise OSError(f"a bare process tried to connect to {host}")


def embed(place, records, token, outputs):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

    options = {"trust_remote_code": True, "token": token}
    classes = (AutoConfig, AutoModel, AutoFeatureExtractor, AutoProcessor)
    loaded = [one.from_pretrained(place, **options) for one in classes]
    _, model, extractor, processor = loaded
    with torch.inference_mode():
        output = model.eval()(**processor(users=records["users"], items=records["items"]))
        first = model.get_user_embeddings(**extractor(users=records["users"][0]))
    tensors = {"user_embeds": output.user_embeds, "item_embeds": output.item_embeds}
    tensors |= {"scores": output.scores, "first_user_embeds": first}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, outputs)
    return {
        "classes": [type(one).__name__ for one in loaded],
        "modules": [type(one).__module__ for one in loaded],
        "scan": getattr(model, "scan_implementation", ""),
    }


def recommend(place, records, token, again):
    from transformers import pipeline

    pipe = pipeline("recommendation", model=place, trust_remote_code=True, token=token)
    report = {
        "module": type(pipe).__module__,
        "one": pipe(records[0], top_k=5),
        "list": pipe(records, top_k=5),
        "pairs": pipe(records, top_k=5, batch_size=2),
        "stream": list(pipe(iter(records), top_k=5)),
    }
    best = report["one"][0]["item_key"]
    report["excluded"] = pipe(records[0], top_k=5, exclude=[best])
    if again:
        pipe.save_pretrained(again)
        report["again"] = recommend(str(again), records, None, None)
    return report


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
    folder, token = Path(order["outputs"]), order.get("token")
    report = {"loaded": [], "recommended": []}
    for number, place in enumerate(order["places"]):
        outputs = folder / f"{number}.safetensors"
        report["loaded"].append(embed(place, order["records"], token, outputs))
    for number, place in enumerate(order.get("pipelines", ())):
        again = folder / f"again-{number}"
        users = order["records"]["users"]
        report["recommended"].append(recommend(place, users, token, again))
    if "handler" in order:
        report["handler"] = ask_handler(order["handler"], order["records"]["users"])
    report["imported"] = sorted({name.partition(".")[0] for name in set(sys.modules) - at_start})
    sys.stdout.write(json.dumps(report))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
