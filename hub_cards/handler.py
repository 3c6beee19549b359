"""What a Hugging Face inference endpoint runs: a request as JSON in, recommendations out.

This file travels with the checkpoint and needs torch and transformers only. The endpoint makes one
`EndpointHandler` and calls it with the decoded body of every request.
"""

import logging
from typing import Any

from transformers import pipeline

MOST_RECORDS = 1024
MOST_ITEMS = 1000
_LONGEST_MESSAGE = 500

REQUEST_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Request",
    "type": "object",
    "required": ["inputs"],
    "additionalProperties": False,
    "properties": {
        "inputs": {
            "description": "one record of a user, or a list of them: columns and their raw values",
            "anyOf": [
                {"type": "object"},
                {"type": "array", "items": {"type": "object"}, "maxItems": MOST_RECORDS},
            ],
        },
        "parameters": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "top_k": {
                    "description": "items to recommend for a record",
                    "type": "integer",
                    "minimum": 1,
                    "maximum": MOST_ITEMS,
                    "default": 10,
                },
                "exclude": {
                    "description": "keys of items to leave out",
                    "type": "array",
                    "items": {"type": "string"},
                    "default": [],
                },
            },
        },
    },
}
"""JSON schema of what the endpoint takes."""

_ITEMS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["item_key", "score", "title"],
        "properties": {
            "item_key": {"type": "string"},
            "score": {"type": "number"},
            "title": {"type": "string"},
        },
    },
}
ANSWER_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "Answer",
    "anyOf": [
        {**_ITEMS, "description": "for one record: its items, best first"},
        {"type": "array", "items": _ITEMS, "description": "for a list: the items of each record"},
        {
            "description": "for a request that cannot be answered",
            "type": "object",
            "required": ["error"],
            "properties": {
                "error": {
                    "type": "object",
                    "required": ["type", "message", "field"],
                    "properties": {
                        "type": {"enum": ["bad_request", "internal_error"]},
                        "message": {"type": "string"},
                        "field": {
                            "description": "what is wrong, such as inputs[2].age",
                            "type": ["string", "null"],
                        },
                    },
                }
            },
        },
    ],
}
"""JSON schema of what the endpoint gives."""

logger = logging.getLogger(__name__)


class EndpointHandler:
    """Answers requests; may be called from several threads at once.

    Args:
        path: folder of the checkpoint.
    """

    def __init__(self, path: str = "") -> None:
        make_pipeline: Any = pipeline
        self._recommend = make_pipeline("recommendation", model=path, trust_remote_code=True)
        self._n_items = len(self._recommend.catalogue)

    def __call__(self, data: Any) -> Any:
        """Answer one request.

        Args:
            data: `{"inputs": record or list of records, "parameters": {"top_k", "exclude"}}`; see
                `REQUEST_SCHEMA`.

        Returns:
            See `ANSWER_SCHEMA`. A request that cannot be answered gets an object `error`: what is
            wrong, where, and nothing of the program's inside.
        """
        try:
            inputs, parameters = self._checked(data)
            return self._recommend(inputs, **parameters)
        except _BadRequestError as error:
            return _error("bad_request", str(error), error.field)
        except ValueError as error:
            field = _field(error, data["inputs"])
            if field is not None:
                return _error("bad_request", str(error), field)
            return self._internal(error)
        except Exception as error:
            return self._internal(error)

    def _checked(self, data: Any) -> tuple[Any, dict[str, Any]]:
        """Check what the pipeline does not: the request's form, and that it is not too large."""
        if not isinstance(data, dict) or "inputs" not in data:
            raise _BadRequestError('a request must be an object: {"inputs": {...}}', "inputs")
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        for name in data:
            if name not in REQUEST_SCHEMA["properties"]:
                raise _BadRequestError(
                    f"a request has no field {name!r}; it has: inputs, parameters", str(name)
                )
        if not isinstance(inputs, dict | list):
            raise _BadRequestError("inputs must be an object or a list of objects", "inputs")
        if len(inputs) > MOST_RECORDS and isinstance(inputs, list):
            raise _BadRequestError(
                f"inputs may be {MOST_RECORDS} records at most, got {len(inputs)}; send several "
                "requests",
                "inputs",
            )
        if not isinstance(parameters, dict):
            raise _BadRequestError("parameters must be an object", "parameters")
        return inputs, self._checked_parameters(parameters)

    def _checked_parameters(self, parameters: dict[str, Any]) -> dict[str, Any]:
        known = REQUEST_SCHEMA["properties"]["parameters"]["properties"]
        for name in parameters:
            if name not in known:
                raise _BadRequestError(
                    f"there is no parameter {name!r}; there are: {', '.join(known)}",
                    f"parameters.{name}",
                )
        top_k = parameters.get("top_k", 1)
        most = min(MOST_ITEMS, self._n_items)
        if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= most:
            raise _BadRequestError(
                f"top_k must be a whole number from 1 to {most}, got {top_k!r:.80}",
                "parameters.top_k",
            )
        if not isinstance(parameters.get("exclude", []), list):
            raise _BadRequestError("exclude must be a list of item keys", "parameters.exclude")
        return parameters

    def _internal(self, error: Exception) -> dict[str, Any]:
        # The log is the owner's; the answer is anybody's.
        logger.error("a request failed", exc_info=error)
        return _error("internal_error", "the request could not be answered", None)


class _BadRequestError(Exception):
    def __init__(self, message: str, field: str) -> None:
        super().__init__(message)
        self.field = field


def _field(error: ValueError, inputs: Any) -> str | None:
    """Say where in the request the pipeline found a fault, None if it is not the request's."""
    parameter, row, column = (getattr(error, name, None) for name in ("parameter", "row", "column"))
    if parameter is None:
        return None
    if parameter != "inputs":
        return f"parameters.{parameter}"
    place = "inputs" if row is None or isinstance(inputs, dict) else f"inputs[{row}]"
    return place if column is None else f"{place}.{column}"


def _error(kind: str, message: str, field: str | None) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message[:_LONGEST_MESSAGE], "field": field}}
