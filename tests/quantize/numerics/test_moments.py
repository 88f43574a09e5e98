"""Moments are those of centred inputs, with CLS tokens weighing more."""

import pytest

torch = pytest.importorskip("torch")

from atlas_edge.quantize.numerics.moments import Moments  # noqa: E402


@pytest.mark.parametrize("channels", [7, 300, 512])
def test_moments_are_what_their_definition_says(channels: int) -> None:
    random = torch.Generator().manual_seed(0)
    inputs = 3 + torch.randn(5, 9, channels, generator=random)
    values = torch.randn(5, 9, 4, generator=random) - 2
    weights = torch.ones(5, 9, dtype=torch.float64)
    weights[:, 0] = 16.0
    weights = (weights / weights.sum()).reshape(-1, 1)
    rows, wanted = inputs.reshape(-1, channels).double(), values.reshape(-1, 4).double()
    mean, target_mean = (weights * rows).sum(0), (weights * wanted).sum(0)
    centred = rows - mean

    moments = Moments(inputs, cls_weight=16.0)
    found_mean, cross = moments.against(values)
    near = {"rtol": 1e-4, "atol": 1e-3}
    torch.testing.assert_close(moments.mean.double(), mean, **near)
    torch.testing.assert_close(moments.gram.double(), 45 * centred.T @ (weights * centred), **near)
    torch.testing.assert_close(found_mean.double(), target_mean, **near)
    torch.testing.assert_close(cross.double(), 45 * centred.T @ (weights * (wanted - target_mean)), **near)
    assert torch.equal(moments.gram, moments.gram.T)
