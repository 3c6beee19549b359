"""Recipes: YAML sets defaults, flags override, nothing unknown or of a wrong type passes."""

import ast
import re
from contextlib import nullcontext
from operator import attrgetter
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from ftmamba.comparison import check_rivals_and_baselines
from ftmamba.data.named_datasets import NAMED_DATASETS
from ftmamba.evaluation import make_split
from ftmamba.evaluation.baselines import BASELINES
from ftmamba.flags import list_options, load_recipe, make_parser
from ftmamba.recipe import (
    LossRecipe,
    Recipe,
    choose_variant,
    lay_over,
    load_preset,
    read_recipe,
    recipe_from_dict,
    shipped_names,
)
from ftmamba.training import run

NAMED = ["--data", "movielens-100k"]


@pytest.fixture
def recipe_file(tmp_path):
    def write(text):
        path = tmp_path / "my-recipe.yaml"
        path.write_text(text, encoding="utf-8")
        return ["--config", str(path), *NAMED]

    return write


def test_a_number_in_scientific_notation_is_a_number(recipe_file):
    recipe = load_recipe(recipe_file("training: {learning_rate: 1e-4, warmup_fraction: 1.e-1}"))
    assert recipe.training.learning_rate == 1e-4
    assert recipe.training.warmup_fraction == 0.1


def test_a_flag_overrides_the_file_and_the_file_the_default(recipe_file):
    argv = recipe_file("training: {batch_size: 64, num_epochs: 3}\nseed: 7")
    recipe = load_recipe([*argv, "--batch_size", "128", "--seed=1"])
    assert (recipe.training.batch_size, recipe.training.num_epochs, recipe.seed) == (128, 3, 1)
    assert recipe.training.loss.name == "in_batch"


@pytest.mark.parametrize(
    ("argv", "read"),
    [
        (["--split", "random"], lambda r: r.split.kind == "random"),
        (["--learning_rate", "3e-4"], lambda r: r.training.learning_rate == 3e-4),
        (["--split", "random", "--split.seed", "5"], lambda r: r.split.seed == 5 and r.seed == 42),
        (["--model", "ft-mamba-paper"], lambda r: r.model.preset == "ft-mamba-paper"),
        (["--with_tracking"], lambda r: r.training.with_tracking is True),
        (["--k", "5,20"], lambda r: r.evaluation.k == (5, 20)),
        (["--positive_threshold", "4"], lambda r: r.data.positive_threshold == 4.0),
        (["--checkpointing_steps", "100"], lambda r: r.training.checkpointing_steps == 100),
        (
            ["--overrides.hidden_size", "32", "--model.overrides.mixer=attention"],
            lambda r: r.model.overrides == {"hidden_size": 32, "mixer": "attention"},
        ),
        (["--overrides", "{expand: 1}"], lambda r: r.model.overrides == {"expand": 1}),
    ],
)
def test_a_flag_sets_its_option(argv, read):
    assert read(load_recipe([*NAMED, *argv]))


def test_a_flag_joins_a_section_named_by_its_main_option(recipe_file):
    recipe = load_recipe([*recipe_file("split: random"), "--test_fraction", "0.25"])
    assert recipe.split.kind == "random"
    assert recipe.split.test_fraction == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trainig: {}", r"the recipe has no key 'trainig'; did you mean 'training'\?"),
        (
            "training: {lerning_rate: 1}",
            r"section 'training' of the recipe has no key 'lerning_rate'; did you mean "
            r"'learning_rate'\?",
        ),
        ("training: {batch_size: large}", "training.batch_size must be a whole number, got 'larg"),
        ("training: {batch_size: 0}", "training.batch_size must be >= 1, got 0"),
        ("training: {learning_rate: .nan}", "training.learning_rate must be a number, got nan"),
        ("training: {loss: {log_q: 2}}", "training.loss.log_q must be true or false, got 2"),
        ("training: {warmup_fraction: 2}", "training.warmup_fraction must be from 0 to 1, got 2"),
        (
            "training: {loss: in_bach}",
            r"training.loss.name must be one of .*did you mean 'in_batch'\?",
        ),
        ("training: {checkpointing_steps: -1}", "checkpointing_steps must be a whole number > 0"),
        ("training: 3", "training must be a mapping, got 3"),
        ("evaluation: {k: [5, 0]}", "evaluation.k must be >= 1, got 0"),
        ("output_dir: 3", "output_dir must be text, got 3"),
        ("seed: null", "seed must be a whole number, got None"),
        ("push_to_hub: true", "push_to_hub needs hub_model_id"),
        ("max_shard_size: big", "max_shard_size must be a size such as 5GB or 500MB, got 'big'"),
        ("training: {loss: {name: mse, t: 0.75}}", r"training.loss.t is not read by 'mse'.* gbce"),
        (
            "training: {loss: {name: mse, mask_history: true, mask_known_positives: true}}",
            "keep one of the two",
        ),
        (
            "training: {loss: {name: full_softmax, label_smoothing: 0.1, n_sampled_items: 5}}",
            "label_smoothing spreads labels over all items",
        ),
        ("training: {num_epochs: 3, stop_after_epochs: 4}", "stop_after_epochs 4 is after"),
        ("training: {loss: in_batch, batch_size: 1}", "batch_size 1 trains nothing with in_batch"),
        ("- a\n- b", "must be a mapping of sections"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_recipe_says_what_is_wrong(recipe_file, text, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(recipe_file(text))


HUB = ["--push_to_hub", "--hub_model_id", "me/films"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*NAMED, "--lerning_rate", "1"], r"flag '--lerning_rate'; did you mean '--learning_rate"),
        ([*NAMED, "--learning_rate"], "expected one argument"),
        ([*NAMED, "--learning_rate", "fast"], "learning_rate must be a number, got 'fast'"),
        ([*NAMED, "--split", "time"], "split.kind must be one of random, leave-last-out, global"),
        ([*NAMED, "stray"], "unknown flag 'stray'"),
        ([*NAMED, "--overrides.hidden_size"], "needs a value"),
        ([*NAMED, "--users", "u.csv"], "data has both the name"),
        (["--users", "users.csv"], "data lacks interactions"),
        ([*HUB, "--hub_strategy", "evry_save"], r"hub_strategy must be .*did you mean 'every_save"),
        ([*HUB, "--hub_strategy", "every_save"], "none is saved; give --checkpointing_steps"),
        ([*HUB, "--hub_training_state"], "hub_training_state needs hub_strategy 'checkpoint'"),
        ([*HUB, "--hub_patience", "-1"], "hub_patience must be >= 0, got -1"),
    ],
)
def test_wrong_flags_say_what_is_wrong(argv, message):
    with pytest.raises(ValueError, match=message):
        load_recipe(argv)


def test_a_recipe_that_is_not_there_names_the_shipped_ones():
    with pytest.raises(FileNotFoundError, match="did you mean 'movielens-100k'"):
        load_recipe(["--config", "movielens-10k"])


def test_every_option_has_flags_of_its_own_and_help():
    options = list_options()
    flags = [flag for one in options for flag in one.flags]
    assert len(flags) == len(set(flags))
    assert sorted(one.flags for one in options if one.path[-1] == "seed") == [
        ("--seed",), ("--split.seed",),
    ]  # fmt: skip
    text = make_parser(options).format_help()
    assert len(options) > 40
    assert all(one.flags[0] in text and one.help_text for one in options)
    usage, _, rest = text.partition("\n\n")
    assert "--interactions FILE" in usage
    assert usage.count("\n") < 3
    assert "--split {random,leave-last-out,global-time}" in rest
    assert "--log_q [true|false]" in rest
    assert len(BASELINES) + len(NAMED_DATASETS) > 8
    assert all(name in rest for name in (*BASELINES, *NAMED_DATASETS))
    assert "--training.loss.log_q" not in rest
    assert "--k N ..." in rest
    assert "None" not in rest.replace("None:", "")


@pytest.mark.parametrize(
    "words",
    [["popularity", "item-knn"], ["popularity,item-knn"], ["popularity,", "item-knn"],
     ["[popularity, item-knn]"], ["[popularity,", "item-knn]"]],
)  # fmt: skip
def test_a_list_is_given_as_words_with_commas_or_as_yaml(words):
    recipe = load_recipe([*NAMED, "--baselines", *words, "--seed", "3", "--k", "3"])
    assert recipe.evaluation.baselines == ("popularity", "item-knn")
    assert (recipe.evaluation.k, recipe.seed) == ((3,), 3)


def test_a_written_recipe_reads_back_equal(tmp_path):
    argv = [*NAMED, "--k", "3", "--checkpointing_steps", "7", "--overrides.expand", "1"]
    recipe = load_recipe(argv)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.to_dict()))
    assert load_recipe(["--config", str(tmp_path / "recipe.yaml")]) == recipe


def test_every_shipped_recipe_loads_and_differs_from_the_defaults():
    names = shipped_names("recipes")
    assert "movielens-100k" in names
    for name in names:
        recipe = load_recipe(["--config", name])
        assert recipe != Recipe()
        assert yaml.safe_load(yaml.safe_dump(recipe.to_dict())) == recipe.to_dict()
        assert recipe_from_dict(choose_variant(read_recipe(name), None)) == recipe


VARIANTS = """
data: {users: u.csv, items: i.csv, interactions: x.csv, positive_threshold: 4}
split: global-time
training: {loss: in_batch, batch_size: 64}
for_split:
  random:
    data: {positive_threshold: null}
    split: {test_fraction: 0.25}
    training: {loss: full_mse}
"""


@pytest.fixture
def with_variants(tmp_path):
    (tmp_path / "recipe.yaml").write_text(VARIANTS)
    return ["--config", str(tmp_path / "recipe.yaml")]


def test_the_part_for_another_split_is_left_out(with_variants):
    recipe = load_recipe(with_variants)
    assert (recipe.training.loss.name, recipe.data.positive_threshold) == ("in_batch", 4)


def test_the_part_for_the_split_lies_between_the_file_and_the_flags(with_variants):
    recipe = load_recipe([*with_variants, "--split", "random", "--batch_size", "32"])
    assert recipe.split.kind == "random"
    assert recipe.split.test_fraction == 0.25
    assert (recipe.training.loss.name, recipe.training.batch_size) == ("full_mse", 32)
    assert (recipe.data.positive_threshold, recipe.data.users) == (None, "u.csv")
    flags = [*with_variants, "--split", "random", "--loss", "bce"]
    assert load_recipe(flags).training.loss.name == "bce"


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"randm": {}}, "unknown split 'randm'; did you mean 'random'"),
        ({"random": 3}, "for_split.random must be a partial recipe, got 3"),
        ([1], "for_split must be a mapping"),
    ],
)
def test_wrong_variants_are_refused(variants, message):
    with pytest.raises(ValueError, match=message):
        choose_variant({"for_split": variants}, None)


FIRST_RELEASE = Path(__file__).parent / "first_release_recipes"
CHANGED_SINCE = {"amazon-beauty": {"evaluation": {"refit": True}}}
"""What a shipped recipe does otherwise than in the first release, on purpose."""


@pytest.mark.parametrize("split", [None, "random"])
@pytest.mark.parametrize("name", ["amazon-beauty", "ml-1m", "movielens-100k"])
def test_a_shipped_recipe_of_the_first_release_reads_as_the_one_of_today(name, split):
    old, new = (
        recipe_from_dict(choose_variant(read_recipe(one), split))
        for one in (FIRST_RELEASE / f"{name}.yaml", name)
    )
    assert recipe_from_dict(lay_over(Recipe, old.to_dict(), CHANGED_SINCE.get(name, {}))) == new
    assert old.training.loss.name in ("full_softmax", "full_mse")


def test_a_recipe_that_the_first_release_wrote_keeps_what_its_loss_read():
    """It wrote every option with its default, whether the loss read it or not."""
    written = {
        "n_negatives": 4, "negatives": "uniform", "gbce_t": 0.5, "label_smoothing": 0.3,
        "mask_history": False, "log_q": False, "mask_known_positives": False, "n_sampled_items": 0,
        "user_weight_exponent": 0.0, "positive_weight": 5.0, "embedding_l2": 1.0, "batch_size": 7,
    }  # fmt: skip
    expected = {
        "in_batch": {"log_q": False},
        "gbce": {"t": 0.5},
        "full_mse": {"time_buckets": 1},
        "full_softmax": {"time_buckets": 1},
    }
    schema = {"items": {"key": "item", "popularity_days": [7]}}
    for name, options in expected.items():
        values = {"training": {"loss": name, **written}, "schema": schema}
        training = recipe_from_dict(values).training
        assert training.loss == LossRecipe(name, **options)
        assert training.batch_size == 7
    sequences = {"loss": "full_softmax", "sequences": "every", **written}
    assert recipe_from_dict({"training": sequences}).training.loss.label_smoothing == 0.3
    rivals = {"X": {"preset": "mlp-small", "training": {"loss": "gbce", "gbce_t": 0.5}}}
    upgraded = recipe_from_dict({"evaluation": {"rivals": rivals}}).evaluation.rivals
    assert upgraded["X"]["training"] == {"loss": {"name": "gbce", "t": 0.5}}


@pytest.mark.parametrize(
    ("argv", "loss"),
    [
        (["--loss", "gbce", "--loss.t", "0.5"], LossRecipe("gbce", t=0.5)),
        (["--training.loss.t=0.5", "--training.loss", "gbce"], LossRecipe("gbce", t=0.5)),
        (["--loss", "bce", "--n_negatives", "9"], LossRecipe("bce", n_negatives=9)),
        (["--label_smoothing", "0.1"], LossRecipe("full_softmax", label_smoothing=0.1)),
        (["--loss.log_q", "false", "--loss", "in_batch"], LossRecipe("in_batch", log_q=False)),
    ],
)
def test_another_loss_replaces_the_options_of_the_former(argv, loss, recipe_file):
    file = recipe_file("training: {loss: {name: full_softmax, label_smoothing: 0.3}}")
    assert load_recipe([*file, *argv]).training.loss == loss


TABLES = {"users": "u.csv", "items": "i.csv", "interactions": "x.csv"}
HUB_NEEDS = {"hub_private", "hub_strategy", "hub_catalogue", "hub_training_state", "hub_patience"}
# For each option a value that is neither its default nor that of a mode.
OTHER = {
    "data": {**dict.fromkeys(TABLES, "other.csv"), "name": "movielens-100k", "folder": "here",
             "drop_unknown": True, "positive_threshold": 4, "cache_dir": "there"},
    "split": {"kind": "random", "cut": 0.7, "test_fraction": 0.05, "validation_fraction": 0.2,
              "seed": 3},
    "model": {"preset": "mlp-small", "overrides": {"expand": 1}},
    "training": {
        "sequences": "newest", "batch_order": "time", "history_dropout": 0.5, "batch_size": 7,
        "num_epochs": 7,
        "stop_after_epochs": 3, "learning_rate": 1, "schedule": "linear", "warmup_fraction": 0.5,
        "weight_decay": 1, "embedding_weight_decay": 1, "adam_beta1": 0.1, "adam_beta2": 0.1,
        "max_grad_norm": 3, "gradient_accumulation_steps": 2, "mixed_precision": "bf16",
        "evaluate_every": 2, "early_stopping_patience": 2, "checkpointing_steps": 9,
        "checkpoints_total_limit": 3, "resume_from_checkpoint": "latest", "with_tracking": True,
        "report_to": "trackio", "log_every_steps": 3, "allow_changed": ("code",),
    },
    "training.loss": {
        "name": "bce", "n_negatives": 3, "negatives": "mixed", "t": 0.25, "log_q": False,
        "label_smoothing": 0.3, "mask_known_positives": True, "mask_history": True,
        "n_sampled_items": 3, "user_weight_exponent": 0.5, "positive_weight": 2.0, "l2": 3.0,
        "time_buckets": 2,
    },
    "evaluation": {
        "k": (3,), "mask_seen": False, "selection_metric": "HR@3", "refit": False,
        "refit_share": 0.5,
        "baselines": ("markov",), "baseline_options": {"ease": {"regularization": 3}},
        "tune_baselines": True, "rivals": {"X": {"preset": "mlp-small"}}, "user_groups": ("age",),
    },
    "examples": {"user_key": "7", "record": {"age": 3}, "history": ["a"]},
    "card": {"title": "T", "licence": "mit", "data_licence": "L", "data_hub_id": "a/b",
             "citation": "@misc{}", "country": "FRA"},
    "": {
        "schema": {}, "blend": "auto", "output_dir": "out", "overwrite_output_dir": True,
        "seed": 3, "max_shard_size": "1MB", "push_to_hub": True,
        "hub_model_id": "you/films", "hub_private": True, "hub_strategy": "every_save",
        "hub_catalogue": False, "hub_training_state": True, "hub_patience": 3,
    },
}  # fmt: skip
UNREAD = {
    "data": {"name", "folder"},
    "split": {"seed"},
    "training": {"checkpoints_total_limit", "report_to", "allow_changed"},
    "training.loss": {"n_negatives", "negatives", "t", "label_smoothing", "n_sampled_items",
                      "user_weight_exponent", "positive_weight", "l2"},
    "evaluation": {"baseline_options", "tune_baselines"},
    "": {"push_to_hub", *HUB_NEEDS},
}  # fmt: skip
# What a mode sets, and the options that are refused in it where they differ from UNREAD.
MODES = {
    "plain": ({}, {}),
    "named": ({"data": {**dict.fromkeys(TABLES, ""), "name": "ml-1m"}},
              {"data": {*TABLES, "drop_unknown"}}),
    "random": ({"split": "random"}, {"split": {"cut"}}),
    "last": ({"split": "leave-last-out"},
             {"split": {"cut", "test_fraction", "validation_fraction", "seed"}}),
    "rows in time": ({"training": {"batch_order": "time"}},
                     {"training": {"sequences", *UNREAD["training"]}}),
    "sequences": ({"training": {"sequences": "every"}},
                  {"training": {"batch_order", "history_dropout", *UNREAD["training"]}}),
    "saving": ({"training": {"checkpointing_steps": "epoch"}},
               {"training": {"report_to", "allow_changed"}}),
    "tracking": ({"training": {"with_tracking": True}},
                 {"training": {"checkpoints_total_limit", "allow_changed"}}),
    "resuming": ({"training": {"resume_from_checkpoint": "latest"}},
                 {"training": {"checkpoints_total_limit", "report_to"}}),
    "baselines": ({"evaluation": {"baselines": ["ease"]}}, {"evaluation": set()}),
    "pushing": ({"push_to_hub": True, "hub_model_id": "me/films"},
                {"": {"hub_strategy", "hub_training_state"}}),
    "pushing states": (
        {"push_to_hub": True, "hub_model_id": "me/films", "hub_strategy": "checkpoint",
         "training": {"checkpointing_steps": 3}},
        {"": {"push_to_hub"}, "training": {"report_to", "allow_changed"}},
    ),
}  # fmt: skip


def changed(usual, section, option):
    """Return a recipe with one option changed, as it is used."""
    values = part = usual.to_dict()
    for name in section.split(".") if section else []:
        part = part[name]
    current, default = part.get(option), attrgetter(section)(Recipe()) if section else Recipe()
    other = OTHER[section][option]
    part[option] = getattr(default, option) if other == current else other
    recipe = recipe_from_dict(values)
    recipe.data.check_complete()
    return recipe


def recipe_of(mode):
    return recipe_from_dict(lay_over(Recipe, {"data": TABLES}, MODES[mode][0]))


def test_every_option_of_every_section_is_walked():
    walked = {f"{section}.{option}".strip(".") for section in OTHER for option in OTHER[section]}
    assert walked == {".".join(one.path) for one in list_options()}


@pytest.mark.parametrize("mode", MODES)
def test_an_option_is_taken_or_where_nothing_reads_it_refused_by_name(mode):
    usual = recipe_of(mode)
    for section, options in OTHER.items():
        refused = set()
        for option in options:
            try:
                assert changed(usual, section, option) != usual, option
            except ValueError as error:
                refused |= {option} & {*re.findall(r"\w+", str(error))}
        assert refused == {**UNREAD, **MODES[mode][1]}.get(section, set()), section


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"baselines": ["popularity"], "tune_baselines": True}, "tune_baselines is for .*item-knn"),
        (
            {"baselines": ["ease"], "baseline_options": {"ease": {}}, "tune_baselines": True},
            r"baseline_options \['ease'\] are not read with tune_baselines",
        ),
    ],
)
def test_tuning_of_what_cannot_be_tuned_is_refused(evaluation, message):
    with pytest.raises(ValueError, match=message):
        check_rivals_and_baselines(recipe_from_dict({"evaluation": evaluation}))


def test_every_option_is_read_by_the_program():
    root = Path(__file__).parents[1]
    files = [root / "train_accelerate.py"]
    for package in ("ftmamba", "hub_cards"):
        files += [path for path in (root / package).rglob("*.py") if path.name != "recipe.py"]
    trees = [ast.parse(path.read_text("utf-8")) for path in files]
    read = {
        node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)
    }
    # `SplitRecipe.options` hands all of them to the split.
    assert {one.path[-1] for one in list_options() if one.path[0] != "split"} <= read


@pytest.mark.parametrize("mode", ["plain", "random", "last"])
def test_an_option_of_a_split_changes_the_split(mode):
    def split(recipe):
        return make_split(recipe.split.kind, recipe.split.options(recipe.seed))

    usual = recipe_of(mode)
    for option in {*OTHER["split"]} - {"kind"} - {**UNREAD, **MODES[mode][1]}["split"]:
        assert split(changed(usual, "split", option)) != split(usual), option


@pytest.mark.parametrize("mode", ["plain", "named"])
def test_an_option_of_the_data_changes_what_is_loaded(mode, monkeypatch):
    process = SimpleNamespace(local_main_process_first=nullcontext)
    monkeypatch.setattr(run, "load_tables", lambda *args, **options: (args, options))
    for name in run.NAMED_DATASETS:

        def load(*args, name=name, **options):
            return name, args, options

        monkeypatch.setitem(run.NAMED_DATASETS, name, load)

    def loaded(recipe):
        return run.read_tables(recipe.data, recipe.schema, process)

    usual = recipe_of(mode)
    for option in {*OTHER["data"]} - {**UNREAD, **MODES[mode][1]}["data"]:
        # Own tables are encoded in `cache_dir`.
        is_other = loaded(changed(usual, "data", option)) != loaded(usual)
        assert is_other == (mode == "named" or option != "cache_dir"), option


@pytest.mark.parametrize(
    ("flags", "kept"),
    [
        (["--push_to_hub", "false"], lambda r: r.hub_patience == 600),
        (["--with_tracking", "no"], lambda r: r.training.report_to == "tensorboard"),
        (["--checkpointing_steps", ""], lambda r: r.training.checkpoints_total_limit == 2),
        (["--baselines", "ease"], lambda r: set(r.evaluation.baseline_options) == {"ease"}),
        ([], lambda r: (r.hub_patience, r.training.report_to) == (3, "trackio")),
    ],
)
def test_what_a_flag_switches_off_takes_the_options_that_need_it_along(recipe_file, flags, kept):
    file = recipe_file("""
      push_to_hub: true
      hub_model_id: me/films
      hub_patience: 3
      training: {with_tracking: true, report_to: trackio, checkpointing_steps: 4,
                 checkpoints_total_limit: 7}
      evaluation: {baselines: [ease, ials], baseline_options: {ease: {}, ials: {}}}
    """)
    assert kept(load_recipe([*file, *flags]))


def test_a_rival_that_cannot_be_trained_at_every_position_is_refused_before_training():
    values = {
        "training": {"sequences": "every", "loss": "full_softmax"},
        "evaluation": {"rivals": {"X": {"preset": "ft-mamba-small"}}},
    }
    with pytest.raises(ValueError, match=r"rival 'X': .* needs pooling 'last' or 'mean'"):
        check_rivals_and_baselines(recipe_from_dict(values))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("seed: 1\nmodel: {preset: a}\nseed: 2\n", "seed' stands again in line 3"),
        ("model: {preset: a}\ntraining: {}\nmodel: {}\n", "model' stands again in line 3"),
        ("training:\n  num_epochs: 3\n  num_epochs: 4\n", "num_epochs' stands again in line 3"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path, text, name):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=name):
        read_recipe(tmp_path / "r.yaml")


def test_what_a_recipe_takes_over_from_another_part_may_be_replaced(tmp_path):
    text = "model: {overrides: &a {hidden_size: 8}}\nschema: {<<: *a, hidden_size: 9}\n"
    (tmp_path / "r.yaml").write_text(text)
    assert read_recipe(tmp_path / "r.yaml")["schema"] == {"hidden_size": 9}


def test_a_preset_with_a_key_twice_is_refused(tmp_path):
    (tmp_path / "p.json").write_text('{"hidden_size": 8, "hidden_size": 9}')
    with pytest.raises(ValueError, match="the key 'hidden_size' occurs twice"):
        load_preset(tmp_path / "p.json")
