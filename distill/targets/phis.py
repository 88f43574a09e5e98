"""PHI-S: teacher targets rotated and scaled so that every dimension has the same variance and the mean of them is 1.

y = (1 / sqrt(mean λ)) · H · Uᵀ · (x − μ), with U and λ from the covariance of the teacher's features and H a normalised
Hadamard matrix (Ranzinger et al., PHI-S, arXiv:2410.01680, section 3.4). One scale for all dimensions keeps angles and
relative errors, so several teachers weigh alike and no direction of one teacher outweighs another.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

# Prime q ≡ 3 (mod 4): order q + 1 (Paley I); q ≡ 1 (mod 4): order 2(q + 1) (Paley II).
_PRIMES = (3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83)


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureStatistics:
    """Running first and second moments of a teacher's features.

    Attributes:
        count: Vectors seen.
        mean: `(D,)`.
        covariance: `(D, D)`.
    """

    count: int
    mean: Matrix
    covariance: Matrix

    @classmethod
    def of(cls, chunks: Iterable[NDArray[np.floating]]) -> "FeatureStatistics":
        """Moments of `(N, D)` chunks, streamed.

        Raises:
            ValueError: No chunk.
        """
        count, total, product = 0, None, None
        for chunk in chunks:
            # float32 products of a chunk, summed in float64: exact enough, and several times faster.
            part = np.asarray(chunk, dtype=np.float32)
            moment = (part.T @ part).astype(np.float64)
            total = part.sum(0, dtype=np.float64) if total is None else total + part.sum(0, dtype=np.float64)
            product = moment if product is None else product + moment
            count += len(part)
        if total is None or product is None:
            raise ValueError("no features: nothing to take statistics of")
        mean = total / count
        return cls(count=count, mean=mean, covariance=product / count - np.outer(mean, mean))


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetTransform:
    """An affine map of teacher features, y = matrix · (x − mean).

    Attributes:
        matrix: `(D, D)`.
        mean: `(D,)`.
    """

    matrix: Matrix
    mean: Matrix

    def __call__(self, features: NDArray[np.floating]) -> NDArray[np.float32]:
        """Transform `(…, D)` features."""
        return ((features - self.mean) @ self.matrix.T).astype(np.float32)


def phi_s(statistics: FeatureStatistics) -> TargetTransform:
    """The PHI-S transform of a teacher's features."""
    eigenvalues, eigenvectors = np.linalg.eigh(statistics.covariance)
    scale = 1.0 / np.sqrt(max(float(eigenvalues.mean()), 1e-12))
    return TargetTransform(matrix=scale * hadamard(len(eigenvalues)) @ eigenvectors.T, mean=statistics.mean)


def identity(statistics: FeatureStatistics) -> TargetTransform:
    """Raw targets, for comparison."""
    dim = len(statistics.mean)
    return TargetTransform(matrix=np.eye(dim), mean=np.zeros(dim))


def hadamard(order: int) -> Matrix:
    """Orthogonal matrix whose entries are all ±1/sqrt(order).

    Built as a Kronecker product of Sylvester's 2 x 2 matrix with Paley's, which covers the width of every
    common ViT (384 = 12·32, 768, 1152 = 36·32, 1280 = 20·64, 1536). For an order that they do not reach, the discrete
    Hartley matrix stands in: orthogonal too, but with dimensions of only nearly equal variance.
    """
    core, doublings = order, 0
    while True:
        paley = _paley(core)
        if paley is not None:
            break
        if core % 2:
            angle = 2.0 * np.pi * np.outer(np.arange(order), np.arange(order)) / order
            return np.asarray((np.cos(angle) + np.sin(angle)) / np.sqrt(order))
        core, doublings = core // 2, doublings + 1
    matrix = paley
    for _ in range(doublings):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    result: Matrix = matrix / np.sqrt(order)
    return result


def _paley(order: int) -> Matrix | None:
    if order in (1, 2):
        return np.array([[1.0]]) if order == 1 else np.array([[1.0, 1.0], [1.0, -1.0]])
    if order - 1 in _PRIMES and (order - 1) % 4 == 3:
        return _conference(order - 1, skew=True) + np.eye(order)
    if order % 2 == 0 and order // 2 - 1 in _PRIMES and (order // 2 - 1) % 4 == 1:
        conference = _conference(order // 2 - 1, skew=False)
        plus, minus = np.array([[1.0, 1.0], [1.0, -1.0]]), np.array([[1.0, -1.0], [-1.0, -1.0]])
        return np.kron(conference, plus) + np.kron(np.eye(order // 2), minus)
    return None


def _conference(prime: int, *, skew: bool) -> Matrix:
    """Paley's conference matrix of order prime + 1, from the quadratic residues."""
    residues = {pow(x, 2, prime) for x in range(1, prime)}
    character = np.array([0.0] + [1.0 if x in residues else -1.0 for x in range(1, prime)])
    difference = (np.arange(prime)[:, None] - np.arange(prime)[None, :]) % prime
    matrix = np.zeros((prime + 1, prime + 1))
    matrix[1:, 1:] = character[difference]
    matrix[0, 1:] = 1.0
    matrix[1:, 0] = -1.0 if skew else 1.0
    return matrix
