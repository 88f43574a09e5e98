import pytest
from numpy.typing import NDArray

torch = pytest.importorskip("torch")

from atlas_edge.models.load import LoadedModel  # noqa: E402
from atlas_edge.quantize.finetune.learned_ranges import PARAMETER, _Rounding, keep_ranges, learn_ranges  # noqa: E402
from atlas_edge.quantize.onnx.fakequant import embed, fake_quantize  # noqa: E402
from atlas_edge.quantize.recipe import Recipe  # noqa: E402

RECIPE = Recipe(name="max", smooth_alphas=(-1.0,))


@pytest.mark.parametrize("first", [0.5, 12.0])
def test_a_range_finds_what_it_should_clip_from_either_side(first: float) -> None:
    values = torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    values[0] = 12.0
    log_range = torch.nn.Parameter(torch.tensor(first).log())
    optimiser = torch.optim.Adam([log_range], lr=0.05)
    for _ in range(150):
        optimiser.zero_grad()
        (_Rounding.apply(values, log_range, 7) - values).square().mean().backward()
        optimiser.step()

    def error(largest: float) -> float:
        return float((_Rounding.apply(values, torch.tensor(largest).log(), 7) - values).square().mean())

    best = min(error(float(largest)) for largest in torch.linspace(0.5, 12, 200))
    assert error(first) > 1.5 * best
    assert error(float(log_range.detach().exp())) < 1.1 * best


def test_values_within_the_range_are_passed_straight_and_clipped_ones_are_not() -> None:
    values = torch.tensor([0.3, -0.9, 2.0, -3.0], requires_grad=True)
    log_range = torch.tensor(1.0).log().requires_grad_()
    rounded = _Rounding.apply(values, log_range, 2)
    assert rounded.tolist() == [0.5, -1.0, 1.0, -1.0]
    rounded.backward(torch.ones(4))
    assert values.grad is not None and values.grad.tolist() == [1.0, 1.0, 0.0, 0.0]
    # Rounded less given, where not clipped, and the rounded value itself where clipped.
    assert log_range.grad is not None and float(log_range.grad) == pytest.approx(0.2 - 0.1 + 1.0 - 1.0)


def test_quantizers_round_the_same_with_trainable_ranges_and_after_them(
    tiny: LoadedModel, calibration: list[NDArray], held_out: NDArray
) -> None:
    quantized = fake_quantize(tiny.module, calibration, RECIPE)
    before = embed(quantized, [held_out])
    learn_ranges(quantized)
    names = [name for name, _ in quantized.named_parameters() if name.endswith(PARAMETER)]
    assert len(names) == 9  # the patch embedding, and four Linears in each of two blocks
    assert abs(embed(quantized, [held_out]) - before).max() < 0.02
    with torch.no_grad():
        dict(quantized.named_parameters())[names[0]].add_(1.0)
    keep_ranges(quantized)
    assert not [name for name, _ in quantized.named_parameters() if name.endswith(PARAMETER)]
    assert abs(embed(quantized, [held_out]) - before).max() > 0.02
