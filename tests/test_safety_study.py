"""The study counts the right requests, compares the right sides, and knows every arm's control."""

import pytest
from safety_study import controls

from llama3_lab.records import SafetyAnswer
from llama3_lab.safety import study


def row(i: int, kind: str, family: str, flag: bool) -> SafetyAnswer:
    code = "S2" if kind == "adversarial" else ""
    return SafetyAnswer(f"{kind}-{family}-{i}", kind, code, family, "text", flag and kind == "adversarial",
                        flag and kind == "borderline", flag, 0.0, 0.0)  # type: ignore[arg-type]  # fmt: skip


def rows(known: int, unseen: int, refused: int, passed: int) -> list[SafetyAnswer]:
    """Ten requests of each sort, of which so many are flagged."""
    out = []
    for kind, family, n in (("adversarial", "plain", known), ("adversarial", "encoding", unseen),
                            ("borderline", "plain", refused), ("benign", "", passed)):  # fmt: skip
        out += [row(i, kind, family, i < n) for i in range(10)]
    return out


@pytest.mark.parametrize(("metric", "share"), [("vr", 0.3), ("held-out vr", 0.8), ("frr", 0.1), ("passed", 0.6)])
def test_each_metric_counts_its_own_requests(metric, share):
    found = study.flags(rows(3, 8, 1, 6), metric, "encoding")
    assert len(found) == 10 and sum(r.sampled for r in found) / 10 == pytest.approx(share)


def test_an_unknown_metric_is_named():
    with pytest.raises(ValueError, match="unknown metric 'asr'"):
        study.flags(rows(1, 1, 1, 1), "asr", "encoding")


def test_a_change_is_a_minus_b_and_several_seeds_are_averaged():
    one = {"a": rows(2, 8, 1, 6), "b": rows(9, 8, 1, 6)}
    other = {"a": rows(4, 8, 1, 6), "b": rows(9, 8, 1, 6)}
    single = study.change([one], "x", ("a", "b"), "vr", "encoding")
    assert single.difference == pytest.approx(-0.7) and single.verdict == "worse" and single.metric == "vr"
    both = study.change([one, other], "x", ("a", "b"), "vr", "encoding")
    assert both.difference == pytest.approx(-0.6) and both.n == 10


def test_every_arm_meets_its_control():
    layers = ["none", "own answers, unfiltered", "filter", "refusal training", "input guard", "all"]
    against = controls("layers", layers)
    assert {a for a, _ in against} == set(layers) - {"none"}
    assert ("filter", "own answers, unfiltered") in against and ("all", "none") in against
    assert controls("red team", ["before", "round 1", "round 2"]) == [
        ("round 1", "before"), ("round 2", "round 1"), ("round 2", "before"),
    ]  # fmt: skip
    named = {study.arm_name(n, share) for n in study.QUANTITIES for share in study.NOISES}
    assert {name for pair in controls("quality", []) for name in pair} <= named
