import pytest

torch = pytest.importorskip("torch")

from atlas_edge.quantize.numerics.gptq import fit_weights, round_weights  # noqa: E402
from atlas_edge.quantize.numerics.ranges import choose_range, clipped_amax  # noqa: E402
from atlas_edge.quantize.numerics.rounding import fake_int8, fake_weight, smooth_scale  # noqa: E402


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


def test_fitting_takes_back_what_is_linear(correlated: "tuple[torch.Tensor, torch.Tensor]") -> None:
    inputs, weight = correlated
    distorted = inputs * torch.linspace(0.8, 1.2, 32)
    wanted = inputs @ weight.T

    def error(candidate: "torch.Tensor") -> float:
        return float((distorted @ candidate.T - wanted).square().mean())

    gram, cross = distorted.T @ distorted, distorted.T @ wanted
    assert error(fit_weights(gram, cross, weight, ridge=1e-4)) < 0.01 * error(weight)
    assert torch.allclose(fit_weights(gram, cross, weight, ridge=1e6), weight, atol=1e-3)


def test_an_outlier_channel_is_smoothed() -> None:
    random = torch.Generator().manual_seed(0)
    inputs, weight = torch.randn(512, 16, generator=random), torch.randn(8, 16, generator=random)
    inputs[:, 3] *= 100
    peak = inputs.abs().amax(0)
    plain = choose_range(inputs, peak, weight, alphas=(-1.0,), calibrator="max")
    smooth = choose_range(inputs, peak, weight, alphas=(-1.0, 0.5), calibrator="max")
    assert smooth.alpha == 0.5
    assert smooth.error < 0.2 * plain.error
    assert torch.equal(smooth.scale, smooth_scale(peak, weight, 0.5))
    assert torch.equal(plain.scale, torch.ones(16))


def test_a_lone_outlier_is_clipped() -> None:
    random = torch.Generator().manual_seed(0)
    values = torch.randn(100_000, generator=random)
    values[0] = 60.0
    assert clipped_amax(values, 60.0, "max") == 60.0
    assert 3.5 < clipped_amax(values, 60.0, "percentile") < 5
    assert 2 < clipped_amax(values, 60.0, "entropy") < 30
    mse = clipped_amax(values, 60.0, "mse")
    assert mse < 60.0
    errors = [float((fake_int8(values, amax) - values).square().mean()) for amax in (mse, 60.0)]
    assert errors[0] < errors[1]
