"""The routes as they describe themselves, called with everything that they say they take, and with what they do not."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import CHECKS, load_all_checks

from tests.faults.deployment import Deployment
from tests.hostile.tally import Tally
from tools.http_reference import openapi

load_all_checks()

# Two hold for routes that a schema describes to the last rule. Ours have rules over several fields (a prompt of one
# kind or another, a label for each point), and take `"1"` and `1` for `true` as the reference does.
UNFIT = frozenset({"positive_data_acceptance", "negative_data_rejection"})

_EXAMPLES = settings.default.max_examples  # type: ignore[union-attr]
RANDOM_ONES = max(10, _EXAMPLES // 20)
"""The random requests to each route."""

THOROUGH = _EXAMPLES > 100
"""Whether a schema's corners are all gone through before, with a thousand requests: in `make hostile`."""

FEW_POINTS = 4
"""Along each side of the grid for segmenting everything: what is tried is the route, and 1,024 points take seconds."""

CHECKED = [CHECKS.get_one(name) for name in CHECKS.get_all_names() if name not in UNFIT]

relaxed = settings(max_examples=RANDOM_ONES, deadline=None, suppress_health_check=list(HealthCheck))


def _with_plain_tuples(schema: Any) -> Any:
    """Return a schema whose tuples, all of which have elements of one kind, are lists of so many elements.

    Schemathesis rewrites tuples for an older JSON Schema and then takes them for invalid.
    """
    if isinstance(schema, list):
        return [_with_plain_tuples(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    out = {name: _with_plain_tuples(part) for name, part in schema.items()}
    if "prefixItems" in out:
        first, *others = out.pop("prefixItems")
        assert all(other == first for other in others)
        out["items"] = first
    return out


schema = schemathesis.openapi.from_dict(_with_plain_tuples(openapi()))
schema.config.phases.coverage.enabled = THOROUGH


@schema.parametrize()
@relaxed
def test_no_request_brings_about_a_fault_or_an_undescribed_answer(
    case: Any, services: Deployment, http_counts: Tally
) -> None:
    """Every answer is below 500, and its status, headers and body are those that the OpenAPI document describes."""
    if isinstance(case.body, dict) and isinstance(case.body.get("points_per_side", 32), int):
        case.body = {**case.body, "points_per_side": min(case.body.get("points_per_side", 32), FEW_POINTS)}
    answered = case.call(base_url=services.urls[0])
    http_counts.count_status(answered.status_code)
    case.validate_response(answered, checks=CHECKED)
