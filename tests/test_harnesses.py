"""The lines of docs/harnesses.md against what each harness publishes that it calls, and calls with.

Each stand-in takes what the real one takes, names and order of arguments and abstract methods included, and uses the
module as that one does.
"""

import inspect
import pkgutil
import re
import sys
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import atlas_edge
from atlas_edge.bench.accuracy.croma import croma_margins
from support import ROOT, TINY_PX

torch = pytest.importorskip("torch")
PAGE = (ROOT / "docs/harnesses.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pixels() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (6, TINY_PX, TINY_PX, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def wanted(bundle: Path, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    encoder = atlas_edge.open_bundle(bundle)
    found = encoder.encode(pixels)
    encoder.close()
    return found


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> Callable[..., ModuleType]:
    """Put a module, and those above it, where imports find them."""

    def publish(name: str, **names: Any) -> ModuleType:
        for end in [match.start() for match in re.finditer(r"\.", name)] + [len(name)]:
            if name[:end] not in sys.modules:
                monkeypatch.setitem(sys.modules, name[:end], ModuleType(name[:end]))
                parent, _, own = name[:end].rpartition(".")
                if parent:
                    setattr(sys.modules[parent], own, sys.modules[name[:end]])
        vars(sys.modules[name]).update(names)
        return sys.modules[name]

    return publish


def run_file(name: str, bundle: Path) -> dict[str, Any]:
    """Run the lines of a file of the page."""
    (block,) = re.findall(rf"```python\n(# {name}\n.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = {"__name__": "lines"}
    exec(compile(block.replace('"BUNDLE"', repr(str(bundle))), name, "exec"), found)
    return found


def test_every_row_of_the_table_has_its_lines() -> None:
    files = set(re.findall(r"`(?:python |thunder benchmark custom:)(atlas_\w+\.py)", PAGE))
    assert files == set(re.findall(r"^# (atlas_\w+\.py)$", PAGE, re.MULTILINE)) and len(files) == 6


def test_the_first_lines(bundle: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32]) -> None:
    (block,) = re.findall(r"```python\n(import atlas_edge\n.*?)```", PAGE, re.DOTALL)
    found: dict[str, Any] = {}
    exec(block.replace('"BUNDLE"', repr(str(bundle))), found)
    module = found["module"]
    np.testing.assert_array_equal(module(torch.stack(list(map(module.transform, pixels)))).numpy(), wanted)


def test_eva(bundle: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32]) -> None:
    yaml = pytest.importorskip("yaml")
    (block,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    backbone = yaml.safe_load(block)["backbone"]
    # ModelFromFunction(path, arguments, checkpoint_path, transforms) of kaiko-eva 0.4.5.
    assert backbone["class_path"] == "eva.core.models.wrappers.ModelFromFunction"
    assert backbone["init_args"].keys() <= {"path", "arguments", "checkpoint_path", "transforms"}
    made_by = pkgutil.resolve_name(backbone["init_args"]["path"])
    arguments = {**backbone["init_args"]["arguments"], "bundle": bundle}
    inspect.signature(made_by).bind(**arguments)
    module = made_by(**arguments)
    # What eva's ResizeAndCrop does to an image of the right size.
    mean, std = (torch.tensor(arguments[name]).view(3, 1, 1) for name in ("mean", "std"))
    images = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255 - mean) / std
    np.testing.assert_array_equal(module(images).numpy(), wanted)


def test_hest(bundle: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32], published: Any) -> None:
    seen = []

    def benchmark(encoder: Any, enc_transf: Any, precision: Any, cli_args: Any = None, **kwargs: Any) -> None:
        assert isinstance(encoder, torch.nn.Module) and kwargs.keys() <= {"config", "datasets", "exp_code"}
        encoder.eval().to("cpu")
        images = torch.stack([enc_transf(Image.fromarray(tile)) for tile in pixels]).float()
        with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision != torch.float32):
            seen.append(encoder(images).cpu().numpy())

    published("hest.bench", benchmark=benchmark)
    run_file("atlas_hest.py", bundle)
    np.testing.assert_array_equal(seen[0], wanted)


def test_trident(bundle: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32], published: Any) -> None:
    seen = []

    class CustomInferenceEncoder(torch.nn.Module):  # type: ignore[name-defined, misc]
        def __init__(self, enc_name: str, model: Any, transforms: Any, precision: Any) -> None:
            super().__init__()
            self.enc_name, self.model, self.eval_transforms, self.precision = enc_name, model, transforms, precision

        def forward(self, x: Any) -> Any:
            return self.model(x)

    class Processor:
        def __init__(self, job_dir: str, wsi_source: str, wsi_ext: Any = None, **_: Any) -> None:
            pass

        def run_patch_feature_extraction_job(
            self,
            coords_dir: str,
            patch_encoder: Any,
            device: str,
            saveas: str = "h5",
            batch_limit: int = 512,
            saveto: str | None = None,
        ) -> None:
            patch_encoder.to(device)
            patch_encoder.eval()
            images = torch.stack([patch_encoder.eval_transforms(Image.fromarray(tile)) for tile in pixels])
            with torch.inference_mode():
                seen.append(patch_encoder(images.to(device).to(patch_encoder.precision)).cpu().numpy())

    published("trident", Processor=Processor)
    published("trident.patch_encoder_models", CustomInferenceEncoder=CustomInferenceEncoder)
    run_file("atlas_trident.py", bundle)
    np.testing.assert_array_equal(seen[0], wanted)


def test_thunder(bundle: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32], published: Any) -> None:
    class PretrainedModel(torch.nn.Module, ABC):  # type: ignore[name-defined, misc]
        @abstractmethod
        def get_transform(self) -> Any: ...

        @abstractmethod
        def get_linear_probing_embeddings(self, x: Any) -> Any: ...

        @abstractmethod
        def get_segmentation_embeddings(self, x: Any) -> Any: ...

    published("thunder.models", PretrainedModel=PretrainedModel)
    found = run_file("atlas_thunder.py", bundle)
    (model,) = [
        one()
        for one in found.values()
        if inspect.isclass(one) and issubclass(one, PretrainedModel) and one is not PretrainedModel
    ]
    model.eval()
    assert model.name == "tiny-vit" and model.emb_dim == wanted.shape[1]
    images = torch.stack([model.get_transform()(Image.fromarray(tile)) for tile in pixels])
    np.testing.assert_array_equal(model.get_linear_probing_embeddings(images).numpy(), wanted)


def test_pathorob(bundle: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32], published: Any) -> None:
    seen = []

    class ModelWrapper(ABC):
        @abstractmethod
        def get_model(self) -> Any: ...

        @abstractmethod
        def get_preprocess(self) -> Any: ...

        @abstractmethod
        def extract(self, data: Any) -> Any: ...

    def compute(model: str, model_args: dict[str, Any], datasets: Any = (), features_dir: str = "") -> None:
        wrapper = extraction.load_model(model_name=model, model_args=model_args)
        assert isinstance(wrapper, ModelWrapper)
        wrapper.get_model().eval()
        wrapper.get_model().to(torch.device("cpu"))
        loader = torch.utils.data.DataLoader([wrapper.get_preprocess()(Image.fromarray(tile)) for tile in pixels], 4)
        with torch.no_grad():
            seen.extend(wrapper.extract(batch).detach().cpu().numpy() for batch in loader)

    extraction = published("pathorob.features.extract_features", compute=compute, load_model=None)
    published("pathorob.models.utils", ModelWrapper=ModelWrapper)
    run_file("atlas_pathorob.py", bundle)
    np.testing.assert_array_equal(np.concatenate(seen), wanted)


def test_croma(bundle: Path, published: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("croma")
    pandas = pytest.importorskip("pandas")
    random = np.random.default_rng(0)
    classes, centers = random.integers(0, 2, 60), random.integers(0, 2, 60)
    features = random.normal(0, 1, (60, 8)) + np.outer(classes, np.ones(8)) + np.outer(centers, np.linspace(0, 1, 8))

    class FeatureDataManager:
        def load_metadata(self, metadata_name: str) -> Any:
            assert metadata_name == "camelyon"
            columns = {"slide_id": np.arange(60) // 3, "patch_id": range(60), "biological_class": classes}
            return pandas.DataFrame({"subset": "all", **columns, "medical_center": centers}).astype(str)

        def load_features(self, model_name: str, dataset_name: str, metadata: Any) -> NDArray[np.float32]:
            assert (model_name, dataset_name, len(metadata)) == ("atlas", "camelyon", 60)
            return features.astype(np.float32)

    published("pathorob.features.data_manager", FeatureDataManager=FeatureDataManager)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # croma's, of tiles that have too few neighbours
        run_file("atlas_croma.py", bundle)
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in printed] == ["RobustnessIndex", "MarginAwareRobustnessIndex", "CRoMa"]
    found = croma_margins(
        features.astype(np.float32), [*map(str, classes)], [*map(str, centers)], [*map(str, np.arange(60) // 3)], k=11
    )
    assert found is not None
    scores = found.scores
    assert [float(line[1]) for line in printed] == [scores.ri, scores.mari, scores.croma]


def test_plismbench(bundle: Path, pixels: NDArray[np.uint8], wanted: NDArray[np.float32], published: Any) -> None:
    seen = []

    class Extractor(ABC):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._transform: Any = lambda x: x

        feature_extractor = property(
            lambda self: self._feature_extractor, lambda self, found: setattr(self, "_feature_extractor", found)
        )
        transform = property(lambda self: self._transform, lambda self, found: setattr(self, "_transform", found))

        @abstractmethod
        def __call__(self, images: Any) -> Any: ...

    def run_extract_h5(
        feature_extractor_name: str,
        batch_size: int,
        device: int,
        export_dir: Path,
        download_dir: Path,
        overwrite: bool = False,
        workers: int = 8,
    ) -> None:
        assert export_dir.name == feature_extractor_name and isinstance(download_dir, Path)
        extractor = module.FeatureExtractorsEnum[feature_extractor_name.upper()].init(device=device)
        assert isinstance(extractor, Extractor)
        with torch.inference_mode():
            images = torch.stack([extractor.transform(tile) for tile in pixels])
            # Coordinates come before the features of each tile.
            seen.append(np.concatenate([np.zeros((len(pixels), 3)), extractor(images).squeeze()], axis=1))

    module = published("plismbench.engine.extract.extract_from_h5", run_extract_h5=run_extract_h5)
    published("plismbench.models.extractor", Extractor=Extractor)
    run_file("atlas_plism.py", bundle)
    np.testing.assert_array_equal(seen[0][:, 3:], wanted)
