"""The YAML at the top of a card: what the Hub reads."""

from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from markupsafe import Markup

from hub_cards.facts import Figure, ModelCardFacts
from hub_cards.markdown import one_line

TAGS = ("ftmamba", "recommendation", "two-tower", "retrieval", "tabular")
METRIC_TYPES = {"P": "precision", "R": "recall", "HR": "hit_rate"}
"""What the Hub calls a metric, where that is not our name in small letters."""

_DIGITS = 4
# YAML folds a longer line, and not every reader unfolds it.
_LONGEST_NAME = 100


def model_metadata(facts: ModelCardFacts) -> Markup:
    """Return a model card's metadata as YAML.

    The model index holds the card's own model, each metric with its interval and, under `args`,
    with what every other model reached under the same protocol: there no leaderboard takes a
    baseline's figure for this model's.
    """
    data = ModelCardData(
        model_name=one_line(facts.name, _LONGEST_NAME),
        license=one_line(facts.licence),
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=[*TAGS, one_line(facts.model.mixer)],
        datasets=[one_line(facts.data.hub_id)] if facts.data.hub_id else None,
        metrics=list(dict.fromkeys(map(metric_type, facts.metrics))),
        eval_results=[_result(facts, metric) for metric in facts.metrics],
        **_emissions(facts),
    )
    # It stands between two lines of dashes, where nothing is HTML: escaping would change it.
    return Markup(data.to_yaml())


def metric_type(metric: str) -> str:
    """Return the Hub's name of a metric such as "R@10"."""
    name = metric.partition("@")[0]
    return METRIC_TYPES.get(name, name.lower())


def _result(facts: ModelCardFacts, metric: str) -> EvalResult:
    others = {
        one_line(row.name, _LONGEST_NAME): {
            "value": _number(row.figures[metric].value),
            **_interval(row.figures[metric]),
        }
        for row in facts.results[1:]
    }
    own = facts.own.figures[metric]
    args = {**_interval(own), **({"baselines": others} if others else {})}
    name = one_line(facts.data.name, _LONGEST_NAME)
    return EvalResult(
        task_type="recommendation",
        task_name="Recommendation",
        dataset_type=one_line(facts.data.hub_id) or name.lower().replace(" ", "-"),
        dataset_name=name,
        dataset_split="test",
        metric_type=metric_type(metric),
        metric_name=metric,
        metric_value=_number(own.value),
        metric_args=args or None,
    )


def _interval(figure: Figure) -> dict[str, Any]:
    if figure.low is None or figure.high is None:
        return {}
    return {"interval_95": [_number(figure.low), _number(figure.high)]}


def _number(value: float) -> float:
    # A numpy float here makes YAML that no reader accepts.
    return round(float(value), _DIGITS)


def _emissions(facts: ModelCardFacts) -> dict[str, Any]:
    training = facts.training
    if training.emissions is None:
        return {}
    return {
        "co2_eq_emissions": {
            "emissions": _number(training.emissions),
            "source": "codecarbon",
            "training_type": "training",
            "geographical_location": training.country,
            "hardware_used": one_line(training.hardware),
        }
    }
