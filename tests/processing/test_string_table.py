import numpy as np
import pytest

from modeling_ftmamba.encoders import TextTable, text_table


@pytest.mark.parametrize(
    "texts", [[], [""], ["", "a", ""], ["plain", "ascii"], ["Ärzte", "日本", "🎬", "\ud800"]]
)
def test_texts_survive_packing(texts):
    table = text_table(texts)
    assert table.packed.dtype == np.uint8
    assert table.offsets.dtype == np.int64
    assert list(table) == texts
    assert table == texts


@pytest.mark.parametrize("offsets", [[], [0, 2], [0, 2, 1, 3], [1, 3], [[0, 3]]])
def test_offsets_that_do_not_fit_the_bytes_are_refused(offsets):
    packed = text_table(["abc"]).packed
    with pytest.raises(ValueError, match="table of texts is damaged"):
        TextTable(packed, np.array(offsets, dtype=np.int64))
