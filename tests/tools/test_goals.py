"""Goals that rows of a table meet, miss, or cannot tell."""

from tools.goals import Goal, summary, verdicts

FAST, NEAR = Goal("twice as fast", "times", 2), Goal("near the floor", "%", 70)


def test_verdicts() -> None:
    row = {"times": 2.0, "%": 69.9}
    assert verdicts(row, [FAST, NEAR]) == "met: twice as fast; missed: near the floor"
    assert verdicts(row | {"times": None}, [FAST]) == "not measured: twice as fast"
    assert verdicts(row, []) == ""


def test_a_summary_names_the_worst() -> None:
    table = [
        {"kernel": "a", "times": times, "%": 80.0, "at": place}
        for times, place in ((3.0, "x"), (1.0, "y"), (None, "z"), (2.0, "w"))
    ]
    table.append({"kernel": "b", "times": 9.0, "%": 9.0, "at": "v"})
    found = summary(
        table, lambda row: [FAST, NEAR] if row["kernel"] == "a" else [], lambda row: row["at"]
    )
    assert found == [
        {"kernel": "a", "goal": FAST.name, "met": 2, "of": 3, "worst": 1.0, "at": "y"},
        {"kernel": "a", "goal": NEAR.name, "met": 4, "of": 4, "worst": 80.0, "at": "x"},
    ]
