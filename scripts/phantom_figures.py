"""Draw the phantom figures of the docs: projections of both tracers, and slices of CT, PET and ground truth.

python scripts/phantom_figures.py [--out docs/figures] [--seed 7] [--case 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sammed3d_ft.figures import draw_mip
from sammed3d_ft.images.grids import from_array
from sammed3d_ft.images.resampling import resample_like
from sammed3d_ft.phantom import Phantom, make_phantom


def draw_slices(phantom: Phantom, out: Path) -> None:
    """Coronal and axial slices through the largest lesion: CT, PET, PET with the ground truth outlined."""
    pet = from_array(phantom.pet, phantom.pet_affine)
    ct = resample_like(from_array(phantom.ct, phantom.ct_affine), pet).array
    sizes = np.bincount(phantom.instances.ravel())
    centre = np.argwhere(phantom.instances == sizes[1:].argmax() + 1).mean(0).round().astype(int)
    sx, sy, sz = pet.spacing_mm
    figure = Figure(figsize=(11, 9), layout="constrained")
    FigureCanvasAgg(figure)
    for row, (axis, aspect) in zip(figure.subplots(2, 3), ((1, sz / sx), (2, sy / sx)), strict=True):
        planes = [np.take(volume, centre[axis], axis)[::-1].T for volume in (ct, phantom.pet, phantom.label)]
        for axes, title in zip(row, ("CT, HU -200 to 300", "PET, SUV 0 to 10", "ground truth"), strict=True):
            if title.startswith("CT"):
                axes.imshow(planes[0], cmap="gray", vmin=-200, vmax=300, origin="lower", aspect=aspect)
            else:
                axes.imshow(planes[1], cmap="gray_r", vmin=0, vmax=10, origin="lower", aspect=aspect)
            if title == "ground truth" and planes[2].any():
                axes.contour(planes[2], [0.5], colors="#d55e00", linewidths=0.8)
            axes.set(title=f"{'coronal' if axis == 1 else 'axial'}: {title}", xticks=[], yticks=[])
    figure.suptitle(f"{phantom.id}: slices through its largest lesion")
    figure.savefig(out, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("docs/figures"))
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--case", type=int, default=0)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    for tracer in ("psma", "fdg"):
        phantom = make_phantom(given.seed, given.case, tracer, "whole-body")
        spacing = np.linalg.norm(phantom.pet_affine[:3, :3], axis=0)
        draw_mip(phantom.pet, spacing, given.out / f"phantom_{tracer}_mip.png", phantom.label > 0, title=phantom.id)
        draw_slices(phantom, given.out / f"phantom_{tracer}_slices.png")
        print(f"{phantom.id}: {len(phantom.lesions)} lesions, {phantom.pet.shape} voxels of {np.round(spacing, 2)} mm")


if __name__ == "__main__":
    main()
