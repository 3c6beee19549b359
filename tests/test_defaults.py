"""The options proposed for tables: rules by their shape, and a reason for each."""

import dataclasses

from ftmamba.defaults import propose
from ftmamba.recipe import Recipe, lay_over, recipe_from_dict
from tests.made_up_tables import clusters


def test_a_proposal_is_a_partial_recipe_that_given_options_are_laid_over():
    tables = clusters()
    proposal = propose(tables, {})
    recipe = recipe_from_dict(lay_over(Recipe, proposal.values, {"split": "random"}))
    assert recipe.split.kind == "random"
    assert recipe_from_dict(proposal.values).split.kind == "leave-last-out"
    unordered = dataclasses.replace(
        tables, interactions=dataclasses.replace(tables.interactions, times=None)
    )
    assert propose(unordered, {}).values["split"] == {"kind": "random"}
    assert "neither times nor an order" in propose(unordered, {}).reasons[0]
