"""2D SAM (Segment Anything, Kirillov et al. 2023) on a PET, slice by slice: clicks without a 3D model."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prompts.depth import deepest_point
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.crops import Region
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.model.segment_anything_parts import TwoWayTransformer, modeling

SUV_WINDOW = (0.0, 10.0)
"""SUV range shown to SAM as black to white."""

PROPAGATION_IOU = 0.5
"""A slice's mask belongs to the lesion while its IoU with the neighbouring slice's mask is at least this."""

_KEPT_SLICES = 128  # embeddings of 4 MB each


class PointPrompted2D(Protocol):
    """What `SliceSAM` requires of a 2D model, such as `MetaSAM`."""

    def embed(self, image: np.ndarray) -> Any: ...  # (rows, columns, 3) uint8
    def best_mask(self, embedding: Any, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
        """(rows, columns) bool and the model's IoU estimate, for points (N, 2) as (column, row)."""
        ...


@dataclass(frozen=True, eq=False)
class SliceLesion:
    """A lesion after its last click."""

    region: Region
    mask: np.ndarray
    """``region.shape`` bool."""
    predicted_iou: float
    """Mean of the 2D model's IoU estimates over the lesion's slices; 0 for an empty mask."""


class SliceSAM:
    """A 2D promptable model applied to the axial slices of the canonical PET.

    Every slice with a foreground click is segmented from its own clicks (of several masks, the one that the model rates
    best). From there the lesion is propagated up and down: the next slice is prompted at the deepest point of the
    previous slice's mask, in addition to its own clicks, and belongs to the lesion while the IoU of the two masks is at
    least `PROPAGATION_IOU`. Propagation stops at slices that have foreground clicks themselves. Each new click repeats
    all this with cached embeddings.

    Args:
        model: segments one slice.
    """

    modalities = ("PT",)

    def __init__(self, model: PointPrompted2D) -> None:
        self.model = model
        self._pet: Volume | None = None
        self._clicks: dict[int, list[tuple[tuple[int, int, int], int]]] = {}
        self._embeddings: OrderedDict[int, Any] = OrderedDict()

    def set_image(self, images: Mapping[str, Volume]) -> None:
        """Set the PET, in SUV, and forget all lesions."""
        self._pet = images["PT"]
        self._clicks, self._embeddings = {}, OrderedDict()

    def add_click(self, position_vox: Any, label: int = 1, lesion: int = 1) -> SliceLesion:
        """Add a click, (3,) in canonical voxel coordinates, to a lesion and return the lesion.

        Raises:
            InputError: no image, a click outside the image, or a background click as a lesion's first.
        """
        if self._pet is None:
            raise InputError("no image yet: call set_image before clicking")
        voxel: np.ndarray = np.rint(np.asarray(position_vox, np.float64)).astype(int)
        if voxel.shape != (3,) or (voxel < 0).any() or (voxel >= self._pet.array.shape).any():
            raise InputError(f"lesion {lesion}: the click {position_vox} is outside the image {self._pet.array.shape}")
        clicks = self._clicks.setdefault(lesion, [])
        if not clicks and label != 1:
            raise InputError(f"lesion {lesion}: the first click is background; start with a foreground click")
        x, y, z = voxel.tolist()
        clicks.append(((x, y, z), label))
        return self._segment(clicks)

    def remove(self, lesion: int) -> None:
        """Forget a lesion with all its clicks."""
        del self._clicks[lesion]

    def _segment(self, clicks: list[tuple[tuple[int, int, int], int]]) -> SliceLesion:
        assert self._pet is not None
        x, y, z = self._pet.array.shape
        mask = np.zeros((x, y, z), bool)
        estimates = []
        starts = sorted({z for (_, _, z), label in clicks if label == 1})
        for start in starts:
            first, estimate = self._slice(start, clicks, None)
            mask[:, :, start] |= first
            estimates.append(estimate)
            for step in (-1, 1):
                last, at = first, start + step
                while last.any() and 0 <= at < z and at not in starts:
                    deepest = deepest_point(last[:, :, None], self._pet.spacing_mm)
                    assert deepest is not None, "the slice's mask is not empty"
                    found, estimate = self._slice(at, clicks, (int(deepest[0][0]), int(deepest[0][1])))
                    if _iou(found, last) < PROPAGATION_IOU:
                        break
                    mask[:, :, at] |= found
                    estimates.append(estimate)
                    last, at = found, at + step
        rated = float(np.mean(estimates)) if mask.any() else 0.0
        return SliceLesion(Region((0, 0, 0), (x, y, z)), mask, rated)

    def _slice(
        self, z: int, clicks: list[tuple[tuple[int, int, int], int]], extra_xy: tuple[int, int] | None
    ) -> tuple[np.ndarray, float]:
        """(X, Y) bool of one slice, from its own clicks and the point propagated from its neighbour."""
        given = [((x, y), label) for (x, y, at), label in clicks if at == z]
        if extra_xy is not None:
            given.append((extra_xy, 1))
        # Rows of the image are x, columns y; SAM takes points as (column, row).
        points = np.array([(y, x) for (x, y), _ in given], np.float32)
        return self.model.best_mask(self._embedding(z), points, np.array([label for _, label in given]))

    def _embedding(self, z: int) -> Any:
        assert self._pet is not None
        if z not in self._embeddings:
            low, high = SUV_WINDOW
            grey = np.clip((self._pet.array[:, :, z] - low) / (high - low), 0, 1)
            picture = np.rint(grey * 255).astype(np.uint8)
            self._embeddings[z] = self.model.embed(np.repeat(picture[:, :, None], 3, axis=2))
        self._embeddings.move_to_end(z)
        while len(self._embeddings) > _KEPT_SLICES:
            self._embeddings.popitem(last=False)
        return self._embeddings[z]


class MetaSAM:
    """Meta's SAM ViT-B: the networks of the segment-anything package, without its predictor, which needs torchvision.

    Args:
        path: ``sam_vit_b_01ec64.pth`` as published by Meta, or ``random`` (seeded) for trials.
        device: None selects CUDA if available, else the CPU.

    Raises:
        InputError: a missing file, one that cannot be read without running code from it, or other weights.
    """

    def __init__(self, path: str | Path, device: str | torch.device | None = None) -> None:
        if str(path) != "random" and not Path(path).is_file():  # checked first, because building takes longer
            raise InputError(f"no SAM weights at {path}; expected Meta's sam_vit_b_01ec64.pth, or random")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = _vit_b()
        if str(path) != "random":
            _load(model, Path(path))
        self._model = model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()

    @torch.inference_mode()
    def embed(self, image: np.ndarray) -> tuple[Tensor, tuple[int, int], tuple[int, int]]:
        """Encode an image, (rows, columns, 3) uint8; returns embedding, resized size and original size.

        The longer side is resized to 1024 pixels, as in SAM's training.
        """
        rows, columns = image.shape[:2]
        scale = self._model.image_encoder.img_size / max(rows, columns)
        resized = int(rows * scale + 0.5), int(columns * scale + 0.5)
        picture = torch.from_numpy(image).permute(2, 0, 1)[None].float()
        picture = F.interpolate(picture, resized, mode="bilinear", align_corners=False, antialias=True)
        embedding = self._model.image_encoder(self._model.preprocess(picture.round().to(self._model.device)))
        return embedding, resized, (rows, columns)

    @torch.inference_mode()
    def best_mask(self, embedding: Any, points: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, float]:
        """The best-rated of three masks for a single point, which is ambiguous; for several points the single mask."""
        features, resized, original = embedding
        model = self._model
        scale = torch.tensor([resized[1] / original[1], resized[0] / original[0]])
        coords = (torch.from_numpy(np.asarray(points, np.float32)) * scale)[None].to(model.device)
        signs = torch.from_numpy(np.asarray(labels)).to(model.device, torch.int)[None]
        sparse, dense = model.prompt_encoder(points=(coords, signs), boxes=None, masks=None)
        low, ratings = model.mask_decoder(
            image_embeddings=features,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=len(points) == 1,
        )
        best = int(ratings[0].argmax())
        logits = model.postprocess_masks(low, resized, original)
        return (logits[0, best] > model.mask_threshold).cpu().numpy(), float(ratings[0, best])


def _vit_b() -> Any:
    """SAM with the ViT-B encoder (Kirillov et al. 2023), untrained."""
    return modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=1024,
            patch_size=16,
            embed_dim=768,
            depth=12,
            num_heads=12,
            mlp_ratio=4,
            out_chans=256,
            qkv_bias=True,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
        ),
        prompt_encoder=modeling.PromptEncoder(
            embed_dim=256, image_embedding_size=(64, 64), input_image_size=(1024, 1024), mask_in_chans=16
        ),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=256,
            transformer=TwoWayTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048),
            num_multimask_outputs=3,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )


def _load(model: nn.Module, path: Path) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken pickle raises
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not readable as weights ({reason}); expected sam_vit_b_01ec64.pth") from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{path}: not Meta's SAM ViT-B; expected sam_vit_b_01ec64.pth ({reason})") from error


def _iou(a: np.ndarray, b: np.ndarray) -> float:
    union = int((a | b).sum())
    return int((a & b).sum()) / union if union else 0.0
