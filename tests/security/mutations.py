"""What a stranger, or a bad disk, may do to a checkpoint: drawn by hypothesis.

A mutation is a function of the checkpoint's folder, with a name that says what it did.
"""

import json
import os
import struct
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from safetensors import SafetensorError
from safetensors.torch import load

from modeling_ftmamba.catalogue import weights_fingerprint
from modeling_ftmamba.processing_ftmamba import fingerprint_of

BROKEN_BEFORE = (
    ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError,
    RuntimeError, SafetensorError, struct.error, OSError,
)  # fmt: skip
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
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL", "F8_E4M3", "C64", "F4", "Q7", 7)
FLOATS = (float("nan"), float("inf"), -float("inf"), 3e38, -3e38, 1e-45, 0.0)
INTEGERS = (-1, 0, 1, 2**31, 2**62, -(2**63), 2**63 - 1)
EXTRA = (
    "pytorch_model.bin", "training_args.bin", "x.pkl", "adapter_config.json", "model.gguf",
    "shard-00000-model-00001-of-00002.safetensors", INDEX, "generation_config.json", "local/x.pt",
    "config.1.0.0.json", "evil.py", ".metadata", "notes.txt", "processor_config.json",
)  # fmt: skip


@dataclass(frozen=True)
class Mutation:
    """One change of a checkpoint."""

    name: str
    apply: Callable[[Path], None]

    def __repr__(self) -> str:
        return self.name


def replace(path: Path, content: bytes) -> None:
    """Write a file anew: neither another link to it, nor a map of it into memory, is changed."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _on_file(
    draw: st.DrawFn, what: str, patterns: Iterable[str], change: Callable[[bytes], bytes]
) -> Mutation:
    pattern, which = draw(st.sampled_from(tuple(patterns))), draw(st.integers(0, 9))

    def apply(folder: Path) -> None:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        # An earlier change may have broken a file beyond this one.
        with suppress(*BROKEN_BEFORE):
            path = found[which % len(found)]
            replace(path, change(path.read_bytes()))

    return Mutation(f"{what} in {pattern}[{which}]", apply)


@st.composite
def flips(draw: st.DrawFn) -> Mutation:
    """Change a few bytes anywhere."""
    one = st.tuples(st.integers(0, 2**20), st.integers(1, 255))
    drawn = draw(st.lists(one, min_size=1, max_size=5))

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        for offset, mask in drawn:
            changed[offset % len(changed)] ^= mask
        return bytes(changed)

    return _on_file(draw, f"flips {drawn}", ALL_FILES, change)


@st.composite
def cuts(draw: st.DrawFn) -> Mutation:
    """Cut a file short, or write more behind it."""
    kept, more = draw(st.floats(0, 1)), draw(st.binary(max_size=40))
    what = f"keeps {kept:.3f} and adds {more!r}"
    return _on_file(draw, what, ALL_FILES, lambda all_: all_[: round(kept * len(all_))] + more)


def values() -> SearchStrategy[Any]:
    """Values of every type that JSON has, the unlikely ones first."""
    deep: Any = 1
    for _ in range(40):
        deep = [deep]
    return st.sampled_from(
        (None, True, False, *NUMBERS, *TEXTS, [], {}, [[]], deep, [0] * 5000, {"a": {}}, ["x"])
    )


@st.composite
def swaps(draw: st.DrawFn) -> Mutation:
    """Replace, delete, rename or add a value somewhere in a JSON file."""
    index, value = draw(st.integers(0, 500)), draw(values())
    action = draw(st.sampled_from(("replace", "replace", "delete", "rename", "add", "raw")))
    raw, name = draw(st.sampled_from(RAW)), draw(st.sampled_from((*TEXTS, "columns", "dtype")))

    def change(content: bytes) -> bytes:
        document = json.loads(content)
        found: list[tuple[Any, Any]] = []
        waiting = [document]
        while waiting:
            owner = waiting.pop()
            for key in list(owner) if isinstance(owner, dict) else range(len(owner)):
                found.append((owner, key))
                if isinstance(owner[key], dict | list) and owner[key]:
                    waiting.append(owner[key])
        owner, key = found[index % len(found)]
        if action == "replace":
            owner[key] = value
        elif action == "delete":
            del owner[key]
        elif action == "raw":
            owner[key] = "@@raw@@"
        elif isinstance(owner, dict):
            owner[name] = owner.pop(key) if action == "rename" else value
        text = json.dumps(document).replace('"@@raw@@"', raw)
        return text.encode("utf-8", "surrogatepass")

    what = f"{action} {index} by {value!r:.40} {raw!r:.20} {name!r:.20}"
    return _on_file(draw, what, (*CONFIGS, *CONFIGS, *CONFIGS, "all_results.json", INDEX), change)


def _take_apart(content: bytes) -> tuple[dict[str, Any], bytearray, list[str]]:
    """Return the header of a safetensors file, its bytes after that, and its tensors' names."""
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    names = sorted(name for name in header if name != "__metadata__")
    return header, bytearray(content[8 + size :]), names


def _together(header: dict[str, Any], data: bytes) -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


@st.composite
def headers(draw: st.DrawFn) -> Mutation:
    """Change what the header of a safetensors file says."""
    which, side = draw(st.integers(0, 99)), draw(st.integers(0, 1))
    action = draw(st.sampled_from(("shape", "dtype", "offsets", "delete", "rename", "meta", "add")))
    number, dtype = draw(st.sampled_from(NUMBERS)), draw(st.sampled_from(DTYPES))
    text = draw(st.sampled_from(TEXTS))

    def change(content: bytes) -> bytes:
        header, data, names = _take_apart(content)
        name = names[which % len(names)]
        entry = header[name]
        if action == "shape":
            entry["shape"][side % len(entry["shape"])] = number
        elif action == "dtype":
            entry["dtype"] = dtype
        elif action == "offsets":
            entry["data_offsets"][side] = number
        elif action == "delete":
            del header[name]
        elif action == "rename":
            header[text] = header.pop(name)
        elif action == "meta":
            keys = ["catalogue", "format_version", "format", text]
            key = keys[number % 4 if isinstance(number, int) else 3]
            header.setdefault("__metadata__", {})[key] = text
        else:
            offsets = [len(data), len(data) + 8]
            data += bytes(8)
            header[text] = {"dtype": "I64", "shape": [1], "data_offsets": offsets}
        return _together(header, data)

    what = f"header {action} {which} {number} {dtype} {text!r:.20}"
    return _on_file(draw, what, TENSOR_FILES, change)


@st.composite
def numbers(draw: st.DrawFn) -> Mutation:
    """Change numbers in a tensor to such as must not be there."""
    which, drawn = draw(st.integers(0, 99)), draw(st.lists(st.integers(0, 2**16), max_size=4))
    real, whole = draw(st.sampled_from(FLOATS)), draw(st.sampled_from(INTEGERS))

    def change(content: bytes) -> bytes:
        header, data, names = _take_apart(content)
        entry = header[names[which % len(names)]]
        start, end = entry["data_offsets"]
        form, value = {
            "F32": ("<f", real), "F64": ("<d", real), "I64": ("<q", whole),
            "I32": ("<i", max(-(2**31), min(whole, 2**31 - 1))), "U8": ("<B", whole % 256),
        }[entry["dtype"]]  # fmt: skip
        size = struct.calcsize(form)
        for index in (0, *drawn):
            if end > start:
                at = start + index % ((end - start) // size) * size
                data[at : at + size] = struct.pack(form, value)
        return _together(header, data)

    return _on_file(draw, f"numbers {which} {drawn} {real} {whole}", TENSOR_FILES, change)


@st.composite
def files(draw: st.DrawFn) -> Mutation:
    """Delete, rename or exchange files, add some, or put links, folders and pipes there."""
    pattern, other = draw(st.sampled_from(ALL_FILES)), draw(st.sampled_from(ALL_FILES))
    actions = ("add", "add", "delete", "rename", "exchange", "link", "folder", "pipe")
    action, which = draw(st.sampled_from(actions)), draw(st.integers(0, 9))
    extra = draw(st.sampled_from(EXTRA))
    content = draw(st.sampled_from((b"", b"{}", b"\x80\x04\x95garbage.", b"PK\x03\x04", b"null")))

    def apply(folder: Path) -> None:
        with suppress(*BROKEN_BEFORE):
            if action == "add":
                (folder / extra).write_bytes(content)
                return
            found = sorted(one for one in folder.glob(pattern) if one.is_file())
            path = found[which % len(found)]
            second = sorted(one for one in folder.glob(other) if one.is_file())
            kept = second[0].read_bytes()
            path.unlink()
            if action == "rename":
                (folder / f"{path.name}.old").write_bytes(kept)
            elif action == "exchange":
                path.write_bytes(kept)
            elif action == "link":
                path.symlink_to(("/dev/zero", path.name, "/etc/passwd")[which % 3])
            elif action == "folder":
                path.mkdir()
            elif action == "pipe":
                os.mkfifo(path)

    return Mutation(f"{action} {pattern}[{which}] {other} {extra} {content!r}", apply)


def mutations() -> SearchStrategy[list[Mutation]]:
    """One to three changes of one checkpoint."""
    one = st.one_of(swaps(), swaps(), headers(), numbers(), flips(), cuts(), files(), files())
    return st.lists(one, min_size=1, max_size=3)


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
