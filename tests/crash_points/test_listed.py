"""No statement of the product is at no point by oversight."""

from tests.crash_points.listed import EXEMPT, POINTS, exempt, listed
from tests.crash_points.scenario import SCENARIOS
from tests.crash_points.statements import load_names


def test_every_statement_is_at_a_point_or_exempt_for_a_reason() -> None:
    points = listed(POINTS.read_text())
    visited = {
        name
        for name in load_names().values()
        for each in points.values()
        for point in each
        if f" {name} (" in point
    }
    reasons = exempt(EXEMPT.read_text(), load_names().values())
    assert all(reasons.values())
    assert set(load_names().values()) - visited - set(reasons) == set()
    assert visited & set(reasons) == set(), "exempt, and visited all the same"
    assert set(reasons) - set(load_names().values()) == set(), "exempt, and not there any more"


def test_every_scenario_is_listed() -> None:
    assert list(listed(POINTS.read_text())) == [scenario.name for scenario in SCENARIOS]
