import numpy as np
import pytest

from modeling_ftmamba.string_table import pack_strings, unpack_strings


@pytest.mark.parametrize(
    "texts", [[], [""], ["", "a", ""], ["plain", "ascii"], ["Ärzte", "日本", "🎬", "\ud800"]]
)
def test_texts_survive_packing(texts):
    packed, offsets = pack_strings(texts)
    assert packed.dtype == np.uint8
    assert offsets.dtype == np.int64
    assert len(offsets) == len(texts) + 1
    assert unpack_strings(packed, offsets) == texts


@pytest.mark.parametrize("offsets", [[], [0, 2], [0, 2, 1, 3], [1, 3], [[0, 3]]])
def test_offsets_that_do_not_fit_the_bytes_are_refused(offsets):
    packed, _ = pack_strings(["abc"])
    with pytest.raises(ValueError, match="table of texts is damaged"):
        unpack_strings(packed, np.array(offsets, dtype=np.int64))
