"""Weights that a stranger saved: safetensors alone, and just those that the config asks for."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers.utils.hub import cached_file

from .checked_files import (
    AGAIN,
    DamagedFileError,
    TensorFacts,
    commit_of,
    damaged,
    plain_name,
    read_json,
    read_tensors,
    shown,
    tensor_facts,
)
from .network import CategoricalTokens

CONFIG_NAME = "config.json"
WEIGHTS_NAME = "model.safetensors"
INDEX_NAME = "model.safetensors.index.json"
ADAPTER_NAME = "adapter_config.json"

HUB_KEYS = (
    "cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token",
)  # fmt: skip
"""Options that say where on the Hub a file lies."""

FLOATS = frozenset(["BF16", "F16", "F32", "F64"])
_WHOLE = frozenset(["I64"])
_MOST_SHARDS = 10_000
# Transformers loads such a file in place of the weights, if a folder has one.
_OTHER_WEIGHTS = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")

Network = TypeVar("Network", bound=nn.Module)

FindFile = Callable[[str], Path | None]
"""Returns where a file of a checkpoint lies, or None if it has no such file."""


def weight_files(find: FindFile, place: str) -> list[Path]:
    """Return the files of a checkpoint's weights: one, or the shards of its index.

    Args:
        find: of the checkpoint.
        place: the checkpoint in words, for errors.

    Raises:
        FileNotFoundError: it has no weights in safetensors, or lacks a shard.
        DamagedFileError: the index is damaged or names a file elsewhere.
    """
    whole = find(WEIGHTS_NAME)
    if whole is not None:
        return [whole]
    index = find(INDEX_NAME)
    if index is None:
        raise FileNotFoundError(
            f"{place!r} has no {WEIGHTS_NAME}; weights in other formats, such as "
            "pytorch_model.bin, are pickles, which can run code when read, and are never loaded: "
            "save them with save_pretrained(...)"
        )
    return [_shard(find, index, name) for name in _shard_names(index)]


def _shard_names(index: Path) -> list[str]:
    values = read_json(index)
    weight_map = values.get("weight_map")
    if not isinstance(weight_map, dict) or not isinstance(values.get("metadata"), dict):
        raise damaged(index, "must map the names of weights to files, and have metadata")
    for name, file in weight_map.items():
        if not plain_name(file, ".safetensors"):
            raise damaged(
                index,
                f"says that {shown(name)} is in {shown(file)}, which is not the name of a "
                "safetensors file beside it",
            )
    names = sorted(set(weight_map.values()))
    if not 0 < len(names) <= _MOST_SHARDS:
        raise damaged(index, f"names {len(names)} files, it may name 1 to {_MOST_SHARDS}")
    return names


def _shard(find: FindFile, index: Path, name: str) -> Path:
    path = find(name)
    if path is None:
        raise FileNotFoundError(f"{str(index)!r} names {name!r}, which is not there; {AGAIN}")
    return path


def check_folder(folder: Path) -> None:
    """Refuse a local folder with a file that Transformers would load in place of the weights.

    Raises:
        DamagedFileError: there is such a file.
    """
    for path in sorted(folder.iterdir()):
        if _OTHER_WEIGHTS.fullmatch(path.name) or path.name == ADAPTER_NAME:
            raise damaged(
                path,
                "would be loaded in place of, or on top of, the checkpoint's own weights",
                "remove it; for an adapter use PeftModel.from_pretrained(model, ...)",
            )


def check_weights(files: list[Path], network: nn.Module) -> None:
    """Check that files hold just the weights of a network, before memory is taken for either.

    Args:
        files: of the weights.
        network: built of the config on the device `meta`, which costs no memory.

    Raises:
        DamagedFileError: a weight is absent, superfluous, twice there, or of another shape or type.
    """
    expected = network.state_dict()
    found: dict[str, TensorFacts] = {}
    for path in files:
        for name, fact in tensor_facts(path).items():
            if name not in expected:
                raise _not_fitting(path, f"it holds {shown(name)}, which the model has not")
            if name in found:
                raise _not_fitting(path, f"{shown(name)} is in another file too")
            _check_weight(path, name, fact, expected[name])
            found[name] = fact
    for name in expected:
        if name not in found:
            raise _not_fitting(files[0], f"missing is {name}")


def _check_weight(path: Path, name: str, fact: TensorFacts, expected: Tensor) -> None:
    if fact.shape != tuple(expected.shape):
        raise _not_fitting(
            path, f"{name} has shape {fact.shape}, the config asks for {tuple(expected.shape)}"
        )
    dtypes = FLOATS if expected.is_floating_point() else _WHOLE
    if fact.dtype not in dtypes:
        raise _not_fitting(path, f"{name} is {fact.dtype}, it may be {', '.join(sorted(dtypes))}")


def _not_fitting(path: Path, problem: str) -> DamagedFileError:
    return damaged(
        path,
        f"does not fit its {CONFIG_NAME}: {problem}",
        "take both from one save of one checkpoint",
    )


def load_weights(network: nn.Module, files: list[Path]) -> None:
    """Give a network on the device `meta` its weights, which stay in the files until looked at.

    Raises:
        DamagedFileError: the files do not hold its weights; see `check_weights`.
    """
    check_weights(files, network)
    state: dict[str, Tensor] = {}
    for path in files:
        state |= read_tensors(path, dtypes=FLOATS | _WHOLE)[1]
    network.load_state_dict(state, strict=True, assign=True)
    check_values(network, str(files[0]))


def check_values(network: nn.Module, place: str) -> None:
    """Check the weights themselves.

    Raises:
        DamagedFileError: one is not finite, or a buffer is not what the config makes it.
    """
    for name, parameter in network.named_parameters():
        values = parameter.detach()
        # The sum of all is finite only if each is; it may overflow, then each is looked at.
        if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):
            raise DamagedFileError(
                f"{place!r} holds NaN or Inf in {name}: the training diverged or the file is "
                "damaged; take an earlier checkpoint"
            )
    for name, buffer in network.named_buffers():
        if bool(buffer.isnan().any()):
            raise DamagedFileError(f"{place!r} holds NaN in {name}; {AGAIN}")
    for module in network.modules():
        # They choose rows of a table: wrong ones would leave it.
        if isinstance(module, CategoricalTokens) and not torch.equal(
            module.offsets.cpu(), module.first_rows()
        ):
            raise DamagedFileError(
                f"{place!r} holds {shown(module.offsets.tolist())} as the offsets of columns, its "
                f"{CONFIG_NAME} makes them {shown(module.first_rows().tolist())}; {AGAIN}"
            )


class _Uninitialised(TorchFunctionMode):
    """Leaves new parameters as they are: on `meta` there is nothing to fill, and it takes long."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", "") == "torch.nn.init":
            return kwargs.get("tensor", *args[:1])
        return func(*args, **kwargs)


def network_of(config: Any, network_class: Callable[[Any], Network], path: Path) -> Network:
    """Build a network on the device `meta`, which costs no memory.

    Args:
        config: of a checkpoint.
        network_class: `TwoTowers` or `Tower`.
        path: where the config comes from, for the error.

    Raises:
        DamagedFileError: the config makes none.
    """
    try:
        with torch.device("meta"), _Uninitialised():
            return network_class(config)
    except Exception as error:
        raise damaged(path, f"makes no network ({shown(str(error), 300)})") from None


def checked_options(model_class: Any, source: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Check a checkpoint's files, and return options of `from_pretrained` that load no others.

    Args:
        model_class: what is to be loaded.
        source: the folder or the Hub id.
        options: that were given to `from_pretrained`.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is damaged, or an option asks for another format.
    """
    for name, allowed in (("use_safetensors", (None, True)), ("gguf_file", (None,))):
        if options.get(name) not in allowed:
            raise ValueError(
                f"only safetensors are loaded, got {name}={options[name]!r}; leave it out"
            )
    hub = {key: options[key] for key in HUB_KEYS if key in options}
    path = find_file(source, CONFIG_NAME, hub)
    if path is None:
        raise FileNotFoundError(
            f"{str(source)!r} has no {CONFIG_NAME}, or it is neither in the cache nor to be "
            "reached; give the folder of a checkpoint, or a Hub id"
        )
    # The other files of the same commit, also if the branch moves on meanwhile.
    if (commit := commit_of(path)) is not None:
        hub["revision"] = options["revision"] = commit
    else:
        check_folder(path.parent)
    config = options.get("config")
    if not hasattr(config, "to_dict"):
        config = model_class.config_class.from_pretrained(config or path)
    files = weight_files(lambda name: find_file(source, name, hub), str(source))
    if options.get("ignore_mismatched_sizes"):
        for file in files:
            tensor_facts(file)
    else:
        check_weights(files, network_of(config, model_class.network_class, path))
    return {**options, "use_safetensors": True}


def find_file(source: Any, name: str, hub: dict[str, Any]) -> Path | None:
    """Return where a file of a folder or a Hub id lies, None if there is no such file."""
    path = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
    return None if path is None else Path(path)
