"""What a stranger, or a bad disk, may do to a checkpoint; a random generator draws it all."""

import json
import os
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load

from modeling_ftmamba.catalogue import weights_fingerprint
from modeling_ftmamba.processing_ftmamba import fingerprint_of

BROKEN_BEFORE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    RuntimeError, SafetensorError, struct.error, OSError,
)  # fmt: skip
"""An earlier change may have broken a file beyond the next one."""

INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "preprocessor_config.json")
TENSOR_FILES = ("model*", "vocabularies*", "catalogue*", "local/seen*")
ALL_FILES = (
    *CONFIGS, "all_results.json", INDEX, *TENSOR_FILES, "README.md", "recipe.yaml",
    "local/users.parquet",
)  # fmt: skip

NUMBERS = (
    -1, 0, 1, 3, 2**16 + 1, 2**31, 2**40, 2**63, 10**30, -(2**63), 0.5, -1e308, 1e308, 1e-320,
)  # fmt: skip
TEXTS = (
    "", "x" * 10_000, "../../../etc/passwd", "/etc/passwd", "a/b", "\0", "\ud800", "mamba", "F64",
    "<script>alert(1)</script>", "__class__", "kernels-community/evil", "numeric", "vector",
)  # fmt: skip
RAW = (
    "NaN", "-Infinity", "1e999", "9" * 5000, "[" * 5000, '{"a":' * 3000, "", "null,", "[]]", "\\",
)  # fmt: skip
DEEP = json.loads("[" * 40 + "1" + "]" * 40)
VALUES = (
    None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], DEEP, [0] * 5000, {"a": {}}, ["x"],
)  # fmt: skip
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4", "Q7", 7)
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0)
INTEGERS = (-1, 0, 1, 2**31, 2**62, -(2**63), 2**63 - 1)
EXTRA = (
    "pytorch_model.bin", "training_args.bin", "x.pkl", "adapter_config.json", "model.gguf",
    "shard-00000-model-00001-of-00002.safetensors", INDEX, "generation_config.json", "local/x.pt",
    "config.1.0.0.json", "evil.py", ".metadata", "notes.txt", "processor_config.json",
)  # fmt: skip


def replace(path: Path, content: bytes) -> None:
    """Write a file anew: neither another link to it, nor a map of it into memory, is changed."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def flip(rng: Random, content: bytes) -> bytes:
    """Change a few bytes anywhere."""
    changed = bytearray(content)
    for _ in range(rng.randint(1, 5)):
        changed[rng.randrange(len(changed))] ^= rng.randint(1, 255)
    return bytes(changed)


def cut(rng: Random, content: bytes) -> bytes:
    """Cut a file short, and write more behind it."""
    return content[: rng.randint(0, len(content))] + rng.randbytes(rng.choice((0, 0, 3, 40)))


def swap(rng: Random, content: bytes) -> bytes:
    """Replace, delete, rename or add a value somewhere in a JSON file."""
    document = json.loads(content)
    found: list[tuple[Any, Any]] = []
    waiting = [document]
    while waiting:
        owner = waiting.pop()
        for key in list(owner) if isinstance(owner, dict) else range(len(owner)):
            found.append((owner, key))
            if isinstance(owner[key], dict | list):
                waiting.append(owner[key])
    owner, key = rng.choice(found)
    action = rng.choice(("replace", "replace", "delete", "rename", "add", "raw"))
    if action == "delete":
        del owner[key]
    elif action in ("rename", "add") and isinstance(owner, dict):
        value = owner.pop(key) if action == "rename" else rng.choice(VALUES)
        owner[rng.choice((*TEXTS, "columns", "dtype"))] = value
    else:
        owner[key] = "@@raw@@" if action == "raw" else rng.choice(VALUES)
    text = json.dumps(document).replace('"@@raw@@"', rng.choice(RAW))
    return text.encode("utf-8", "surrogatepass")


def _take_apart(content: bytes) -> tuple[dict[str, Any], bytearray, list[str]]:
    """Return the header of a safetensors file, its bytes after that, and its tensors' names."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = sorted(name for name in header if name != "__metadata__")
    return header, bytearray(content[8 + size :]), names


def _together(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def change_header(rng: Random, content: bytes) -> bytes:
    """Change what the header of a safetensors file says."""
    header, data, names = _take_apart(content)
    name, number, text = rng.choice(names), rng.choice(NUMBERS), rng.choice(TEXTS)
    action = rng.choice(("shape", "dtype", "data_offsets", "delete", "rename", "meta", "add"))
    if action == "dtype":
        header[name]["dtype"] = rng.choice(DTYPES)
    elif action in ("shape", "data_offsets"):
        numbers = header[name][action]
        numbers[rng.randrange(len(numbers))] = number
    elif action in ("delete", "rename"):
        entry = header.pop(name)
        header |= {text: entry} if action == "rename" else {}
    elif action == "meta":
        key = rng.choice(("catalogue", "format_version", "format", text))
        header.setdefault("__metadata__", {})[key] = text
    else:
        offsets = [len(data), len(data) + 8]
        data += bytes(8)
        header[text] = {"dtype": "I64", "shape": [1], "data_offsets": offsets}
    return _together(header, data)


def change_numbers(rng: Random, content: bytes) -> bytes:
    """Change numbers in a tensor to such as must not be there."""
    header, data, names = _take_apart(content)
    entry, whole = header[rng.choice(names)], rng.choice(INTEGERS)
    start, end = entry["data_offsets"]
    form, value = {
        "F32": ("<f", rng.choice(FLOATS)), "F64": ("<d", rng.choice(FLOATS)), "I64": ("<q", whole),
        "I32": ("<i", max(-(2**31), min(whole, 2**31 - 1))), "U8": ("<B", whole % 256),
    }[entry["dtype"]]  # fmt: skip
    size = struct.calcsize(form)
    for index in (0, *(rng.randrange(2**16) for _ in range(rng.randint(0, 4)))):
        if end > start:
            at = start + index % ((end - start) // size) * size
            data[at : at + size] = struct.pack(form, value)
    return _together(header, data)


def a_file(rng: Random, folder: Path, patterns: tuple[str, ...]) -> Path:
    """Return one of the files; an IndexError says that there is none."""
    return rng.choice(sorted(one for one in folder.glob(rng.choice(patterns)) if one.is_file()))


def change_files(rng: Random, folder: Path) -> None:
    """Delete, rename or exchange files, add some, or put links, folders and pipes there."""
    action = rng.choice(
        ("add", "add", "delete", "rename", "exchange", "link", "folder", "pipe"),
    )
    if action == "add":
        content = rng.choice((b"", b"{}", b"\x80\x04\x95garbage.", b"PK\x03\x04", b"null"))
        (folder / rng.choice(EXTRA)).write_bytes(content)
        return
    path, kept = a_file(rng, folder, ALL_FILES), a_file(rng, folder, ALL_FILES).read_bytes()
    path.unlink()
    if action == "rename":
        path.with_name(f"{path.name}.old").write_bytes(kept)
    elif action == "exchange":
        path.write_bytes(kept)
    elif action == "link":
        path.symlink_to(rng.choice(("/dev/zero", path.name, "/etc/passwd")))
    elif action == "folder":
        path.mkdir()
    elif action == "pipe":
        os.mkfifo(path)


JSON_FILES = (*CONFIGS * 3, "all_results.json", INDEX)
CHANGES: tuple[tuple[Callable[[Random, bytes], bytes] | None, tuple[str, ...]], ...] = (
    (swap, JSON_FILES), (swap, JSON_FILES), (change_header, TENSOR_FILES),
    (change_numbers, TENSOR_FILES), (flip, ALL_FILES), (cut, ALL_FILES), (None, ()), (None, ()),
)  # fmt: skip
"""Changes of a file and the files that they are made in; None changes the files themselves."""


def break_checkpoint(rng: Random, folder: Path) -> None:
    """Make one to three changes."""
    for _ in range(rng.randint(1, 3)):
        change, patterns = rng.choice(CHANGES)
        with suppress(*BROKEN_BEFORE):
            if change is None:
                change_files(rng, folder)
            else:
                path = a_file(rng, folder, patterns)
                replace(path, change(rng, path.read_bytes()))


def sign_again(folder: Path) -> None:
    """Make fingerprints fit what the files hold now: they protect from mishaps, not from people."""

    def read(path: Path) -> bytes:
        # Not from a pipe, which would never end.
        return path.read_bytes() if path.is_file() else b""

    # What is broken beyond that stays as it is.
    with suppress(*BROKEN_BEFORE):
        config = folder / "preprocessor_config.json"
        values = json.loads(read(config))
        arrays = load(read(folder / "vocabularies.safetensors"))
        columns = [values["user_columns"], values["item_columns"]]
        numbers = {name: tensor.numpy() for name, tensor in arrays.items()}
        values["fingerprint"] = fingerprint_of(numbers, columns)
        replace(config, json.dumps(values).encode())
    with suppress(*BROKEN_BEFORE):
        weights: dict[str, Any] = {}
        for path in folder.glob("model*.safetensors"):
            weights |= load(read(path))
        path = folder / "catalogue.safetensors"
        header, data, _ = _take_apart(read(path))
        facts = json.loads(header["__metadata__"]["catalogue"])
        model: Any = SimpleNamespace(state_dict=lambda: weights)
        facts["fingerprint"] = weights_fingerprint(model)
        header["__metadata__"]["catalogue"] = json.dumps(facts)
        replace(path, _together(header, data))
