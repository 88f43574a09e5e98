"""Classifiers on frozen embeddings: what a lab trains on top of an encoder."""

from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from atlas_edge.bench.accuracy.agreement import unit_rows
from atlas_edge.cli import require_module
from atlas_edge.errors import InputError

ProbeMethod = Literal["linear", "knn"]

# Both are fixed, so that two reports are comparable; a probe tuned per encoder would hide a drop.
LINEAR_C = 0.01
NEIGHBOURS = 20

_LINEAR_ITERATIONS = 1_000
_KNN_TEMPERATURE = 0.07


class Probe(Protocol):
    """A fitted classifier; `classes` are its labels in the order of its probabilities."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels in the order of the probabilities."""
        ...

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """`(N, D)` embeddings -> `(N, classes)` probabilities that sum to 1."""
        ...


def fit_probe(method: ProbeMethod, features: NDArray[np.float32], labels: NDArray[np.str_]) -> Probe:
    """Fit a probe, deterministically.

    `linear`: features standardised by their own mean and standard deviation, multinomial logistic regression with
    class weights, L2, C = 0.01, lbfgs. `knn`: the 20 nearest by cosine, votes weighted by exp(cosine / 0.07) as in
    DINO (Caron et al., ICCV 2021) and by the inverse class frequency.

    Args:
        method: Which.
        features: `(N, D)` embeddings.
        labels: `(N,)` labels.

    Raises:
        InputError: Fewer than two classes, or lengths that differ.
        RuntimeMissing: scikit-learn is not installed.
    """
    classes, counts = np.unique(labels, return_counts=True)
    if len(features) != len(labels):
        raise InputError(f"{len(features)} embeddings and {len(labels)} labels, expected one label a tile")
    if len(classes) < 2:
        raise InputError(
            f"the tiles to fit a probe on have {len(classes)} class, expected at least two",
            hint="fit it on tiles with labels (class folders, or a label column): --fit, or the tiles that calibrate",
        )
    names = tuple(str(name) for name in classes)
    if method == "knn":
        codes = np.searchsorted(classes, labels)
        return _KnnProbe(classes=names, bank=unit_rows(features), codes=codes, weights=len(labels) / counts)
    require_module("sklearn", extra="report")
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64)
    scale[scale == 0] = 1.0
    model = LogisticRegression(C=LINEAR_C, class_weight="balanced", max_iter=_LINEAR_ITERATIONS)
    model.fit((features - mean) / scale, labels)
    return LinearProbe(classes=names, mean=mean, scale=scale, model=model)


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearWeights:
    """A linear probe as plain numbers: `logits` are largest at the class that it decides for.

    Attributes:
        mean, scale: `(D,)` by which embeddings are standardised.
        weights: `(classes, D)`.
        bias: `(classes,)`.
    """

    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]

    def logits(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """`(N, D)` embeddings -> `(N, classes)`."""
        found: NDArray[np.float64] = (features - self.mean) / self.scale @ self.weights.T + self.bias
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LinearProbe:
    """Logistic regression on standardised embeddings; see `fit_probe`."""

    classes: tuple[str, ...]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    model: Any

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        """See `Probe`."""
        result: NDArray[np.float64] = self.model.predict_proba((features - self.mean) / self.scale)
        return result

    def weights(self) -> LinearWeights:
        """What it has learnt. Of two classes scikit-learn keeps the second one's weights alone."""
        rows, bias = np.asarray(self.model.coef_), np.asarray(self.model.intercept_)
        if len(self.classes) == 2:
            rows, bias = np.concatenate([0 * rows, rows]), np.concatenate([0 * bias, bias])
        return LinearWeights(mean=self.mean, scale=self.scale, weights=rows, bias=bias)


@dataclass(frozen=True, slots=True, kw_only=True)
class _KnnProbe:
    classes: tuple[str, ...]
    bank: NDArray[np.float64]
    codes: NDArray[np.int64]
    weights: NDArray[np.float64]

    def probabilities(self, features: NDArray[np.float32]) -> NDArray[np.float64]:
        queries = unit_rows(features)
        neighbours = min(NEIGHBOURS, len(self.bank))
        votes = np.zeros((len(queries), len(self.classes)))
        for start in range(0, len(queries), 1024):
            similarity = queries[start : start + 1024] @ self.bank.T
            nearest = np.argpartition(-similarity, neighbours - 1, axis=1)[:, :neighbours]
            cosine = np.take_along_axis(similarity, nearest, axis=1)
            weight = np.exp((cosine - cosine.max(axis=1, keepdims=True)) / _KNN_TEMPERATURE)
            codes = self.codes[nearest]
            for code in range(len(self.classes)):
                share = np.where(codes == code, weight, 0.0).sum(axis=1) * self.weights[code]
                votes[start : start + 1024, code] = share
        result: NDArray[np.float64] = votes / votes.sum(axis=1, keepdims=True)
        return result
