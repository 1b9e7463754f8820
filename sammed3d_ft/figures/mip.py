"""Coronal and sagittal maximum-intensity projections of a PET, with mask outlines and labelled markers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from sammed3d_ft.errors import InputError
from sammed3d_ft.files import whole_file

SUV_WINDOW = (0.0, 10.0)
"""SUVs shown as white and as black."""
_TRUTH_COLOUR, _PREDICTION_COLOUR, _PLACE_COLOUR = "#0072b2", "#d55e00", "#009e73"  # safe for colour-blind readers
_HEIGHT_INCHES = 8.0
_WIDEST_INCHES = 20.0  # a slab of few slices would be wider; it is drawn smaller
_OUTLINE_FINENESS = 4  # contour points per voxel; the cost of an outline grows with the square


def draw_mip(
    pet: np.ndarray | None,
    spacing_mm: Sequence[float] | np.ndarray,
    out: Path,
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    title: str = "",
    places_vox: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Write the figure of `mip_figure` to the PNG ``out`` and return its path."""
    figure = mip_figure(pet, spacing_mm, truth, prediction, title, places_vox)
    with whole_file(out) as temporary:
        figure.savefig(temporary, dpi=150, format="png")
    return out


def mip_figure(
    pet: np.ndarray | None,
    spacing_mm: Sequence[float] | np.ndarray,
    truth: np.ndarray | None = None,
    prediction: np.ndarray | None = None,
    title: str = "",
    places_vox: Mapping[str, Sequence[float]] | None = None,
) -> Figure:
    """The projections in the usual display of nuclear medicine.

    High uptake is dark, and distances are to scale. The patient faces the viewer in the coronal view (right side on the
    left), and looks to the left in the sagittal view.

    Args:
        pet: (x, y, z) PET in SUV, axes towards right, anterior, superior; None draws the masks alone on white.
        spacing_mm: (3,) voxel size in mm.
        truth: (x, y, z) ground-truth mask, outlined in blue.
        prediction: (x, y, z) predicted mask, dashed orange outline.
        title: title of the figure, such as the case ID.
        places_vox: voxels (x, y, z) to mark in green, keyed by their label, such as a lesion's number.

    Raises:
        InputError: shapes that differ, or nothing to draw.
    """
    arrays = (("PET", pet), ("ground truth", truth), ("prediction", prediction))
    given = {name: array for name, array in arrays if array is not None}
    if not given:
        raise InputError("a projection needs a PET or a mask")
    (first, array), *others = given.items()
    for name, mask in others:
        if mask.shape != array.shape:
            raise InputError(f"{name} has shape {mask.shape}, the {first} {array.shape}: resample to one grid")
    x_mm, y_mm, z_mm = np.array(array.shape) * np.asarray(spacing_mm, dtype=np.float64)

    # Leave room beside the two projections for the colour bar, and above and below for title and legend.
    width = min(max((x_mm + y_mm) / z_mm * (_HEIGHT_INCHES - 1.5) + 1.5, 5.0), _WIDEST_INCHES)
    figure = Figure(figsize=(width, _HEIGHT_INCHES), layout="constrained")
    coronal, sagittal = figure.subplots(1, 2, width_ratios=(x_mm, y_mm), sharey=True)
    _draw(coronal, pet, truth, prediction, 1, (x_mm, z_mm))
    _draw(sagittal, pet, truth, prediction, 0, (y_mm, z_mm))
    coronal.set(title="coronal", xlabel="mm", ylabel="mm")
    sagittal.set(title="sagittal", xlabel="mm")
    for axes, sides in ((coronal, "RL"), (sagittal, "AP")):
        for side, at in zip(sides, (0.03, 0.97), strict=True):
            axes.text(at, 0.97, side, transform=axes.transAxes, ha="center", va="top", fontweight="bold")
    for name, place in (places_vox or {}).items():
        x, y, z = (np.asarray(place, np.float64) + 0.5) * np.asarray(spacing_mm, dtype=np.float64)
        for axes, right in ((coronal, x_mm - x), (sagittal, y_mm - y)):
            axes.plot(right, z, "+", color=_PLACE_COLOUR, markersize=7)
            axes.annotate(
                name,
                (right, z),
                (4, 3),
                textcoords="offset points",
                color=_PLACE_COLOUR,
                weight="bold",
                fontsize=9,
                path_effects=[withStroke(linewidth=2.5, foreground="white")],  # legible on dark uptake
            )
    if pet is not None:
        bar = figure.colorbar(coronal.images[0], ax=[coronal, sagittal], shrink=0.6, extend="max")
        bar.set_label(f"SUV, window {SUV_WINDOW[0]:g} to {SUV_WINDOW[1]:g}")
    shown = []
    if truth is not None:
        shown.append(Line2D([], [], color=_TRUTH_COLOUR, linestyle="solid", linewidth=1.8, label="ground truth"))
    if prediction is not None:
        shown.append(Line2D([], [], color=_PREDICTION_COLOUR, linestyle="dashed", linewidth=1.0, label="prediction"))
    if shown:
        figure.legend(handles=shown, loc="outside lower center", ncols=2, frameon=False)
    what = "maximum-intensity projection" if pet is not None else "projection of the masks"
    figure.suptitle(", ".join(filter(None, [title, what])), parse_math=False)
    return figure


def _draw(
    axes: Axes,
    pet: np.ndarray | None,
    truth: np.ndarray | None,
    prediction: np.ndarray | None,
    along: int,
    size_mm: tuple[float, float],
) -> None:
    """One projection along x (0) or y (1). High indices (right, anterior) are shown on the left."""
    extent = (0.0, size_mm[0], 0.0, size_mm[1])
    axes.set_aspect("equal")
    if pet is not None:
        axes.imshow(
            _as_seen(pet.max(axis=along)),
            cmap="gray_r",
            vmin=SUV_WINDOW[0],
            vmax=SUV_WINDOW[1],
            origin="lower",
            extent=extent,
            interpolation="nearest",
        )
    # The ground truth's line is wider, so that it stays visible where the prediction's line covers it.
    outlines = ((truth, _TRUTH_COLOUR, "solid", 1.8), (prediction, _PREDICTION_COLOUR, "dashed", 1.0))
    for mask, colour, style, width in outlines:
        if mask is not None and mask.any():
            shadow = _as_seen(np.asarray((mask > 0).any(axis=along)))
            # Upsampled, so that the outline follows the voxels' edges; padding closes it at the border.
            fine = shadow.repeat(_OUTLINE_FINENESS, axis=0).repeat(_OUTLINE_FINENESS, axis=1)
            fine = np.pad(fine, 1).astype(np.float32)
            rows, columns = fine.shape
            right = (np.arange(columns) - 0.5) * size_mm[0] / (columns - 2)
            up = (np.arange(rows) - 0.5) * size_mm[1] / (rows - 2)
            axes.contour(right, up, fine, levels=[0.5], colors=colour, linestyles=style, linewidths=width)
    axes.set(xlim=extent[:2], ylim=extent[2:])


def _as_seen(projection: np.ndarray) -> np.ndarray:
    """(horizontal, z) to image rows from the feet up, with high horizontal indices on the left."""
    return projection[::-1].T
