"""Full checking of a checkpoint's files, which a stranger may have made.

It runs before anything else reads them, and lives here rather than in the code that travels, which
whoever controls a repository could replace. A file must be a regular one inside its checkpoint.
What it claims to hold is compared with its size before memory is taken, so that no file costs more
than a small multiple of its own bytes. Nothing is ever unpickled.

Shapes: I items, S slots of an encoded record.
"""

import json
import logging
import math
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.overrides import TorchFunctionMode

from modeling_ftmamba.catalogue import CATALOGUE_NAME, Catalogue
from modeling_ftmamba.configuration_ftmamba import (
    TENSOR_OF_KIND,
    TOWERS,
    Column,
    FTMambaConfig,
    columns_of_tensor,
)
from modeling_ftmamba.network import ScanChoice, TwoTowers

logger = logging.getLogger(__name__)

CONFIG_NAME = "config.json"
EXTRACTOR_NAME = "preprocessor_config.json"
VOCABULARY_NAME = "vocabularies.safetensors"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
LOCAL_FOLDER = "local"
"""Of a checkpoint: the known users, which never leave the machine."""

AGAIN = "download or save the checkpoint again"

MOST_JSON_BYTES = 2**23
MOST_JSON_VALUES = 500_000
DEEPEST_JSON = 24
MOST_HEADER_BYTES = 2**23
LARGEST_NUMBER = 2**16
MOST_LAYERS = 256
_MOST_SHARDS = 10_000
_LATEST = 2**40
_LARGEST = 1e15
"""Of the numbers of an embedding, whose squares must be finite too."""

_DISGUISES = {b"\x80": "a pickle", b"PK\x03\x04": "a zip archive, as torch.save writes"}
_PICKLES = frozenset(
    [".bin", ".ckpt", ".dill", ".joblib", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth"]
)
"""Endings of formats that can hold pickles, which run code when they are read."""

_WEIGHTS = frozenset(["BF16", "F16", "F32", "F64", "I64"])
_TENSOR_FILES = {
    VOCABULARY_NAME: frozenset(["F64", "I64", "U8"]),
    CATALOGUE_NAME: frozenset(["F32", "I32", "I64", "U8"]),
}
# Transformers loads such a file in place of the weights, or on top of them.
_OTHER_WEIGHTS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors|adapter_config\.json")

_DTYPES = (None, "float32", "float16", "bfloat16", "float64")
_OF_TRANSFORMERS: dict[str, tuple[str | None, ...]] = {
    "attn_implementation": (None, "eager", "sdpa"),
    "dtype": _DTYPES,
    "torch_dtype": _DTYPES,
}
"""What is read of Transformers' own fields, and their values; others, such as the name of a kernel
on the Hub, are left out."""


class DamagedFileError(ValueError):
    """A file of a checkpoint breaks a rule; says which file, which rule and how to mend it."""


def damaged(path: Path, problem: str, remedy: str = AGAIN) -> DamagedFileError:
    """Return the error that says what is wrong with a file, to be raised."""
    return DamagedFileError(f"{str(path)!r} {problem}; {remedy}")


def shown(value: object, most: int = 80) -> str:
    """Return a value as an error shows it, however long it is."""
    # Thousands of digits are not turned into text, which Python refuses too.
    if isinstance(value, int) and abs(value) >= 10**20:
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value)
    return text if len(text) <= most else f"{text[:most]}..."


def check_checkpoint(folder: Path, *, with_catalogue: bool = True) -> FTMambaConfig:
    """Check the files of a checkpoint's folder, and return its config.

    Raises:
        FileNotFoundError: a file is absent.
        DamagedFileError: a file breaks a rule.
    """
    if not (folder / CONFIG_NAME).is_file():
        problem = f"{str(folder)!r} has no {CONFIG_NAME}, so it is no checkpoint"
        raise FileNotFoundError(f"{problem}; give the output_dir of a finished run, or a Hub id")
    local = folder / LOCAL_FOLDER
    if local.is_symlink():
        raise damaged(local, "is a link that may leave its checkpoint", "copy it into the folder")
    for path in sorted(folder.rglob("*")):
        if path.parent == folder and _OTHER_WEIGHTS.fullmatch(path.name):
            problem = "would be loaded in place of, or on top of, the checkpoint's own weights"
            raise damaged(path, problem, "remove it; for an adapter use PeftModel.from_pretrained")
        if path.suffix.lower() in _PICKLES:
            logger.warning("%s may be a pickle, which can run code; it is not read", path)
    config = read_config(folder / CONFIG_NAME)
    read_json(folder / EXTRACTOR_NAME)
    read_tensors(folder / VOCABULARY_NAME, dtypes=_TENSOR_FILES[VOCABULARY_NAME])
    if not with_catalogue:
        return config
    metadata, _ = read_tensors(folder / CATALOGUE_NAME, dtypes=_TENSOR_FILES[CATALOGUE_NAME])
    try:
        as_of = parse_json(metadata.get("catalogue", "")).get("as_of")
    except (ValueError, RecursionError) as error:
        raise damaged(folder / CATALOGUE_NAME, f"has no facts ({error!s:.200})") from None
    if as_of is not None and not (type(as_of) is int and abs(as_of) < _LATEST):
        problem = f"has as_of {shown(as_of)}, it must be UTC seconds"
        raise damaged(folder / CATALOGUE_NAME, problem)
    return config


def check_file(path: Path, most_bytes: int | None = None) -> None:
    """Check that a path is a regular file inside its checkpoint, and not too large.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedFileError: it is a folder, a device or a pipe, a link that leaves the checkpoint, or
            larger than `most_bytes`.
    """
    facts = path.stat()
    if not stat.S_ISREG(facts.st_mode):
        raise damaged(path, "is no regular file", "put the file itself in its place")
    if path.is_symlink():
        homes = [path.parent]
        for folder in path.parents:
            # In the Hub's cache: the repository, and the store beside the repositories, which
            # holds what several of them have in common.
            if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
                homes = [folder.parent.parent, folder.parent.parent.parent / "blobs"]
                break
        target = path.resolve()
        if not any(target.is_relative_to(home.resolve()) for home in homes):
            raise damaged(path, "is a link that leaves its checkpoint", "copy the file there")
    if most_bytes is not None and facts.st_size > most_bytes:
        raise damaged(path, f"has {facts.st_size} bytes, at most {most_bytes} are read")


def read_json(path: Path, *, most_bytes: int = MOST_JSON_BYTES) -> dict[str, Any]:
    """Read a JSON file that holds one object.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedFileError: it is no JSON, or larger or deeper than a checkpoint's, or holds a number
            that is not finite or one key twice.
    """
    check_file(path, most_bytes)
    content = path.read_bytes()
    n_values = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if n_values > MOST_JSON_VALUES:
        raise damaged(path, f"holds {n_values} values, at most {MOST_JSON_VALUES} are read")
    try:
        return parse_json(content.decode("utf-8"))
    except RecursionError:
        raise damaged(path, f"is nested more than {DEEPEST_JSON} deep") from None
    except ValueError as error:
        raise damaged(path, f"is not a valid JSON file, or truncated ({error!s:.200})") from None


def parse_json(text: str) -> dict[str, Any]:
    """Parse an object; a ValueError says which rule of `read_json` it breaks."""
    values = _JSON.decode(text)
    if not isinstance(values, dict):
        raise ValueError(f"must be an object, got {shown(values)}")
    level: list[Any] = [values]
    depth = 0
    while level:
        depth += 1
        if depth > DEEPEST_JSON:
            raise ValueError(f"nested more than {DEEPEST_JSON} deep")
        inner = (one.values() if isinstance(one, dict) else one for one in level)
        level = [one for own in inner for one in own if isinstance(one, dict | list)]
    return values


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of an object's pairs, as a hook of JSON's; a key that stands twice is refused."""
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key {shown(twice)} occurs twice")
    return values


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {shown(text)} is not finite")
    return number


_JSON = json.JSONDecoder(object_pairs_hook=unique_keys, parse_constant=_finite, parse_float=_finite)


def read_config(path: Path) -> FTMambaConfig:
    """Read a `config.json`; fields that the config does not have are left out."""
    values = read_json(path)
    model_type = values.get("model_type")
    if model_type != FTMambaConfig.model_type:
        problem = f"describes a model of type {shown(model_type)}, not {FTMambaConfig.model_type!r}"
        raise damaged(path, problem, "give the checkpoint of an FT-Mamba")
    own = [one for one in FTMambaConfig.__mro__ if one.__module__ == FTMambaConfig.__module__]
    known = {name for one in own for name in one.__annotations__} | {"columns", *_OF_TRANSFORMERS}

    def checked(fields: dict[str, Any]) -> dict[str, Any]:
        kept = {key: value for key, value in fields.items() if key in known}
        for key, value in kept.items():
            if key in _OF_TRANSFORMERS and value not in _OF_TRANSFORMERS[key]:
                raise damaged(path, f"sets {key} to {shown(value)}", "remove that line")
            most = MOST_LAYERS if key == "num_hidden_layers" else LARGEST_NUMBER
            if isinstance(value, int | float) and abs(value) > most:
                raise damaged(path, f"sets {key} to {shown(value)}, at most {most} is read")
        return kept

    values = checked(values)
    for name in (f"{tower}_tower" for tower in TOWERS):
        if isinstance(values.get(name), dict):
            values[name] = checked(values[name])
    try:
        config: FTMambaConfig = FTMambaConfig.from_dict(values)
    except Exception as error:
        problem = f"makes no config ({' '.join(str(error).split()):.400})"
        raise damaged(path, problem, "correct it or save it again") from None
    return config


def read_tensors(path: Path, *, dtypes: frozenset[str]) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Map a safetensors file into memory: its texts, and its tensors, read when they are used.

    The tensors may be written to; the file stays as it is, and must not be shortened meanwhile.

    Raises:
        FileNotFoundError: nothing is there.
        DamagedFileError: it is no safetensors file, truncated, damaged, or has other types.
    """
    check_file(path)
    with path.open("rb") as content:
        start = content.read(8)
    if int.from_bytes(start, "little") > MOST_HEADER_BYTES:
        what = [what for mark, what in _DISGUISES.items() if start.startswith(mark)]
        if what:
            raise damaged(path, f"is {what[0]}, which can run code when read, and no safetensors")
        raise damaged(path, f"claims a header of more than {MOST_HEADER_BYTES} bytes")
    try:
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            for name in names:
                if (dtype := file.get_slice(name).get_dtype()) not in dtypes:
                    allowed = ", ".join(sorted(dtypes))
                    raise damaged(path, f"holds {shown(name)} as {dtype}, it may be {allowed}")
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except SafetensorError as error:
        raise damaged(path, f"is truncated or no safetensors file ({error!s:.200})") from None


def weight_files(folder: Path) -> list[Path]:
    """Return the files of a checkpoint's weights: one, or the shards of its index."""
    whole, index = folder / WEIGHTS_NAME, folder / INDEX_NAME
    if whole.exists() or whole.is_symlink():
        return [whole]
    if not (index.exists() or index.is_symlink()):
        raise FileNotFoundError(
            f"{str(folder)!r} has no {WEIGHTS_NAME}; other formats, such as pytorch_model.bin, are "
            "never loaded, for pickles can run code: save the weights with save_pretrained(...)"
        )
    values = read_json(index)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not isinstance(values.get("metadata"), dict):
        raise damaged(index, "must map the names of weights to files, and have metadata")
    for file in weight_map.values():
        if not isinstance(file, str) or not re.fullmatch(
            r"(?!\.)[^/\\:\0]{1,190}\.safetensors", file
        ):
            raise damaged(index, f"names {shown(file)}, which is not a safetensors file beside it")
    names = sorted(set(weight_map.values()))
    if not 0 < len(names) <= _MOST_SHARDS:
        raise damaged(index, f"names {len(names)} files, it may name 1 to {_MOST_SHARDS}")
    for name in names:
        if not (folder / name).exists():
            raise FileNotFoundError(f"{str(index)!r} names {name!r}, which is not there; {AGAIN}")
    return [folder / name for name in names]


class _Uninitialised(TorchFunctionMode):
    """Leaves new parameters as they are: on `meta` there is nothing to fill, and it takes long."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", *args[:1])
        return func(*args, **kwargs)


def load_network(folder: Path, config: FTMambaConfig) -> TwoTowers:
    """Read a checkpoint's network, whose weights stay in the files until they are used.

    Raises:
        FileNotFoundError: it has no weights.
        DamagedFileError: the config makes no network, or a weight is absent, superfluous, twice
            there, or of another shape or type, or not finite.
    """
    try:
        with torch.device("meta"), _Uninitialised():
            network = TwoTowers(config)
    except Exception as error:
        problem = f"makes no network ({shown(str(error), 300)})"
        raise damaged(folder / CONFIG_NAME, problem) from None
    expected, found = network.state_dict(), dict[str, Tensor]()
    files = weight_files(folder)
    for file in files:
        problems = []
        for name, tensor in read_tensors(file, dtypes=_WEIGHTS)[1].items():
            wanted = expected.get(name)
            if wanted is None or name in found:
                problems.append(f"{shown(name)} is superfluous")
            elif tensor.shape != wanted.shape:
                asked = f"the config asks for {tuple(wanted.shape)}"
                problems.append(f"{name} has shape {tuple(tensor.shape)}, {asked}")
            elif tensor.is_floating_point() != wanted.is_floating_point():
                problems.append(f"{name} is {tensor.dtype}")
            found[name] = tensor
        if file == files[-1]:
            problems += [f"missing is {name}" for name in expected if name not in found]
        if problems:
            problem = f"does not fit its {CONFIG_NAME}: {problems[0]}"
            raise damaged(file, problem, "take both from one save of one checkpoint")
    network.load_state_dict(found, strict=True, assign=True)
    check_values(network, folder)
    if isinstance(config.dtype, torch.dtype):
        network.to(dtype=config.dtype)
    return network.train(False)


def check_values(network: ScanChoice, folder: Path) -> None:
    """Check that weights are finite, and that buffers are what the config makes them."""
    try:
        network.check_weights()
    except ValueError as error:
        raise damaged(folder, f"is of no use: {error}", "take an earlier checkpoint") from None
    for name, buffer in network.named_buffers():
        if bool(buffer.isnan().any()):
            raise damaged(folder, f"holds NaN in the weights' {name}")
    for name, module in network.named_modules():
        # Offsets choose rows of a table of embeddings: wrong ones would leave it.
        if hasattr(module, "first_rows"):
            made: Tensor = module.first_rows()
            if not torch.equal(module.offsets.cpu(), made):
                problem = f"holds other offsets in {name} than its {CONFIG_NAME} makes"
                raise damaged(folder, f"{problem}: {shown(made.tolist())}")


def check_together(folder: Path, model: Any, extractor: Any, catalogue: Catalogue | None) -> None:
    """Check that the parts of a checkpoint, once loaded, are of one save."""
    for tower in TOWERS:
        if tuple(model.config.tower(tower).parsed_columns()) != extractor.columns(tower):
            problem = f"has other {tower} columns than the {EXTRACTOR_NAME} beside it"
            raise damaged(folder / CONFIG_NAME, problem)
    if catalogue is not None:
        check_catalogue(catalogue, model, extractor.columns("item"), str(folder))


def check_catalogue(
    catalogue: Catalogue, model: Any, columns: Sequence[Column], where: str
) -> None:
    """Check a catalogue by itself, and against the model and the items' columns."""
    problem = ""
    found = catalogue.embeddings
    if not -_LARGEST < found.min(initial=0) <= found.max(initial=0) < _LARGEST:
        row = int((~(np.abs(found) < _LARGEST)).any(1).argmax())
        problem = f"the embedding of item {catalogue.keys[row]!r} (row {row}) is not finite"
        problem += f", or beyond {_LARGEST:g}; the weights are damaged"
    elif not catalogue.is_of(model):
        problem = "the catalogue was embedded by other weights than the model's; make it anew"
    elif catalogue.embeddings.shape[1] != model.config.projection_size:
        problem = f"its embeddings are not of the model's width {model.config.projection_size}"
    if problem:
        raise ValueError(f"the {CATALOGUE_NAME} of {where!r}: {problem}")
    check_item_records(catalogue, columns, slice(None))


def check_item_records(catalogue: Catalogue, columns: Sequence[Column], rows: slice) -> None:
    """Check that encoded items have the columns of the model, and ids that it knows."""
    sizes: dict[str, list[int]] = {}
    for name in set(TENSOR_OF_KIND.values()):
        for column in columns_of_tensor(columns, name):
            sizes.setdefault(f"item_{name}", []).extend([column.vocabulary_size] * column.width)
    kept = {name: record_IS.shape[1:] for name, record_IS in catalogue.records.items()}
    if kept and kept != (wanted := {name: (len(slots),) for name, slots in sizes.items()}):
        raise ValueError(
            f"the encoded items of {CATALOGUE_NAME} have slots {shown(kept)}, the columns of the "
            f"items make {shown(wanted)}; take both from one save of one checkpoint"
        )
    for name, record_IS in catalogue.records.items():
        ids_IS, sizes_S = record_IS[rows], np.array(sizes[name])
        if ids_IS.dtype.kind != "f" and ((ids_IS < 0) | (ids_IS >= sizes_S)).any():
            raise ValueError(
                f"the encoded items of {CATALOGUE_NAME} hold ids in {name!r} that the vocabularies "
                "do not have; take both from one save of one checkpoint"
            )
