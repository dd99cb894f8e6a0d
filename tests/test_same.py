"""assert_same holds two functions to the same values and gradients, and says where they part."""

import pytest
import torch

from llama3_lab.course.same import assert_same
from llama3_lab.pipeline.losses import dpo_loss, reward_loss

A, B = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 3.0])


def test_equal_functions_pass_and_say_how_near(capsys):
    assert_same(lambda a, b: torch.log1p(torch.exp(b - a)).mean(), reward_loss, A, B)
    said = capsys.readouterr().out
    assert said.startswith("same value, same gradient (max difference ")
    assert float(said.split()[-1].rstrip(")")) < 1e-6


def test_a_result_that_is_no_scalar_is_compared_whole(capsys):
    assert_same(lambda x: x * x, lambda x: x**2, A)
    with pytest.raises(AssertionError, match=r"the values differ at \(2,\): mine 1.5, theirs 0.5"):
        assert_same(lambda x: x + torch.tensor([0.0, 0.0, 1.0]), lambda x: x, A)


def test_gradients_are_compared_where_values_agree():
    with pytest.raises(AssertionError, match=r"the gradients of x differ at \(0,\): mine 2, theirs 1"):
        assert_same(lambda x: (2 * x - x.detach()).sum(), lambda x: x.sum(), A, names=["x"])


def test_gradients_that_cancel_in_a_plain_sum_are_told_apart():
    # softmax sums to one: its plain sum has no gradient, whatever is wrong inside.
    with pytest.raises(AssertionError, match="the gradients of input 1 differ"):
        assert_same(lambda x: x.softmax(0), lambda x: x.detach().softmax(0) + 0 * x.sum(), A)


def test_a_reference_that_should_get_no_gradient_is_named():
    def forgot(c, r, ref_c, ref_r):
        return -torch.nn.functional.logsigmoid(0.1 * ((c - ref_c) - (r - ref_r))).mean()

    four = (A, B, A + 1, B - 1)
    names = ("chosen", "rejected", "reference chosen", "reference rejected")
    with pytest.raises(AssertionError, match="the gradients of reference chosen differ"):
        assert_same(forgot, lambda *x: dpo_loss(*x, beta=0.1), *four, names=names)


def test_inputs_are_not_touched_and_whole_numbers_get_no_gradient(capsys):
    x, i = torch.tensor([1.0, 2.0], requires_grad=True), torch.tensor([1, 0])
    assert_same(lambda x, i, n: x[i] * n, lambda x, i, n: n * x.gather(0, i), x, i, 3)
    assert x.grad is None
    assert "same gradient" in capsys.readouterr().out
    assert_same(lambda i: i + 1, lambda i: 1 + i, i)
    assert capsys.readouterr().out == "same value (max difference 0.0e+00)\n"


@pytest.mark.parametrize(("mine", "words"), [(lambda x: x[:2], "shapes differ: 2 and 3"),
                                             (lambda x: x.sum(), "shapes differ: a scalar and 3"),
                                             (lambda x: 1.0, "returned float, no tensor"),
                                             (lambda x: x * float("nan"), "the values differ"),
                                             (lambda x: x / 0, "the values differ")])  # fmt: skip
def test_what_cannot_be_the_same_is_said(mine, words):
    with pytest.raises(AssertionError, match=words):
        assert_same(mine, lambda x: x * 1, A)


def test_equal_infinities_are_equal():
    masked = torch.tensor([0.0, float("-inf")])
    assert_same(lambda x: x + masked, lambda x: masked + x, torch.tensor([1.0, 2.0]))


def test_tolerance_is_relative_for_large_and_absolute_for_small_numbers():
    assert_same(lambda x: x * 1e6 * (1 + 1e-6), lambda x: x * 1e6, A.double(), tolerance=2e-6)
    with pytest.raises(AssertionError):
        assert_same(lambda x: x * 1e6 * (1 + 1e-5), lambda x: x * 1e6, A.double(), tolerance=2e-6)


def test_names_must_be_as_many_as_inputs():
    with pytest.raises(ValueError, match="2 inputs and 1 names"):
        assert_same(reward_loss, reward_loss, A, B, names=["one"])
