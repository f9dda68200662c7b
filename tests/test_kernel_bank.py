"""The kernel bank against separate convolutions."""

import pytest
import torch
from torch.nn import functional as F

from tax_lightning.models.kernel_bank import KernelBank


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


def test_kernels_of_an_annotator_who_is_missing_get_a_zero_gradient():
    bank = KernelBank(2, 2, 2, channels=3)
    bank(torch.randn(1, 3, 4, 4))[:, 1].square().sum().backward()
    for parameter in bank.parameters():
        assert parameter.grad is not None
        assert (parameter.grad[0] == 0).all()
        assert (parameter.grad[1] != 0).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"annotators": 0}, "annotators=0: expected at least 1."),
        ({"kernels": 0}, "kernels=0: expected at least 1."),
        ({"classes": 1}, "classes=1: expected at least 2."),
        ({"channels": 0}, "channels=0: expected at least 1."),
        ({"kernel_size": 2}, "kernel_size=2: expected an odd number, such as 1 or 3."),
        ({"kernel_size": -1}, "kernel_size=-1: expected an odd number, such as 1 or 3."),
    ],
)
def test_errors_name_the_argument(change, message):
    arguments = {"annotators": 2, "kernels": 2, "classes": 2, "channels": 4} | change
    with pytest.raises(ValueError, match=f"^{message}$"):
        KernelBank(**arguments)
