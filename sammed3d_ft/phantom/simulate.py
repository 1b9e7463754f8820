"""One PET/CT case from (seed, case): patient, lesions, images and ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sammed3d_ft.errors import InputError
from sammed3d_ft.phantom import physics
from sammed3d_ft.phantom.lesions import (
    CORE,
    VOLUME_MEDIAN_ML,
    VOLUME_ML,
    PhantomLesion,
    covered_share,
    draw_count,
    draw_lesions,
    true_extent,
)
from sammed3d_ft.phantom.organs import Patient, draw_patient
from sammed3d_ft.phantom.outlines import EXTENT, isocontours, share_of_maximum
from sammed3d_ft.phantom.scanners import SCANNERS, Scanner
from sammed3d_ft.phantom.shapes import Grid, Part, paint
from sammed3d_ft.phantom.tissues import TISSUES, TRACERS, draw_suv


@dataclass(frozen=True)
class Field:
    """A scanned region of the reference man (mm): centre and size."""

    centre_mm: tuple[float, float, float]
    size_mm: tuple[float, float, float]


FIELDS: dict[str, Field] = {
    "whole-body": Field((0, -10, 312), (540, 400, 1140)),
    "head-neck": Field((0, 0, 730), (320, 320, 320)),
    "chest": Field((0, 0, 490), (420, 320, 320)),
    "abdomen": Field((0, 0, 270), (400, 320, 320)),
    "pelvis": Field((0, 0, 70), (384, 320, 320)),
}
CT_SPACING_MM = (1.95, 1.95, 3.0)  # of a CT on its own grid


@dataclass(frozen=True)
class Phantom:
    """One case. Arrays are (x, y, z), RAS+; affines (4, 4) take voxel indices to world mm.

    `pet` float32 SUV; `label` uint8 (1 lesion), `instances` uint16 (lesion ids) and `organs` uint8
    (`organ_names`) share its grid. `ct` is int16 HU with its own affine. `lesions` lists the simulated lesions;
    `settings` holds the drawn parameters (spacing, PSF, ...).
    """

    id: str
    pet: np.ndarray
    pet_affine: np.ndarray
    ct: np.ndarray
    ct_affine: np.ndarray
    label: np.ndarray
    instances: np.ndarray
    organs: np.ndarray
    organ_names: dict[int, str]
    lesions: tuple[PhantomLesion, ...]
    settings: dict[str, Any]


def _stream(seed: int, case: int, purpose: int) -> np.random.Generator:
    """A separate generator for each purpose, so that a patient is the same in every scanner and field."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, case, purpose])))


def _grid(
    field: Field,
    patient: Patient,
    scanner: Scanner,
    rng: np.random.Generator,
    shape: tuple[int, ...] | None,
    spacing_mm: tuple[float, ...] | None,
) -> Grid:
    in_plane, thickness = scanner.spacings_mm[int(rng.integers(len(scanner.spacings_mm)))]
    size = np.asarray(field.size_mm) * (1, 1, patient.scale[2])
    if spacing_mm is None:
        spacing = np.array([in_plane, in_plane, thickness]) if shape is None else size / shape
        spacing[:2] = spacing[:2].max()  # voxels are square in the slice
    else:
        spacing = np.asarray(spacing_mm, dtype=float)
    count = np.ceil(size / spacing).astype(int) if shape is None else np.asarray(shape)
    origin = np.asarray(field.centre_mm) * patient.scale - spacing * (count - 1) / 2
    return Grid(tuple(count.tolist()), tuple(spacing.tolist()), tuple(origin.tolist()))


def _check(
    tracer: str,
    field: str,
    scanner: str,
    lesion_ml: float,
    shape: tuple[int, ...] | None,
    spacing_mm: tuple[float, ...] | None,
    ct_grid: str,
) -> None:
    for name, given, known in (("tracer", tracer, TRACERS), ("field", field, FIELDS), ("scanner", scanner, SCANNERS)):
        if given not in known:
            raise InputError(f"{name} {given!r} is not known: use one of {', '.join(known)}")
    if not VOLUME_ML[0] <= lesion_ml <= VOLUME_ML[1]:
        raise InputError(f"median lesion volume {lesion_ml:g} ml: expected {VOLUME_ML[0]:g} to {VOLUME_ML[1]:g} ml")
    if ct_grid not in ("pet", "own"):
        raise InputError(f"ct_grid is 'pet' or 'own', got {ct_grid!r}")
    if shape is not None and (len(shape) != 3 or min(shape) < 8):
        raise InputError(f"shape needs three sizes of at least 8 voxels, got {shape}")
    if spacing_mm is not None and (len(spacing_mm) != 3 or not 0.5 <= min(spacing_mm) <= max(spacing_mm) <= 10):
        raise InputError(f"spacing needs three values between 0.5 and 10 mm, got {spacing_mm}")


def _paint_ct(
    grid: Grid, patient: Patient, lesions: tuple[PhantomLesion, ...], rigid_mm: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """CT in HU (int16), displaced against the PET by `rigid_mm` and by the difference in breathing."""

    def displaced(breathes: float) -> np.ndarray:
        return rigid_mm + np.array([0.0, 0.0, breathes * patient.breath_mm])

    one = np.ones(3)
    parts = [
        Part(
            part.solid.placed(one, displaced(part.breathes)),
            part.layers,
            part.organ,
            part.breathes,
            part.uptake,
            part.rough_mm,
        )
        for part in patient.parts
    ]
    ct, _ = paint(grid, parts, lambda part, tissue: TISSUES[tissue].hu, -1000.0, patient.waves)
    for lesion in lesions:
        found = covered_share(lesion, grid, displaced(lesion.breathes))
        if found is not None:
            box, share = found
            ct[box] += share * (np.float32(lesion.hu) - ct[box])
    ct += rng.uniform(10, 22) * rng.standard_normal(grid.shape, dtype=np.float32)
    return np.clip(np.rint(ct), -1024, 3071).astype(np.int16)


def make_phantom(
    seed: int,
    case: int = 0,
    tracer: str = "psma",
    field: str = "whole-body",
    shape: tuple[int, int, int] | None = None,
    spacing_mm: tuple[float, float, float] | None = None,
    lesions: int | None = None,
    ct_grid: str = "pet",
    scanner: str = "usual",
    lesion_ml: float = VOLUME_MEDIAN_ML,
    outline: str = EXTENT,
) -> Phantom:
    """Draw one case. The same arguments give the same arrays; cases are independent of each other.

    Without `shape` and `spacing_mm`, the voxels are those of the scanner (`SCANNERS`; 2 to 5.5 mm for the usual one)
    over the whole field. With one of them, the other follows from the field's size; with both, the grid is centred in
    the field. `lesions` sets the number of lesions (if there is enough space), `lesion_ml` their median volume.
    `ct_grid` "pet" samples the CT at the PET's voxels, as nnU-Net requires; "own" uses its own, finer grid. `outline`
    defines label and instances: the true extent, or an isocontour such as "41%". The patient is the same for every
    field, tracer and scanner; lesions are drawn for the field.

    Not modelled: scatter, attenuation-dependent noise, breathing blur, edge overshoot. Raises InputError for arguments
    out of range.
    """
    _check(tracer, field, scanner, lesion_ml, shape, spacing_mm, ct_grid)
    share, made_by = share_of_maximum(outline), SCANNERS[scanner]
    patient = draw_patient(_stream(seed, case, 0), tracer)
    suv = draw_suv(_stream(seed, case, 1), tracer)
    scanning = _stream(seed, case, 2)
    grid = _grid(FIELDS[field], patient, made_by, scanning, shape, spacing_mm)
    psf_mm = float(scanning.uniform(*made_by.psf_mm))
    # a filter narrower than a voxel would not smooth
    filter_mm = max(float(scanning.uniform(*made_by.filter_mm)), 1.25 * max(grid.spacing_mm))
    liver_noise = float(scanning.uniform(*made_by.liver_noise))
    rigid_mm = np.clip(scanning.normal(0, 1.5, 3), -4, 4)

    size = np.asarray(grid.spacing_mm) * grid.shape
    low = np.asarray(grid.origin_mm) - np.asarray(grid.spacing_mm) / 2
    border = np.minimum(12.0, size / 8)  # minimum distance of lesion centres from the field's faces
    drawing = _stream(seed, case, 3)
    count = draw_count(drawing, field == "whole-body")
    found = draw_lesions(
        drawing,
        patient.sites,
        count if lesions is None else lesions,
        low + border,
        low + size - border,
        tracer,
        lesion_ml,
    )

    resolution_mm = float(np.hypot(psf_mm, filter_mm))
    margin = physics.margin_vox(resolution_mm, grid.spacing_mm)
    wide = grid.padded(margin)
    names = dict(enumerate(sorted({part.organ for part in patient.parts} - {""}), start=1))
    ids = {name: n for n, name in names.items()}
    activity, organs = paint(
        wide, patient.parts, lambda part, tissue: suv[tissue] * part.uptake, 0.0, patient.waves, ids
    )
    noise = _stream(seed, case, 4)
    activity *= 1 + np.float32(0.07) * physics.smooth_field(wide.shape, wide.spacing_mm, 14.0, noise)
    for lesion in found:
        for scale, value in ((1.0, lesion.suv), (CORE, lesion.core_suv)):
            shares = covered_share(lesion, wide, np.zeros(3), scale) if value is not None else None
            if shares is not None:
                activity[shares[0]] += shares[1] * (np.float32(value) - activity[shares[0]])
    counts = physics.counts_per_suv(liver_noise, suv["liver"], grid.spacing_mm, filter_mm)
    pet = physics.blur(activity, grid.spacing_mm, psf_mm)
    pet = physics.blur(physics.add_noise(pet, counts, noise), grid.spacing_mm, filter_mm)
    inner = tuple(slice(m, m + n) for m, n in zip(margin, grid.shape, strict=True))
    pet = np.ascontiguousarray(pet[inner])

    instances = true_extent(found, grid)
    if share is not None:
        instances = isocontours(pet, instances, grid.spacing_mm, share, resolution_mm)
    if ct_grid == "own":
        ct_shape = np.ceil(size / CT_SPACING_MM).astype(int)
        origin = low + size / 2 - np.asarray(CT_SPACING_MM) * (ct_shape - 1) / 2
        ct_on = Grid(tuple(ct_shape.tolist()), CT_SPACING_MM, tuple(origin.tolist()))
    else:
        ct_on = grid
    return Phantom(
        id=f"phantom_{tracer}_{seed}_{case:04d}",
        pet=pet,
        pet_affine=grid.affine,
        ct=_paint_ct(ct_on, patient, found, rigid_mm, _stream(seed, case, 5)),
        ct_affine=ct_on.affine,
        label=(instances > 0).astype(np.uint8),
        instances=instances,
        organs=np.ascontiguousarray(organs[inner]),
        organ_names=names,
        lesions=found,
        settings={
            "seed": seed,
            "case": case,
            "tracer": tracer,
            "field": field,
            "scanner": scanner,
            "lesion_ml": lesion_ml,
            "outline": outline,
            "spacing_mm": list(grid.spacing_mm),
            "psf_mm": psf_mm,
            "filter_mm": filter_mm,
            "liver_noise": liver_noise,
            "misalignment_mm": rigid_mm.tolist(),
            "breath_mm": patient.breath_mm,
        },
    )
