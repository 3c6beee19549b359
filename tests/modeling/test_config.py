"""The config refuses what cannot be, and every field changes something."""

import json

import pytest
import torch
from transformers import AutoConfig

from modeling_ftmamba import FTMambaConfig, FTMambaTowerConfig, FTMambaTwoTowerModel
from modeling_ftmamba.configuration_ftmamba import FTMambaArchitecture

from .conftest import COLUMNS, HISTORY, make_batch, make_config, make_events, shake

BAD_SCALES = [
    [[0, 1]], [[0, 1], [0, 0]], [[0, 1], [float("nan"), 1]], [[0, 1], [0, float("inf")]],
    [[0, 1], [1e31, 1]], [[0, 1], [0, 1e-31]], [[0, 1], ["0", 1]], [[0, 1], [0, 1, 2]], "ab",
]  # fmt: skip
BAD = [
    ({"hiden_size": 8}, "no field 'hiden_size'.*did you mean 'hidden_size'"),
    ({"hidden_size": "8"}, "hidden_size.*expected int, got str"),
    ({"hidden_size": 0}, "hidden_size must be > 0, got 0"),
    ({"num_hidden_layers": -1}, "num_hidden_layers must be >= 0, got -1"),
    ({"mixer": "mambo"}, "mixer must be one of mamba, ssd, attention, got 'mambo'.*'mamba'"),
    ({"pooling": "max"}, "pooling must be one of cls, last, mean"),
    ({"numeric_embedding": "plr"}, "numeric_embedding must be one of"),
    ({"token_dropout": 1.0}, r"token_dropout must be in \[0, 1\), got 1.0"),
    ({"temperature": 0.0}, "temperature must be > 0"),
    ({"time_step_min": 1.0}, "time_step_min must be <= time_step_max"),
    ({"mixer": "attention", "num_attention_heads": 3}, "multiple of num_attention_heads"),
    ({"num_attention_heads": -1}, "num_attention_heads must be >= 0, got -1"),
    ({"mixer": "attention", "bidirectional": True}, "bidirectional must be False"),
    ({"mixer": "ssd", "ssd_head_size": 48}, "ssd_head_size must divide.*48 and 128.*set 0"),
    ({"mixer": "ssd", "ssd_head_size": -1}, "ssd_head_size must be >= 0, got -1"),
    ({"num_hidden_layers": 0}, "pooling must be 'mean' where num_hidden_layers is 0"),
    ({"with_head": False, "projection_size": 8}, "must equal hidden_size.*8 and 64"),
    ({"max_positions": -1}, "max_positions must be >= 0, got -1"),
    ({"initializer_range": -0.1}, "initializer_range must be >= 0, got -0.1"),
    ({"user_tower": {"columns": [HISTORY]}, "bidirectional": True}, "set bidirectional to False"),
    ({"user_tower": {"columns": [HISTORY]}, "mixer": "attention"}, "set causal_attention"),
    (
        {"user_tower": {"columns": [HISTORY]}, "max_positions": 9},
        "in 1..max_positions with the history.*got 20",
    ),
    (
        {"user_tower": {"columns": [{**HISTORY, "event_features": []}]}, "time_decay": True},
        r"time_decay needs.*'gap', got mixer 'mamba' and event_features \[\]",
    ),
    ({"user_tower": {"columns": [HISTORY, {**HISTORY, "name": "b"}]}}, "histories history, b"),
    ({"item_tower": {"columns": [HISTORY]}}, "item_tower: history 'history' must be in user_tower"),
    *(
        (
            {"user_tower": {"columns": [{**HISTORY, "event_features": features}]}},
            "event_features must be a list of gap, weight and numeric columns.*each once",
        )
        for features in (
            "gap",
            ["a", "a"],
            [3],
            [""],
            ["gap", "time"],
            [f"{n}" for n in range(4097)],
        )
    ),
    *(
        (
            {"user_tower": {"columns": [{**HISTORY, "event_scales": scales}]}},
            r"event_scales must be a list of \[mean, standard deviation > 0\], one for each",
        )
        for scales in BAD_SCALES
    ),
    ({"user_tower": {"columns": [{**COLUMNS[0], "min_count": 2}]}}, "min_count has no effect on k"),
    ({"item_tower": {"columns": [{**COLUMNS[1], "scaling": "none"}]}}, "scaling has no effect on"),
    (
        {"user_tower": {"columns": [{**HISTORY, "kind": "numeric"}]}},
        "kind must be 'history' for event_features",
    ),
    ({"user_tower": {"colums": []}}, "user_tower.*no field 'colums'.*'columns'"),
    ({"user_tower": {"columns": [{"name": "a", "kind": "numric"}]}}, "user_tower.*'numeric'"),
    ({"item_tower": {"columns": [{"name": "a", "knd": "numeric"}]}}, "unknown key 'knd'"),
    ({"item_tower": {"columns": [COLUMNS[0], COLUMNS[0]]}}, "column 'age' occurs twice"),
    ({"item_tower": {"projection_size": 3}}, "item_tower sets projection_size"),
]


@pytest.mark.parametrize(("fields", "message"), BAD)
def test_a_bad_value_is_named_with_field_value_and_rule(fields, message):
    with pytest.raises(Exception, match=f"(?s){message}"):
        FTMambaConfig(**fields)


def test_unknown_fields_never_stop_a_load_and_are_saved_again(build, tmp_path):
    """Transformers' Trainer writes `use_cache`, and people write notes."""
    build().save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text())
    saved |= {"use_cache": False, "note": "ours", "n_frequencies": 5}
    saved["item_tower"] |= {"note": "theirs", "ssd_head_size": 8}
    path.write_text(json.dumps(saved))
    model = FTMambaTwoTowerModel.from_pretrained(tmp_path)
    assert model.config.note == "ours"
    model.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "config.json").read_text())
    assert again["note"] == "ours"
    assert again["item_tower"]["note"] == "theirs"
    assert again["n_frequencies"] == 5
    with pytest.raises(ValueError, match="no field 'note'"):
        FTMambaConfig(note="ours")


def test_saved_names_that_are_no_notes_neither_stop_a_load_nor_shadow_anything(build, tmp_path):
    names = ["__class__", "__dict__", "self", "_note", "_attn_implementation_internal"]
    foreign = dict.fromkeys([*names, "tower", "inner_size", "to_dict", "from_columns"], "theirs")
    model = build()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    saved = json.loads(path.read_text()) | foreign
    saved["user_tower"] |= foreign
    path.write_text(json.dumps(saved))
    loaded = FTMambaTwoTowerModel.from_pretrained(tmp_path)
    assert loaded.config.tower("user").inner_size == model.config.tower("user").inner_size
    assert not foreign.keys() & loaded.config.to_dict().keys()
    assert torch.equal(loaded(**make_batch()).scores, model(**make_batch()).scores)


def test_a_section_overrides_the_shared_values_of_its_tower_only():
    config = FTMambaConfig(
        user_tower={"columns": COLUMNS}, item_tower={"hidden_size": 24}, hidden_size=16
    )
    assert config.tower("user").hidden_size == 16
    assert config.tower("item").hidden_size == 24


def test_sections_of_their_own_join_the_columns_and_columns_come_once():
    config = FTMambaConfig.from_columns(COLUMNS, [], item_tower={"hidden_size": 24})
    assert config.user_tower == {"columns": COLUMNS}
    assert config.item_tower == {"hidden_size": 24, "columns": []}
    with pytest.raises(ValueError, match="holds columns beside"):
        FTMambaConfig.from_columns([], [], user_tower={"columns": []})


def test_config_types_are_their_own():
    assert FTMambaConfig.model_type == "ftmamba"
    assert FTMambaTowerConfig.model_type == "ftmamba_tower"
    with pytest.raises(ValueError, match="ftmamba"):
        AutoConfig.for_model("ftmamba")


@pytest.mark.parametrize(
    ("hidden_size", "heads"), [(8, 1), (32, 1), (48, 1), (64, 2), (80, 2), (100, 2), (192, 6)]
)
def test_attention_heads_are_at_least_32_wide_unless_told(hidden_size, heads):
    config = FTMambaTowerConfig(mixer="attention", hidden_size=hidden_size)
    assert config.n_attention_heads == heads
    told = FTMambaTowerConfig(mixer="attention", hidden_size=hidden_size, num_attention_heads=4)
    assert told.n_attention_heads == 4


@pytest.mark.parametrize(("hidden_size", "heads"), [(64, 4), (192, 12), (24, 3), (20, 5), (7, 7)])
def test_ssd_heads_are_32_wide_or_the_power_of_two_that_fits(hidden_size, heads):
    assert FTMambaTowerConfig(mixer="ssd", hidden_size=hidden_size).n_ssd_heads == heads
    told = FTMambaTowerConfig(mixer="ssd", hidden_size=hidden_size, ssd_head_size=2 * hidden_size)
    assert told.n_ssd_heads == 1


ONLY_NUMBERS = [COLUMNS[0], COLUMNS[2]]
WITH_HISTORY = {"user_columns": [*COLUMNS, HISTORY]}
MODES = {
    "mamba": {},
    "ssd, normalised": {"mixer": "ssd", "normalize_embeddings": True, "norm_position": "sum"},
    "attention": {"mixer": "attention"},
    "no layers": {"num_hidden_layers": 0, "pooling": "mean"},
    "bare": {
        "num_hidden_layers": 0, "pooling": "mean", "final_norm": False, "with_head": False,
        "projection_size": 16,
    },
    "fed": {"mixer_feed_forward": True, "pooling": "last", "head_hidden_size": 0},
    "both ways": {"bidirectional": True, "numeric_embedding": "periodic"},
    "history": {**WITH_HISTORY, "pooling": "last"},
    "history of attention": {**WITH_HISTORY, "mixer": "attention", "causal_attention": True},
    "an item tower of its own": {"item_tower": {"num_hidden_layers": 0, "pooling": "mean"}},
    "numbers": {"user_columns": ONLY_NUMBERS, "item_columns": ONLY_NUMBERS},
}  # fmt: skip
# Another value of each field.
FLIPS = {
    "hidden_size": 24, "num_hidden_layers": 1, "mixer": "ssd", "state_size": 5, "conv_kernel": 3,
    "expand": 1, "time_step_rank": 3, "time_step_min": 0.01, "time_step_max": 0.5,
    "time_step_floor": 0.05, "ssd_head_size": 8, "bidirectional": True, "pooling": "mean",
    "norm_position": "post", "first_layer_norm": False, "mixer_residual": False,
    "mixer_feed_forward": True, "causal_attention": True, "num_attention_heads": 2,
    "feed_forward": "gelu", "intermediate_size": 8, "attention_dropout": 0.5,
    "feed_forward_dropout": 0.5, "residual_dropout": 0.5, "token_dropout": 0.5, "token_norm": True,
    "category_bias": False, "unseen_probability": 0.5, "history_start": True,
    "scale_embedding": True, "max_positions": 20, "time_decay": True, "numeric_embedding": "ple",
    "n_frequencies": 6, "frequency_scale": 0.5, "final_norm": False, "with_head": False,
    "head_hidden_size": 7, "projection_size": 5, "normalize_embeddings": True,
    "initializer_range": 0.5, "layer_norm_eps": 0.1, "temperature": 0.5, "learn_temperature": True,
    "repeat_bias": True,
    "user_tower": {"columns": ONLY_NUMBERS, "token_norm": True},
    "item_tower": {"columns": ONLY_NUMBERS, "token_norm": True},
}  # fmt: skip


def fingerprint(config):
    torch.manual_seed(0)
    model = shake(FTMambaTwoTowerModel(config)).train()
    torch.manual_seed(1)
    batch = {}
    for name, tensor in make_batch().items():
        side, tensor_name = name.split("_", 1)
        if tensor_name in getattr(model, f"{side}_tower").tokenizer.columns:
            batch[name] = tensor
    if model.user_tower.tokenizer.history:
        batch |= make_events([3, 0, 2, 4, 4], size=config.projection_size)
    output = model(**batch)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return trained, output.user_embeds, output.item_embeds, output.scores


def test_every_field_has_a_flip():
    fields = [*FTMambaArchitecture.__annotations__, *FTMambaConfig.__annotations__]
    assert set(FLIPS) == {name for name in fields if name != "model_type"}


@pytest.mark.parametrize("mode", MODES)
def test_every_field_changes_the_model_in_a_mode_or_is_refused_by_name(mode):
    plain = make_config(**MODES[mode])
    fields = {name: getattr(plain, name) for name in FLIPS}
    before, refused = fingerprint(plain), set()
    for field, value in FLIPS.items():
        if fields[field] == value or (mode == "numbers" and field == "category_bias"):
            continue
        try:
            flipped = FTMambaConfig(**(fields | {field: value}))
        except Exception as error:
            assert field in str(error), field  # noqa: PT017 - the others must not raise
            refused.add(field)
            continue
        after = fingerprint(flipped)
        same = before[0] == after[0] and all(
            a.shape == b.shape and torch.equal(a, b)
            for a, b in zip(before[1:], after[1:], strict=True)
        )
        assert not same, field
    assert {"token_dropout", "temperature", "projection_size"} - refused
    assert len(refused) < 36


def test_options_of_a_preset_that_wait_for_columns_are_not_refused():
    assert FTMambaConfig(history_start=True, unseen_probability=0.1).history_start
    with pytest.raises(ValueError, match=r"history_start has no effect here.*kind 'history'"):
        FTMambaConfig.from_columns(COLUMNS, COLUMNS, history_start=True)


def test_an_option_of_a_section_needs_an_effect_in_its_own_tower():
    with pytest.raises(ValueError, match=r"(?s)item_tower.*state_size has no effect"):
        make_config(item_tower={"num_hidden_layers": 0, "pooling": "mean", "state_size": 8})
    assert make_config(item_tower={"num_hidden_layers": 0, "pooling": "mean"}).state_size == 4
