"""Embedding a table in blocks equals embedding it at once, in bounded memory."""

import threading

import numpy as np
import pytest
import torch

from ftmamba import table_embedding
from ftmamba.table_embedding import block_size, embed_catalogue, embed_table, rows_of
from modeling_ftmamba.configuration_ftmamba import FTMambaConfig
from modeling_ftmamba.modeling_ftmamba import FTMambaTwoTowerModel

COLUMNS = [
    {"name": "year", "kind": "numeric"},
    {"name": "studio", "kind": "categorical", "vocabulary_size": 9},
    {"name": "price", "kind": "numeric"},
]


def build(user_columns=COLUMNS, **fields):
    small = {"hidden_size": 16, "projection_size": 8, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = FTMambaConfig.from_columns(user_columns, COLUMNS[:2], **{**small, **fields})
    return FTMambaTwoTowerModel(config).eval()


def embed_items(model, items):
    keys = [str(row) for row in range(len(items["item_numeric"]))]
    return torch.from_numpy(embed_catalogue(model, items, keys=keys, titles=()).embeddings)


def records(tower, n):
    return {
        f"{tower}_numeric": torch.randn(n, {"user": 2, "item": 1}[tower]),
        f"{tower}_category_ids": torch.randint(0, 9, (n, 1)),
    }


@pytest.mark.parametrize("tower", ["user", "item"])
@pytest.mark.parametrize("n_rows", [1, 2, 9, 10, 11, 47])
def test_blocks_and_stretches_change_nothing(tower, n_rows, monkeypatch):
    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cpu", 14)
    monkeypatch.setattr(table_embedding, "ROWS_AT_ONCE", 10)
    model, tensors = build(), records(tower, n_rows)
    assert block_size(model, tower) == {"user": 3, "item": 4}[tower]
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        return rows_of(tensors)(start, stop)

    found = embed_table(model, tower, n_rows, rows)
    whole = getattr(model, f"get_{tower}_embeddings")(**tensors).detach()
    torch.testing.assert_close(found, whole)
    assert (found.dtype, found.shape) == (torch.float32, (n_rows, 8))
    # Each row is asked for once, in whole blocks, without a copy.
    assert [start for start, _ in asked] == list(range(0, n_rows, 12))
    assert asked[-1][1] == n_rows
    for name, tensor in rows_of(tensors)(0, 1).items():
        assert tensor.data_ptr() == tensors[name].data_ptr()


def test_a_model_of_half_precision_gives_embeddings_of_single():
    found = embed_items(build(mixer="attention").to(torch.bfloat16), records("item", 5))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_an_error_leaves_the_model_in_its_mode():
    model = build().train()
    with pytest.raises(ValueError, match="the item tower was given 9 rows of a table of 11"):
        embed_table(model, "item", 11, rows_of(records("item", 9)))
    assert model.training


def test_memory_holds_one_block_beside_the_embeddings(monkeypatch):
    """Tensors are counted as they are asked for: no stretch outlives its blocks."""
    monkeypatch.setattr(table_embedding, "ROWS_AT_ONCE", 64)
    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cpu", 48)
    alive, most = [], []

    class Stretch(dict):
        def __del__(self):
            alive.remove(id(self))

    def rows(start, stop):
        stretch = Stretch(records("item", stop - start))
        alive.append(id(stretch))
        most.append(len(alive))
        return stretch

    embed_table(build(), "item", 1000, rows)
    assert len(most) == -(-1000 // 64)
    # The next is gathered before the last is let go.
    assert max(most) <= 2


def test_for_a_gpu_blocks_are_pinned_in_a_thread_and_copied_to_it(monkeypatch):
    model, tensors, gpu = build(), records("item", 25), torch.device("cuda:1")
    expected, threads = embed_items(model, tensors), []

    def step(block, device):
        threads.append((threading.current_thread().name.split("_0")[0], device))
        return block

    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cuda", 30)
    monkeypatch.setattr(table_embedding, "pinned", step)
    monkeypatch.setattr(table_embedding, "to_device", step)
    monkeypatch.setattr(FTMambaTwoTowerModel, "device", gpu)
    torch.testing.assert_close(embed_items(model, tensors), expected)
    expected_threads = [("MainThread", gpu)] * 3 + [("read_ahead", gpu)] * 3
    assert sorted(threads, key=str) == expected_threads


@pytest.mark.gpu
def test_on_a_gpu_the_embeddings_are_those_of_the_cpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cuda", 300)
    model, tensors = build(), records("item", 1000)
    expected = embed_items(model, tensors)
    torch.testing.assert_close(embed_items(model.cuda(), tensors), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n_tokens", "n_blocks"), [(1, 9), (7, 6), (20, 3), (1000, 1)])
def test_blocks_of_histories_hold_so_many_events_or_one_row(n_tokens, n_blocks, monkeypatch):
    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cpu", n_tokens)
    n_events = np.array([0, 0, 1, 2, 2, 5, 6, 6, 30])
    model = build([{"name": "films", "kind": "history"}], pooling="last")
    history, asked = torch.randn(len(n_events), 30, 8), []

    def rows(start, stop):
        asked.append((start, stop))
        return {
            "user_history": history[start:stop, : n_events[start:stop].max()],
            "user_history_lengths": torch.from_numpy(n_events[start:stop]),
        }

    found = embed_table(model, "user", len(n_events), rows, n_events=n_events)
    assert [start for start, _ in asked] == [0, *(stop for _, stop in asked[:-1])]
    assert asked[-1][1] == len(n_events)
    for start, stop in asked:
        assert stop - start == 1 or (stop - start) * n_events[stop - 1] <= n_tokens
    assert len(asked) == n_blocks
    with torch.no_grad():
        whole = model.get_user_embeddings(
            user_history=history, user_history_lengths=torch.from_numpy(n_events)
        )
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
