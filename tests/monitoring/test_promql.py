"""What the check of the lab takes out of an expression."""

from __future__ import annotations

import pytest
from promql import selectors


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up == 0", {"up"}),
        ('max by (host) (up{job!="prometheus"}) == 0', {'up{job!="prometheus"}'}),
        (
            'sum by (host, le) (rate(vllm:a_bucket{le="2.5"}[5m])) / on (host) group_left (model) citadel_b',
            {'vllm:a_bucket{le="2.5"}', "citadel_b"},
        ),
        ('predict_linear(a{model=""}[6h], 86400) > b and a > a offset 6h', {'a{model=""}', "b", "a"}),
        ('label_replace(increase(a{p=~"m_.+"}[1h]), "model", "$1", "p", "m_(.+)")', {'a{p=~"m_.+"}'}),
        ('a{x="{not} a_name", y="1"} * 1e9 or vector(1)', {'a{x="{not} a_name", y="1"}'}),
        ("a:b:rate5m * 100 > 1.5 unless on () (time() - c < 60)", {"a:b:rate5m", "c"}),
    ],
)
def test_the_metrics_of_an_expression_are_found_with_their_conditions(expression: str, expected: set[str]) -> None:
    assert selectors(expression) == expected
