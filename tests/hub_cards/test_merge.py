"""A new card takes the place of an old one, and a person's words stay."""

import pytest
import yaml

from hub_cards.merge import (
    PROVISIONAL_TITLE,
    UNDER_WAY,
    merge_card,
    parts_of,
    section,
    split_metadata,
)

GENERATED = """---
license: apache-2.0
tags:
- ftmamba
- mamba
model-index:
- name: new
---

# Films

<!-- ftmamba:begin use -->
New use.
<!-- ftmamba:end use -->

<!-- ftmamba:begin results -->
New results.
<!-- ftmamba:end results -->
"""

EDITED = """---
license: mit
tags:
- mamba
- films
model-index:
- name: old
co2_eq_emissions: 3
---

# The films of our town

Made with love.

<!-- ftmamba:begin use -->
Old use.
<!-- ftmamba:end use -->

Ask Ada before you use this.

<!-- ftmamba:begin results -->
Old results.
<!-- ftmamba:end results -->

## Thanks

To everybody.
"""


def metadata(card):
    return yaml.safe_load(split_metadata(card)[0])


def body(card):
    return split_metadata(card)[1]


def test_the_same_card_again_changes_nothing():
    assert merge_card(GENERATED, "") == GENERATED
    assert merge_card(GENERATED, GENERATED) == GENERATED
    once = merge_card(GENERATED, EDITED)
    assert merge_card(GENERATED, once) == once


def test_sections_are_replaced_and_everything_else_stays():
    expected = body(EDITED).replace("Old use", "New use").replace("Old results", "New results")
    assert body(merge_card(GENERATED, EDITED)) == expected
    assert metadata(merge_card(GENERATED, EDITED)) == {
        "license": "mit",
        "tags": ["ftmamba", "mamba", "films"],
        "model-index": [{"name": "new"}],
        "co2_eq_emissions": 3,
    }


def test_a_card_without_markers_is_kept_whole_above_the_sections():
    merged = merge_card(GENERATED, "# Mine\n\nAll my own words.\n")
    assert body(merged).startswith("# Mine\n\nAll my own words.\n\n<!-- ftmamba:begin use -->\n")
    assert "# Films" not in merged
    assert merged.count("New use.") == merged.count("New results.") == 1


def test_a_new_section_comes_behind_the_one_it_follows():
    generated = GENERATED + "\n" + section("limits", "New limits.")
    generated = generated.replace("# Films", section("first", "First.") + "\n# Films")
    merged = body(merge_card(generated, EDITED))
    order = [
        merged.index(text)
        for text in ("First.", "New use", "Ada", "New results", "limits.", "Thanks")
    ]
    assert order == sorted(order)


def test_a_new_section_brings_its_heading_once():
    generated = GENERATED + "\n## Limits\n\n" + section("limits", "New limits.")
    merged = merge_card(generated, EDITED)
    assert merged.count("## Limits\n\n<!-- ftmamba:begin limits -->") == 1
    assert merged.count("# Films") == 0
    assert merge_card(generated, merged) == merged
    assert merge_card(generated, GENERATED) == generated


def test_a_card_of_a_run_under_way_changes_its_own_sections_alone():
    under_way = "---\ntags:\n- ftmamba\n---\n# Films\n\n" + section("use", f"{UNDER_WAY}\nStep 12.")
    expected = EDITED.replace("Old use.", f"{UNDER_WAY}\nStep 12.")
    assert body(merge_card(under_way, EDITED)) == body(expected)
    assert "Old results." in merge_card(under_way, EDITED)
    assert metadata(merge_card(under_way, EDITED))["model-index"] == [{"name": "old"}]
    assert body(merge_card(GENERATED, merge_card(under_way, ""))) == body(GENERATED).lstrip()


def test_a_provisional_title_is_replaced():
    provisional = f"# repo {PROVISIONAL_TITLE}\n\n" + section("use", f"{UNDER_WAY}\nStep 12.")
    assert body(merge_card(GENERATED, provisional)) == body(GENERATED).lstrip()
    written = provisional.replace(f" {PROVISIONAL_TITLE}", "")
    assert body(merge_card(GENERATED, written)).startswith("# repo\n")


def test_a_section_that_is_no_longer_generated_keeps_its_position():
    short = merge_card(section("training", "Epoch 3."), EDITED)
    assert section("results", "") in short
    assert "Old results" not in short
    assert "Epoch 3." in short
    again = body(merge_card(GENERATED, short))
    order = [again.index(text) for text in ("New use", "Ada", "New results", "Thanks")]
    assert order == sorted(order)
    assert "Epoch 3." not in again


@pytest.mark.parametrize(
    "broken",
    [
        EDITED.replace("<!-- ftmamba:end use -->\n", ""),
        EDITED.replace("<!-- ftmamba:begin use -->\n", ""),
        EDITED.replace("<!-- ftmamba:end results -->\n", ""),
    ],
)
def test_a_marker_without_its_other_half_loses_no_text(broken, caplog):
    merged = merge_card(GENERATED, broken)
    for words in ("Made with love.", "Ask Ada", "## Thanks", "To everybody."):
        assert merged.count(words) == 1
    assert merged.count("New use.") == merged.count("New results.") == 1
    assert "kept" in caplog.text
    assert merge_card(GENERATED, merged) == merged


def test_markers_inside_a_line_are_text():
    text = "Sections lie between `<!-- ftmamba:begin use -->` and its end.\n"
    assert [part.name for part in parts_of(text)] == [""]
    assert text in merge_card(GENERATED, text)


def test_line_ends_of_windows_and_metadata_that_is_no_yaml_do_no_harm(caplog):
    merged = merge_card(GENERATED, EDITED.replace("\n", "\r\n"))
    assert merged == merge_card(GENERATED, EDITED)
    broken = merge_card(GENERATED, EDITED.replace("license: mit", "license: [mit"))
    assert metadata(broken) == metadata(GENERATED)
    assert body(broken) == body(merged)
    assert "not valid YAML" in caplog.text
