"""A process with torch and transformers and nothing else: raw records in, scores out.

python bare_process.py '{"blocked": [...], "places": [...], "records": {...}, "outputs": "folder"}'

Run by path, never imported: it stands where somebody without this project stands.
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


def load_and_embed(place, records, outputs):
    import torch
    from safetensors.torch import save_file
    from transformers import AutoConfig, AutoFeatureExtractor, AutoModel, AutoProcessor

    config = AutoConfig.from_pretrained(place, trust_remote_code=True)
    model = AutoModel.from_pretrained(place, trust_remote_code=True).eval()
    extractor = AutoFeatureExtractor.from_pretrained(place, trust_remote_code=True)
    processor = AutoProcessor.from_pretrained(place, trust_remote_code=True)
    with torch.inference_mode():
        output = model(**processor(users=records["users"], items=records["items"]))
        first = model.get_user_embeddings(**extractor(users=records["users"][0]))
    tensors = {"user_embeds": output.user_embeds, "item_embeds": output.item_embeds}
    tensors |= {"scores": output.scores, "first_user_embeds": first}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, outputs)
    loaded = {"config": config, "model": model, "extractor": extractor, "processor": processor}
    return {
        "classes": {name: type(one).__name__ for name, one in loaded.items()},
        "modules": {name: type(one).__module__ for name, one in loaded.items()},
        "model_type": config.model_type,
        "scan": model.scan_implementation,
    }


def main(order):
    at_start = set(sys.modules)
    sys.meta_path[:] = [OnlyWhatIsLeft(list(sys.meta_path), order["blocked"])]
    sys.addaudithook(refuse_other_machines)
    import torch

    torch.set_num_threads(1)
    folder = Path(order["outputs"])
    report = [
        load_and_embed(place, order["records"], folder / f"{number}.safetensors")
        for number, place in enumerate(order["places"])
    ]
    imported = {name.partition(".")[0] for name in set(sys.modules) - at_start}
    sys.stdout.write(json.dumps({"loaded": report, "imported": sorted(imported)}))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
