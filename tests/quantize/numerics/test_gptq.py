import pytest

torch = pytest.importorskip("torch")

from atlas_edge.quantize.numerics.gptq import round_weights  # noqa: E402
from atlas_edge.quantize.numerics.ranges import choose_range, clipped_amax  # noqa: E402
from atlas_edge.quantize.numerics.rounding import fake_round, fake_weight, smooth_scale, symmetric_ends  # noqa: E402


@pytest.fixture
def correlated() -> "tuple[torch.Tensor, torch.Tensor]":
    """Inputs `(2000, 32)` that lie near an 8-dimensional subspace, and weights `(16, 32)`."""
    random = torch.Generator().manual_seed(0)
    few = torch.randn(2000, 8, generator=random) @ torch.randn(8, 32, generator=random)
    return few + 0.1 * torch.randn(2000, 32, generator=random), torch.randn(16, 32, generator=random)


@pytest.mark.parametrize("levels", [127, 7])
def test_gptq_rounds_onto_the_grid_and_beats_the_nearest(
    correlated: "tuple[torch.Tensor, torch.Tensor]", levels: int
) -> None:
    inputs, weight = correlated
    found = round_weights(weight, inputs.T @ inputs, levels=levels)
    rounded, step = found.weight, found.largest[:, None] / levels
    integers = rounded / step
    assert torch.allclose(integers, integers.round(), atol=1e-3)
    assert integers.abs().max() <= levels + 1e-3
    assert torch.allclose((found.sought / step).round(), integers, atol=1e-3)
    assert (found.sought - rounded).abs().mean() > 0.1 * step.mean()

    def error(candidate: "torch.Tensor") -> float:
        return float((inputs @ (candidate - weight).T).square().mean())

    assert error(rounded) < 0.5 * error(fake_weight(weight, levels))


def test_an_outlier_channel_is_smoothed() -> None:
    random = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(512, 16, generator=random), torch.randn(8, 16, generator=random)
    inputs[:, 3] *= 100
    low, high = inputs.amin(0), inputs.amax(0)
    plain = choose_range(inputs, low, high, weight, alphas=(-1.0,), calibrator="max")
    smooth = choose_range(inputs, low, high, weight, alphas=(-1.0, 0.5), calibrator="max")
    assert smooth.alpha == 0.5
    assert smooth.error < 0.2 * plain.error
    scale = smooth_scale(torch.maximum(high, -low), weight, 0.5)
    assert smooth.scale is not None and torch.equal(torch.from_numpy(smooth.scale), scale)
    assert plain.scale is None


def test_a_range_that_may_be_skewed_is_used_whole() -> None:
    random = torch.Generator().manual_seed(0)
    inputs, weight = torch.rand(512, 16, generator=random), torch.randn(8, 16, generator=random)
    low, high = inputs.amin(0), inputs.amax(0)
    skewed, even = (
        choose_range(inputs, low, high, weight, alphas=(-1.0,), calibrator="max", symmetric=symmetric)
        for symmetric in (False, True)
    )
    assert (skewed.low, even.low) == (0.0, pytest.approx(-even.high * 128 / 127))
    # Half as large a step, a quarter of its part of the error; the weights' part is the same.
    assert skewed.error < 0.6 * even.error


def test_an_input_that_is_always_zero_has_a_range() -> None:
    nothing = torch.zeros(512, 16)
    weight = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    found = choose_range(nothing, nothing[0], nothing[0], weight, alphas=(0.5,), calibrator="max")
    assert found.low < 0 < found.high
    assert torch.equal(found.rounded(nothing), nothing)


def test_a_lone_outlier_is_clipped() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=random)
    values[0] = 60.0
    assert clipped_amax(values, 60.0, "max") == 60.0
    assert 3.5 < clipped_amax(values, 60.0, "percentile") < 5
    assert 2 < clipped_amax(values, 60.0, "entropy") < 30
    mse = clipped_amax(values, 60.0, "mse")
    assert mse < 60.0
    errors = [float((fake_round(values, *symmetric_ends(amax)) - values).square().mean()) for amax in (mse, 60.0)]
    assert errors[0] < errors[1]
