"""Shared by tests of the predictor: stand-ins for the network, and simple scans."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sammed3d_ft.images.grids import from_array
from sammed3d_ft.prompted.prediction import LesionPrediction
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.preprocessing import Preprocessing
from tests.support.storage_orders import affine_of


class Threshold:
    """Stands in for the network: logits are the z-scored crop less a level, at full crop resolution."""

    device = torch.device("cpu")

    def __init__(self, size=48, level=0.0, in_channels=1):
        self.image_size, self.in_channels, self.level = size, in_channels, level
        self.variant = SimpleNamespace(logits_size=size)
        self.encoded: list[torch.Tensor] = []
        self.decoded: list[tuple] = []

    def image_encoder(self, image):
        self.encoded.append(image)
        return image

    def decode(self, embedding, coords_vox, labels, previous=None):
        self.decoded.append((coords_vox.clone(), labels.clone(), previous))
        rounds = len(self.decoded)
        return embedding[:, :1] - self.level, torch.full((1, 1), 0.5 + 0.01 * rounds)


def scan_of_blobs(affine, shape, centres_mm, radius_mm):
    """Smooth blobs: SUV 10 within, falling linearly to 2 over one radius outside; evaluated in world mm."""
    index = np.stack(np.indices(shape), -1)
    world = index @ affine[:3, :3].T + affine[:3, 3]
    distance = np.min([np.linalg.norm(world - c, axis=-1) for c in centres_mm], axis=0)
    return (10 - 8 * np.clip(distance / radius_mm - 0.5, 0, 1)).astype(np.float32)


def predictor(model=None, spacing_mm=2.0, scan=None, **options):
    found = Predictor(model or Threshold(), Preprocessing(("PT",), spacing_mm), **options)
    if scan is not None:
        found.set_image({"PT": scan})
    return found


def plain_scan(shape=(40, 44, 36), spacing=(2.0, 2.0, 2.0)):
    affine = affine_of(Rotation.identity(), spacing, (-30, -40, 10))
    centre = affine[:3, :3] @ (np.array(shape) // 2) + affine[:3, 3]
    return from_array(scan_of_blobs(affine, shape, [centre], 12.0), affine)


class Remembering(Threshold):
    """Logits depend on the crop, on every click and its sign, and on the logits of the round before."""

    def decode(self, embedding, coords_vox, labels, previous=None):
        self.decoded.append((coords_vox.clone(), labels.clone(), previous))
        index, pulls = torch.arange(self.image_size), torch.zeros(())
        for position, label in zip(coords_vox[0], labels[0], strict=True):
            x, y, z = (torch.exp(-((index - p) ** 2) / 50) for p in position)
            pulls = pulls + (2 * label - 1) * x[:, None, None] * y[:, None] * z
        before = 0 if previous is None else 0.3 * previous.clamp(-5, 5)
        return embedding[:, :1] - self.level + 2 * pulls + before, pulls.mean().reshape(1, 1)


def same(one: LesionPrediction, other: LesionPrediction) -> None:
    assert one.region == other.region
    np.testing.assert_array_equal(one.logits, other.logits)
    assert one.clicks == other.clicks
    assert one.predicted_iou == other.predicted_iou or (np.isnan(one.predicted_iou) and np.isnan(other.predicted_iou))
