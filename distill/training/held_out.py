"""What a student in training is worth on tiles that it does not learn from."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from atlas_edge.bench.accuracy.probe import ProbeMethod, fit_probe
from atlas_edge.bench.accuracy.robustness import robustness_counts
from atlas_edge.distill.training.student import Architecture, Distiller
from atlas_edge.errors import InputError

_BATCH = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Tiles to look at.

    Attributes:
        tiles: `(N, H, W, 3)` uint8.
        features: `(N, D)` the first teacher's CLS features of them.
        labels: `(N,)` classes, or None where one is unknown.
        centers: `(N,)` medical centres, or None where one is unknown.
        groups: `(N,)` slides, or None where one is unknown.
    """

    tiles: NDArray[np.uint8]
    features: NDArray[np.float32]
    labels: NDArray[np.str_] | None
    centers: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None


@torch.inference_mode()
def held_out_figures(model: Distiller, held_out: HeldOut, architecture: Architecture) -> dict[str, float | None]:
    """Figures of a student, as columns of `metrics.csv`.

    `held_out_cosine`: mean cosine of mapped CLS tokens with the teacher's normalised ones. `held_out_knn` and
    `held_out_probe`: balanced accuracy on the odd tiles of a probe fitted on the even ones, student's over teacher's;
    None without labels of two classes in both halves. `held_out_robustness`: PathoROB's robustness index, 0-1; None
    without two classes, two centres and slides.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found = [
        model.embed(model(normalised(held_out.tiles[start : start + _BATCH], architecture).to(device))).float()
        for start in range(0, len(held_out.tiles), _BATCH)
    ]
    tokens = torch.cat(found)
    head = model.heads[0]
    target = head.cls_target(torch.from_numpy(held_out.features))
    cosine = float(F.cosine_similarity(head.cls(tokens), target, dim=-1).mean())
    model.train(was_training)
    features = tokens.cpu().numpy()
    return {
        "held_out_cosine": cosine,
        "held_out_knn": _kept("knn", features, held_out),
        "held_out_probe": _kept("linear", features, held_out),
        "held_out_robustness": _robustness(features, held_out),
    }


def normalised(pixels: NDArray[np.uint8], architecture: Architecture) -> Tensor:
    """`(B, H, W, 3)` uint8 -> `(B, 3, H, W)` float32 as the student takes it."""
    mean, std = 255.0 * torch.tensor(architecture.mean), 255.0 * torch.tensor(architecture.std)
    return ((torch.from_numpy(pixels).float() - mean) / std).permute(0, 3, 1, 2)


def _kept(method: ProbeMethod, features: NDArray[np.float32], held_out: HeldOut) -> float | None:
    labels = held_out.labels
    if labels is None or any(len(np.unique(labels[half::2])) < 2 for half in (0, 1)):
        return None
    scores = [_score(method, found, labels) for found in (features, held_out.features)]
    return scores[0] / scores[1] if scores[1] else None


def _robustness(features: NDArray[np.float32], held_out: HeldOut) -> float | None:
    labels, centers, groups = held_out.labels, held_out.centers, held_out.groups
    if labels is None or centers is None or groups is None:
        return None
    try:
        return robustness_counts(features, labels.tolist(), centers, groups).index.index
    except InputError:  # tiles of one class or centre, or without such neighbours, have no index
        return None


def _score(method: ProbeMethod, features: NDArray[np.float32], labels: NDArray[np.str_]) -> float:
    probe = fit_probe(method, features[::2], labels[::2])
    guessed = np.array(probe.classes)[probe.probabilities(features[1::2]).argmax(axis=1)]
    truth = labels[1::2]
    return float(np.mean([(guessed[truth == name] == name).mean() for name in np.unique(truth)]))
