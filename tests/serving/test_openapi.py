"""Requests drawn from the service's own description, by schemathesis."""

import pytest

schemathesis = pytest.importorskip("schemathesis")
N_DRAWN = 12
"""Requests to each path of right form, and as many of wrong form."""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_no_drawn_request_breaks_the_service_or_its_description(client, monkeypatch):
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.internal.conjecture import providers

    # Hypothesis reads the source of every module for constants to draw, which takes a minute.
    monkeypatch.setattr(providers, "is_local_module_file", lambda _path: False)

    checks = schemathesis.checks.load_all_checks() or schemathesis.checks.CHECKS
    names = (
        "not_a_server_error", "status_code_conformance", "content_type_conformance",
        "response_schema_conformance", "negative_data_rejection",
    )  # fmt: skip
    chosen = checks.get_by_names(list(names))
    assert len(chosen) == len(names)
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    statuses: dict[str, set[int]] = {}

    def check(case):
        arguments = case.as_transport_kwargs(base_url="http://testserver")
        answer = client.request(**{k: v for k, v in arguments.items() if k != "cookies"})
        case.validate_response(answer, checks=chosen)
        statuses.setdefault(case.path, set()).add(answer.status_code)

    drawn = settings(
        max_examples=N_DRAWN,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in schemathesis.GenerationMode:
            try:
                strategy = operation.as_strategy(generation_mode=mode)
                seed(0)(drawn(given(strategy)(check)))()
            except Exception as error:
                if "Unsatisfiable" not in type(error).__name__:
                    raise
    assert statuses["/events"] >= {400}
    assert statuses["/recommend"] >= {400, 404}
    assert len(statuses) == 7
