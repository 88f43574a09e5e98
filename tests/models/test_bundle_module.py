"""A bundle as a module of PyTorch: the same embeddings, whatever a harness does to the images before."""

import copy
import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import atlas_edge
from atlas_edge import open_bundle
from atlas_edge.errors import InputError, UsageError
from support import TINY_PX

torch = pytest.importorskip("torch")

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


@pytest.fixture(scope="module")
def module(bundle: Path) -> Any:
    return atlas_edge.torch_module(bundle)


def expected(bundle: Path, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
    encoder = open_bundle(bundle)
    try:
        return encoder.encode(tiles)
    finally:
        encoder.close()


def test_its_transform_and_it_give_what_the_encoder_gives(
    module: Any, bundle: Path, tiny_tiles: NDArray[np.uint8]
) -> None:
    wanted = expected(bundle, tiny_tiles)
    as_images = {
        "PIL": [Image.fromarray(tile) for tile in tiny_tiles],
        "array": list(tiny_tiles),
        "tensor": [torch.from_numpy(tile).permute(2, 0, 1) for tile in tiny_tiles],
    }
    for images in as_images.values():
        batch = torch.stack([module.transform(image) for image in images])
        assert batch.dtype == torch.float32 and batch.shape == (16, 3, TINY_PX, TINY_PX)
        with torch.inference_mode():
            np.testing.assert_array_equal(module.eval()(batch).numpy(), wanted)
        # Half precision holds 8 bits.
        np.testing.assert_array_equal(module(batch.half()).numpy(), wanted)
    plain = torch.from_numpy(tiny_tiles).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(module(plain).numpy(), wanted)
    assert (module.embed_dim, module.name) == (wanted.shape[1], "tiny-vit") and not list(module.parameters())


def test_a_harness_may_normalise_by_its_own_numbers(bundle: Path, tiny_tiles: NDArray[np.uint8]) -> None:
    wanted = expected(bundle, tiny_tiles)
    scaled = torch.from_numpy(tiny_tiles).permute(0, 3, 1, 2) / 255.0
    black = {"mean": np.zeros(3, np.float32), "std": torch.ones(3)}
    for numbers in (IMAGENET, black):
        mean, std = (torch.as_tensor(numbers[name]).view(3, 1, 1) for name in ("mean", "std"))
        module = atlas_edge.torch_module(bundle, **numbers)
        np.testing.assert_array_equal(module((scaled - mean) / std).numpy(), wanted)
        np.testing.assert_array_equal(module(torch.stack(list(map(module.transform, tiny_tiles)))).numpy(), wanted)


def test_a_normalisation_by_other_numbers_is_noticed(
    bundle: Path, tiny_tiles: NDArray[np.uint8], caplog: pytest.LogCaptureFixture
) -> None:
    module = atlas_edge.torch_module(bundle)
    scaled = torch.from_numpy(tiny_tiles).permute(0, 3, 1, 2) / 255.0
    with pytest.raises(InputError, match=r"pixels reach from -?\d+ to \d+, expected 0 to 255") as raised:
        module((scaled - 0.1) / 0.1)
    assert "transform" in str(raised.value)
    with caplog.at_level(logging.WARNING, logger="atlas_edge"):
        module(scaled)  # not normalised at all
        module(scaled)
    assert len(caplog.messages) == 1 and "no 8-bit values" in caplog.messages[0]


def test_what_it_does_not_take_is_said(module: Any, bundle: Path) -> None:
    for shape in ((1, 3, 16, 16), (0, 3, TINY_PX, TINY_PX), (3, TINY_PX, TINY_PX), (1, TINY_PX, TINY_PX, 3)):
        with pytest.raises(InputError, match="expected \\(B, 3, 32, 32\\)"):
            module(torch.zeros(shape))
    with pytest.raises(UsageError, match="no gradients"):
        module(torch.zeros(1, 3, TINY_PX, TINY_PX, requires_grad=True))
    with pytest.raises(UsageError, match="no patch tokens"):
        module.forward_with_tokens(torch.zeros(1, 3, TINY_PX, TINY_PX))
    for image in (np.zeros((8, 8, 3)), np.zeros((8, 8), np.uint8)):
        with pytest.raises(InputError, match="expected 8-bit RGB"):
            module.transform(image)
    outside = {"mean": (123.7, 116.3, 103.5), "std": (58.4, 57.1, 57.4)}
    for numbers in ({"mean": (0.5,)}, {"mean": 0.5}, {"std": (0.5, 0.0, 0.5)}, {"mean": [float("nan")] * 3}, outside):
        with pytest.raises(UsageError, match="three numbers"):
            atlas_edge.torch_module(bundle, **numbers)


def test_copies_and_other_processes_open_the_bundle_again(
    module: Any, bundle: Path, tiny_tiles: NDArray[np.uint8]
) -> None:
    batch = torch.stack([module.transform(tile) for tile in tiny_tiles[:4]])
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        np.testing.assert_array_equal(other(batch).numpy(), module(batch).numpy())
    transform = pickle.loads(pickle.dumps(module.transform))
    assert torch.equal(transform(tiny_tiles[0]), batch[0])
    # A network of them is moved and frozen as a whole.
    whole = torch.nn.Sequential(module, torch.nn.Linear(module.embed_dim, 2)).to("cpu").eval().requires_grad_(False)
    assert whole(batch).shape == (4, 2)


def test_patch_tokens_come_from_full_precision_as_they_are(tiny_model: Path, tiny_tiles: NDArray[np.uint8]) -> None:
    module = atlas_edge.torch_module(tiny_model)
    batch = torch.stack([module.transform(tile) for tile in tiny_tiles[:2]])
    embeddings, tokens = module.forward_with_tokens(batch)
    assert embeddings.shape == (2, 64) and tokens.shape == (2, 16, 64)
    np.testing.assert_array_equal(embeddings.numpy(), module(batch).numpy())
