"""Mean and covariance of tokens."""

import pytest

torch = pytest.importorskip("torch")

from atlas_edge.quantize.numerics.moments import moments  # noqa: E402


@pytest.mark.parametrize("channels", [7, 300, 512])
def test_moments_are_what_their_definition_says(channels: int) -> None:
    rows = 3 + torch.randn(45, channels, generator=torch.Generator().manual_seed(0))
    mean, covariance = moments(rows)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(covariance, torch.cov(rows.T, correction=0), rtol=1e-4, atol=1e-5)
    assert torch.equal(covariance, covariance.T)
