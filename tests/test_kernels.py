"""The kernel bank against separate convolutions."""

import pytest
import torch
from torch.nn import functional as F

from tax_lightning.models.kernel_bank import Cohorts, KernelBank


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
def test_one_convolution_equals_a_loop_over_the_kernels(kernel_size):
    bank = KernelBank(3, 2, 4, channels=5, kernel_size=kernel_size)
    torch.nn.init.normal_(bank.bias)
    features = torch.randn(2, 5, 7, 6)
    logits = bank(features)
    assert logits.shape == (2, 3, 2, 4, 7, 6)
    for n in range(3):
        for k in range(2):
            alone = F.conv2d(features, bank.weight[n, k], bank.bias[n, k], padding="same")
            torch.testing.assert_close(logits[:, n, k], alone)


def test_a_kernel_of_ones_counts_the_pixels_that_it_sees():
    bank = KernelBank(1, 1, 2, channels=1)
    with torch.no_grad():
        bank.weight[0, 0, 0] = 1.0
        bank.weight[0, 0, 1] = 0.0
        bank.bias[0, 0] = torch.tensor([0.0, 0.5])
    logits = bank(torch.ones(1, 1, 3, 4))[0, 0, 0]
    assert logits[0].tolist() == [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]]
    assert (logits[1] == 0.5).all()


def test_the_kernels_of_an_annotator_who_is_not_asked_get_a_zero_gradient():
    bank = KernelBank(2, 2, 2, channels=3)
    bank(torch.randn(1, 3, 4, 4))[:, 1].square().sum().backward()
    for parameter in bank.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[0] == 0).all()
        assert (parameter.grad[1] != 0).any()


def test_kernels_start_small_and_differ():
    bank = KernelBank(2, 3, 2, channels=16, kernel_size=3)
    assert bank.weight.abs().max() <= 1 / 12  # 1 / sqrt(16 * 3 * 3)
    kernels = bank.weight.flatten(2).flatten(0, 1)
    assert (torch.cdist(kernels, kernels) + torch.eye(6) > 0.1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cohorts": 0}, "annotators=0: expected at least 1."),
        ({"kernels": 0}, "kernels=0: expected at least 1."),
        ({"classes": 1}, "classes=1: expected at least 2."),
        ({"channels": 0}, "channels=0: expected at least 1."),
        ({"kernel_size": 2}, "kernel_size=2: expected an odd number, such as 1 or 3."),
        ({"kernel_size": -1}, "kernel_size=-1: expected an odd number, such as 1 or 3."),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"cohorts": 2, "kernels": 2, "classes": 2, "channels": 4} | change
    with pytest.raises(ValueError, match=f"^{message}$"):
        KernelBank(**arguments)


# ---------------------------------------------------------------------- cohorts


def made_cohorts() -> Cohorts:
    """Rows 0 and 1, which were trained together, and row 2, which was added."""
    return Cohorts([torch.tensor([[0.0, 1.0], [2.0, 3.0]]), torch.tensor([[4.0, 5.0]])])


def test_cohorts_are_one_tensor_in_the_order_of_their_parts():
    rows = made_cohorts()
    assert rows.whole.tolist() == [[0, 1], [2, 3], [4, 5]]
    assert rows.sizes == [2, 1]
    assert [rows.row(n).tolist() for n in range(3)] == rows.whole.tolist()


def test_one_cohort_is_the_parameter_itself():
    rows = Cohorts([torch.zeros(3, 2)])
    assert rows.whole is rows[0]
    assert [name for name, _ in rows.named_parameters()] == ["0"]


@pytest.mark.parametrize(("n", "part", "place"), [(0, 0, 0), (1, 0, 1), (2, 1, 0)])
def test_what_is_written_into_a_row_is_written_into_the_parameter(n, part, place):
    rows = made_cohorts()
    expected = rows.whole.detach().clone()
    expected[n] = 9.0
    rows.row(n)[:] = 9.0
    assert (rows[part][place] == 9).all()
    assert torch.equal(rows.whole, expected)
    assert not rows.row(n).requires_grad


def test_the_gradient_of_all_rows_reaches_each_cohort():
    rows = made_cohorts()
    (rows.whole * torch.tensor([[1.0], [2.0], [3.0]])).sum().backward()
    assert rows[0].grad.tolist() == [[1, 1], [2, 2]]
    assert rows[1].grad.tolist() == [[3, 3]]


def test_a_row_beyond_the_last_is_an_error():
    with pytest.raises(IndexError, match=r"of 3$"):
        made_cohorts().row(3)


def test_the_error_names_the_row_that_was_asked_for():
    with pytest.raises(IndexError, match=r"^row 4 of 3$"):
        made_cohorts().row(4)


@pytest.mark.parametrize("kernel_size", [1, 3])
def test_an_added_cohort_leaves_the_logits_of_those_before_the_same_to_the_last_bit(kernel_size):
    before = KernelBank([2], 3, 2, channels=7, kernel_size=kernel_size)
    after = KernelBank([2, 1], 3, 2, channels=7, kernel_size=kernel_size)
    torch.nn.init.normal_(before.bias)
    with torch.no_grad():
        after.weights[0].copy_(before.weight)
        after.biases[0].copy_(before.bias)
    features = torch.randn(2, 7, 9, 8)
    logits = after(features)
    assert after.annotators == 3
    assert after.weight.shape == (3, 3, 2, 7, kernel_size, kernel_size)
    assert logits.shape == (2, 3, 3, 2, 9, 8)
    assert torch.equal(logits[:, :2], before(features))
    alone = KernelBank(1, 3, 2, channels=7, kernel_size=kernel_size)
    alone.load_state_dict({"weights.0": after.weights[1], "biases.0": after.biases[1]})
    assert torch.equal(logits[:, 2:], alone(features))


def test_every_cohort_needs_an_annotator():
    with pytest.raises(ValueError, match=r"^annotators=0: expected at least 1\.$"):
        KernelBank([2, 0], 2, 2, channels=4)
    with pytest.raises(ValueError, match=r"^annotators=0: expected at least 1\.$"):
        KernelBank([], 2, 2, channels=4)


# ---------------------------------------------------------------------- shared


def test_a_shared_bank_says_the_same_of_every_annotator_from_one_set_of_kernels():
    shared = KernelBank([2, 1], 2, 3, channels=4, kind="shared")
    torch.nn.init.normal_(shared.bias)
    assert shared.annotators == 3
    assert shared.weight.shape == (1, 2, 3, 4, 3, 3)
    assert shared.bias.shape == (1, 2, 3)
    assert len(list(shared.parameters())) == 2
    features = torch.randn(2, 4, 6, 5)
    logits = shared(features)
    assert logits.shape == (2, 3, 2, 3, 6, 5)
    assert logits.stride(1) == 0  # a view: no copy for each annotator
    for k in range(2):
        alone = F.conv2d(features, shared.weight[0, k], shared.bias[0, k], padding="same")
        for n in range(3):
            torch.testing.assert_close(logits[:, n, k], alone)


def test_all_annotators_teach_a_shared_kernel():
    shared = KernelBank(3, 1, 2, channels=1, kernel_size=1, kind="shared")
    weights = torch.tensor([1.0, 2.0, 4.0]).view(1, 3, 1, 1, 1, 1)
    (shared(torch.full((1, 1, 1, 1), 0.5)) * weights).sum().backward()
    assert shared.bias.grad.tolist() == [[[7.0, 7.0]]]
    assert (shared.weight.grad == 3.5).all()
