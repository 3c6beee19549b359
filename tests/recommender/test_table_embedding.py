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


def build(**fields):
    small = {"hidden_size": 16, "projection_size": 8, "num_hidden_layers": 1}
    torch.manual_seed(0)
    config = FTMambaConfig.from_columns(COLUMNS, COLUMNS[:2], **{**small, **fields})
    return FTMambaTwoTowerModel(config).eval()


def embed_items(model, items):
    keys = [str(row) for row in range(len(items["item_numeric"]))]
    return torch.from_numpy(embed_catalogue(model, items, keys=keys, titles=()).embeddings)


def records(tower, n):
    n_numeric = {"user": 2, "item": 1}[tower]
    return {
        f"{tower}_numeric": torch.randn(n, n_numeric),
        f"{tower}_category_ids": torch.randint(0, 9, (n, 1)),
    }


@pytest.mark.parametrize("tower", ["user", "item"])
@pytest.mark.parametrize("n_rows", [1, 2, 9, 10, 11, 47])
def test_blocks_and_stretches_change_nothing(tower, n_rows, monkeypatch):
    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cpu", 14)
    monkeypatch.setattr(table_embedding, "ROWS_AT_ONCE", 10)
    model, tensors = build(), records(tower, n_rows)
    assert block_size(model, tower) == {"user": 3, "item": 4}[tower]
    embed = getattr(model, f"get_{tower}_embeddings")
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        return {name: tensor[start:stop] for name, tensor in tensors.items()}

    found = embed_table(model, tower, n_rows, rows)
    torch.testing.assert_close(found, embed(**tensors).detach())
    assert (found.dtype, found.shape) == (torch.float32, (n_rows, 8))
    # Each row is asked for once, in whole blocks.
    assert [start for start, _ in asked] == list(range(0, n_rows, 12))
    assert asked[-1][1] == n_rows


def test_slices_share_the_memory_of_the_table():
    tensors = records("item", 9)
    for name, rows in rows_of(tensors)(2, 5).items():
        assert torch.equal(rows, tensors[name][2:5])
        assert rows.data_ptr() == tensors[name][2].data_ptr()


def test_a_model_of_half_precision_gives_embeddings_of_single(monkeypatch):
    model = build(mixer="attention").to(torch.bfloat16)
    found = embed_items(model, records("item", 5))
    assert found.dtype == torch.float32
    assert found.isfinite().all()


def test_an_error_leaves_the_model_in_its_mode():
    model = build().train()

    def rows(start, stop):
        raise LookupError("no such rows")

    with pytest.raises(LookupError, match="no such rows"):
        embed_table(model, "user", 5, rows)
    assert model.training


def test_a_table_shorter_than_was_said_is_refused():
    with pytest.raises(ValueError, match="the item tower was given 9 rows of a table of 11"):
        embed_table(build(), "item", 11, rows_of(records("item", 9)))


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
    expected = embed_items(model, tensors)
    pinned, copied = [], []

    def pin(block, device):
        pinned.append((id(block), threading.current_thread().name, device))
        return block

    def copy(block, device):
        copied.append((id(block), threading.current_thread().name, device))
        return block

    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cuda", 30)
    monkeypatch.setattr(table_embedding, "pinned", pin)
    monkeypatch.setattr(table_embedding, "to_device", copy)
    monkeypatch.setattr(FTMambaTwoTowerModel, "device", gpu)
    torch.testing.assert_close(embed_items(model, tensors), expected)
    assert [thread.split("_0")[0] for _, thread, _ in pinned] == ["read_ahead"] * 3
    assert [thread for _, thread, _ in copied] == ["MainThread"] * 3
    assert {device for _, _, device in pinned + copied} == {gpu}


@pytest.mark.gpu
def test_on_a_gpu_the_embeddings_are_those_of_the_cpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cuda", 300)
    model, tensors = build(), records("item", 1000)
    expected = embed_items(model, tensors)
    found = embed_items(model.cuda(), tensors)
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 7, 20, 1000])
def test_blocks_of_histories_hold_so_many_events_or_one_row(n_tokens, monkeypatch):
    monkeypatch.setitem(table_embedding.TOKENS_AT_ONCE, "cpu", n_tokens)
    n_events = np.array([0, 0, 1, 2, 2, 5, 6, 6, 30])
    model = FTMambaTwoTowerModel(
        FTMambaConfig.from_columns(
            [{"name": "taken", "kind": "history"}], COLUMNS,
            hidden_size=16, projection_size=8, num_hidden_layers=1, state_size=4, pooling="last",
        )
    ).eval()  # fmt: skip
    torch.manual_seed(0)
    history = torch.randn(len(n_events), 30, 8)
    asked = []

    def rows(start, stop):
        asked.append((start, stop))
        longest = n_events[start:stop].max()
        return {
            "user_history": history[start:stop, :longest],
            "user_history_lengths": torch.from_numpy(n_events[start:stop]),
        }

    found = embed_table(model, "user", len(n_events), rows, n_events=n_events)
    assert [start for start, _ in asked] == [0, *(stop for _, stop in asked[:-1])]
    assert asked[-1][1] == len(n_events)
    for start, stop in asked:
        assert stop - start == 1 or (stop - start) * n_events[stop - 1] <= n_tokens
    assert len(asked) == {1: 9, 7: 6, 20: 3, 1000: 1}[n_tokens]
    with torch.no_grad():
        whole = model.get_user_embeddings(
            user_history=history, user_history_lengths=torch.from_numpy(n_events)
        )
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-6)
