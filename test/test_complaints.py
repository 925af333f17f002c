"""What is wrong is said once, not thirty times a second."""

import pytest

from marigold_ros.complaints import Complaints


@pytest.fixture
def said():
    return []


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def complain(said, clock):
    return Complaints(said.append, period_s=10.0, clock=lambda: clock[0])


def test_a_complaint_is_said_once_whatever_its_numbers(complain, said):
    for age in range(100):
        complain("/range", f"the scan is {age}.5 s old", "no metric depth")
    assert said == ["/range: the scan is 0.5 s old (no metric depth)"]


def test_other_problems_and_other_topics_are_said_too(complain, said):
    complain("/image", "step=3", "dropped")
    complain("/image", "width=3", "dropped")
    complain("/range", "step=3", "dropped")
    assert len(said) == 3


def test_it_is_said_again_after_a_while_with_the_number_of_times(complain, said, clock):
    for second in range(11):
        clock[0] = float(second)
        complain("/image", "step=3", "dropped")
    assert said[1:] == ["/image: step=3 (dropped, 9 more since the last time)"]


def test_a_consequence_that_changes_is_said(complain, said):
    complain("/range", "no scan", "the last fit is held")
    complain("/range", "no scan", "no metric depth")
    assert said == ["/range: no scan (the last fit is held)", "/range: no scan (no metric depth)"]
