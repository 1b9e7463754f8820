"""The phantom: determinism, ground truth, uptake, physics, lesion statistics and the files of a cohort."""

from __future__ import annotations

import csv
import hashlib
from pathlib import Path

import cc3d
import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage
from scipy.special import erf

from sammed3d_ft.dataset.builders import from_nnunet
from sammed3d_ft.dataset.check import check_manifest
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.phantom import lesions as lesion_rules
from sammed3d_ft.phantom import physics
from sammed3d_ft.phantom.cohort import write_cohort
from sammed3d_ft.phantom.lesions import PhantomLesion, Shape, covered_share, true_extent
from sammed3d_ft.phantom.organs import draw_patient
from sammed3d_ft.phantom.outlines import isocontours, share_of_maximum
from sammed3d_ft.phantom.scanners import SCANNERS
from sammed3d_ft.phantom.shapes import Grid
from sammed3d_ft.phantom.simulate import Phantom, make_phantom
from sammed3d_ft.phantom.tissues import MEASURED_SUV
from tests.support.command import command

PELVIS = {"field": "pelvis", "spacing_mm": (4.0, 4.0, 4.0)}


def sphere(radius_mm: float, centre_mm: tuple[float, float, float] = (0, 0, 0), number: int = 1) -> PhantomLesion:
    volume_ml = 4 / 3 * np.pi * radius_mm**3 / 1000
    shape = Shape(np.eye(3), np.zeros((1, 3)), np.zeros(1), np.zeros(1), radius_mm)
    return PhantomLesion(number, "node", centre_mm, volume_ml, 10.0, None, 0, 40.0, 0.0, shape)


def centred_grid(count: int, spacing_mm: float) -> Grid:
    """A cube whose middle voxel's centre is the origin."""
    origin = -spacing_mm * (count - 1) / 2
    return Grid((count,) * 3, (spacing_mm,) * 3, (origin,) * 3)


@pytest.fixture(scope="module")
def widespread() -> Phantom:
    """A patient with many lesions, at fine voxels where volumes can be counted."""
    return make_phantom(11, 0, field="pelvis", spacing_mm=(2.0, 2.0, 2.0), lesions=40)


def organ_mask(phantom: Phantom, organ: str) -> np.ndarray:
    return phantom.organs == {name: number for number, name in phantom.organ_names.items()}[organ]


# Determinism


def test_same_seed_and_case_give_the_same_arrays() -> None:
    one, two = make_phantom(3, 5, **PELVIS), make_phantom(3, 5, **PELVIS)
    for name in ("pet", "ct", "label", "instances", "organs", "pet_affine", "ct_affine"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=name)
    assert one.settings == two.settings
    other = make_phantom(3, 6, **PELVIS)
    assert not np.array_equal(one.ct, other.ct)
    assert one.settings["psf_mm"] != other.settings["psf_mm"]


def test_patient_is_the_same_in_every_field_and_for_both_tracers() -> None:
    def bladder_mm(**more: object) -> np.ndarray:
        phantom = make_phantom(3, 5, spacing_mm=(4.0, 4.0, 4.0), lesions=0, **more)  # type: ignore[arg-type]
        centre_vox = np.argwhere(organ_mask(phantom, "bladder")).mean(0)
        return phantom.pet_affine[:3, :3] @ centre_vox + phantom.pet_affine[:3, 3]

    pelvis = bladder_mm(field="pelvis")
    np.testing.assert_allclose(bladder_mm(field="whole-body"), pelvis, atol=1.0)
    np.testing.assert_allclose(bladder_mm(field="pelvis", tracer="fdg"), pelvis, atol=0.01)


@pytest.mark.parametrize(
    ("arguments", "instances", "ct_sum", "pet_sum"),
    [
        ((3, 5, "psma", "pelvis"), "509a61d1f04456fe", -268954986, 206967.4103962205),
        ((3, 6, "fdg", "chest"), "c660475be86ef664", -404784316, 190537.5143653308),
    ],
)
def test_phantoms_without_options_stay_what_they_were(
    arguments: tuple[int, int, str, str], instances: str, ct_sum: int, pet_sum: float
) -> None:
    # Recorded before scanner, lesion volume and outline could be chosen. Sums of noise, since the last bits of
    # floating point may differ between processors; another draw anywhere would change them by far more.
    phantom = make_phantom(*arguments, spacing_mm=(4.0, 4.0, 4.0))
    assert hashlib.sha256(phantom.instances.tobytes()).hexdigest()[:16] == instances
    assert int(phantom.ct.astype(np.int64).sum()) == pytest.approx(ct_sum, abs=100)
    assert float(phantom.pet.astype(np.float64).sum()) == pytest.approx(pet_sum, rel=1e-6)


# Phantoms of another kind


def test_scanners_differ_in_blur_noise_and_voxels_and_scan_the_same_lesions() -> None:
    made = {name: make_phantom(4, 1, field="pelvis", spacing_mm=(4.0, 4.0, 4.0), scanner=name) for name in SCANNERS}
    lesions = [[(one.centre_mm, one.volume_ml, one.suv) for one in phantom.lesions] for phantom in made.values()]
    assert lesions[0] == lesions[1] == lesions[2]
    for name, phantom in made.items():
        for setting in ("psf_mm", "filter_mm", "liver_noise"):
            low, high = getattr(SCANNERS[name], setting)
            at_least = 1.25 * 4.0 if setting == "filter_mm" else 0.0
            assert low <= phantom.settings[setting] <= max(high, at_least), (name, setting)
    drawn = {make_phantom(4, case, field="pelvis", scanner="digital").settings["spacing_mm"][0] for case in range(3)}
    assert drawn <= {in_plane for in_plane, _ in SCANNERS["digital"].spacings_mm}
    # a small bright lesion: the wider the point spread, the lower its maximum
    bright = [one for one in made["usual"].lesions if one.suv > 5 and not one.touches]
    small = min(bright, key=lambda one: one.volume_ml)
    peaks = {name: phantom.pet[phantom.instances == small.id].max() for name, phantom in made.items()}
    assert peaks["older"] < peaks["usual"] < peaks["digital"]


def test_lesions_are_as_small_as_asked() -> None:
    rng = np.random.default_rng(1)
    volumes = np.array([lesion_rules.draw_volume_ml(rng, 0.4) for _ in range(6000)])
    # of a log-normal cut at 0.1 ml: Phi^-1((Phi(ln(0.1 / 0.4) / 1.5) + 1) / 2) * 1.5 above ln 0.4
    assert np.median(volumes) == pytest.approx(0.4 * np.exp(1.5 * 0.2245), rel=0.06)
    assert volumes.min() >= 0.1


def test_isocontour_of_a_gaussian_has_the_radius_of_theory() -> None:
    # background + A exp(-r^2 / 2 s^2) reaches background + 0.41 A at r = s sqrt(-2 ln 0.41)
    grid = centred_grid(61, 1.0)
    x = grid.origin_mm[0] + np.arange(61)
    squared = x[:, None, None] ** 2 + x[None, :, None] ** 2 + x[None, None, :] ** 2
    pet = (1.5 + 8 * np.exp(-squared / (2 * 5.0**2))).astype(np.float32)
    instances = (squared <= 3.0**2).astype(np.uint16) * 7
    for share in (0.41, 0.5):
        found = isocontours(pet, instances, grid.spacing_mm, share, 22.0)
        radius = 5.0 * np.sqrt(-2 * np.log(share))
        np.testing.assert_array_equal(found == 7, squared <= radius**2)
        assert found.dtype == instances.dtype


def test_isocontour_leaves_out_other_lesions_organs_and_what_nobody_sees() -> None:
    pet = np.ones((40, 30, 30), np.float32)
    instances = np.zeros(pet.shape, np.uint16)
    instances[8:12, 13:17, 13:17] = 1
    instances[12:16, 13:17, 13:17] = 2  # touches the first
    instances[32:35, 13:17, 13:17] = 3
    pet[5:20, 12:18, 12:18] = 10  # both, and what the scanner smeared around them
    pet[8, 14, 14] = 12
    pet[32:35, 13:17, 13:17] = 1.9  # less than twice the background
    pet[:, 26:, :] = 50  # an organ, 9 voxels from the lesions
    found = isocontours(pet, instances, (1.0, 1.0, 1.0), 0.41, 4.5)
    expected = np.zeros_like(instances)
    expected[5:12, 12:18, 12:18] = 1  # at most 4.5 mm from the extent, and nearer to it than to the other's
    expected[12:20, 12:18, 12:18] = 2
    np.testing.assert_array_equal(found, expected)


def test_outline_changes_labels_alone() -> None:
    extent, contour = (
        make_phantom(4, 1, field="pelvis", spacing_mm=(4.0, 4.0, 4.0), scanner="older", outline=outline)
        for outline in ("extent", "41%")
    )
    np.testing.assert_array_equal(contour.pet, extent.pet)
    np.testing.assert_array_equal(contour.ct, extent.ct)
    np.testing.assert_array_equal(contour.label, contour.instances > 0)
    small = [one.id for one in extent.lesions if one.volume_ml < 1.5]
    grown = [(contour.instances == number).sum() / (extent.instances == number).sum() for number in small]
    assert np.median(grown) > 1.5  # smaller than this scanner resolves


def test_outline_is_a_share_of_the_maximum() -> None:
    assert share_of_maximum("extent") is None
    assert share_of_maximum("41%") == pytest.approx(0.41)
    assert share_of_maximum("42.5 %") == pytest.approx(0.425)


# Truth


def test_shape_has_its_volume_by_an_independent_count() -> None:
    rng = np.random.default_rng(0)
    for volume_ml in (0.1, 1.0, 30.0):
        for _ in range(5):
            shape = lesion_rules.draw_shape(rng, volume_ml, 8.0, np.array([0.0, 0.0, 1.0]))
            reach = shape.reach_mm
            points = rng.uniform(-reach, reach, (150_000, 3))
            share = (shape.depth_share(points) < 1).mean()
            assert share * (2 * reach) ** 3 / 1000 == pytest.approx(volume_ml, rel=0.03)


def test_counted_volumes_agree_with_the_table(widespread: Phantom) -> None:
    voxel_ml = abs(np.linalg.det(widespread.pet_affine[:3, :3])) / 1000
    counted = np.bincount(widespread.instances.ravel(), minlength=len(widespread.lesions) + 1)[1:] * voxel_ml
    drawn = np.array([lesion.volume_ml for lesion in widespread.lesions])
    alone = np.array([lesion.touches == 0 for lesion in widespread.lesions])
    touched = {lesion.touches for lesion in widespread.lesions}
    alone &= np.array([lesion.id not in touched for lesion in widespread.lesions])
    large = alone & (drawn > 1)
    assert large.sum() >= 5
    np.testing.assert_allclose(counted[large], drawn[large], rtol=0.15)
    assert counted[large].sum() == pytest.approx(drawn[large].sum(), rel=0.03)
    assert (counted > 0).all()
    np.testing.assert_array_equal(widespread.label, widespread.instances > 0)


def test_voxel_is_lesion_when_half_of_it_is_inside() -> None:
    # A sphere of 6 mm, voxels of 4 mm: brute force with 40 points per axis against the rule
    lesion, grid = sphere(6.0, (0.7, -0.4, 0.3)), centred_grid(7, 4.0)
    within = (np.arange(40) + 0.5) / 40 * 4.0 - 2.0
    axis = (grid.origin_mm[0] + 4.0 * np.arange(7))[:, None] + within
    x, y, z = (axis.ravel() - c for c in lesion.centre_mm)
    inside = x[:, None, None] ** 2 + y[None, :, None] ** 2 + z[None, None, :] ** 2 < 36
    share = inside.reshape(7, 40, 7, 40, 7, 40).mean((1, 3, 5))
    clear = np.abs(share - 0.5) > 0.04
    truth = true_extent([lesion], grid)
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(truth[clear] > 0, share[clear] >= 0.5)


def test_tiny_lesions_keep_a_voxel_of_their_own() -> None:
    grid = centred_grid(6, 5.0)
    # both centres lie in one voxel (edges 0 and 5): each must still have one
    small = [sphere(1.2, (2.0, 2.4, 2.4), 1), sphere(1.2, (4.4, 2.4, 2.4), 2), sphere(1.2, (0.0, 0.0, -10.0), 3)]
    truth = true_extent(small, grid)
    assert [int((truth == number).sum()) for number in (1, 2, 3)] == [1, 1, 1]
    assert truth[3, 3, 3] in (1, 2)


def test_lesions_are_connected_and_some_touch(widespread: Phantom) -> None:
    for lesion in widespread.lesions:
        assert cc3d.connected_components(widespread.instances == lesion.id, connectivity=26).max() == 1
    pairs = [lesion for lesion in widespread.lesions if lesion.touches]
    assert len(pairs) >= 3
    joined = 0
    for lesion in pairs:
        both = np.isin(widespread.instances, (lesion.id, lesion.touches))
        joined += int(cc3d.connected_components(both, connectivity=18).max()) == 1
    assert joined >= 0.8 * len(pairs)
    components = int(cc3d.connected_components(widespread.label, connectivity=18).max())
    assert len(widespread.lesions) - len(pairs) <= components < len(widespread.lesions)


def test_lesions_are_where_the_table_says_and_as_bright(widespread: Phantom) -> None:
    to_voxel = np.linalg.inv(widespread.pet_affine)
    bright = 0
    large = [one for one in widespread.lesions if one.volume_ml > 4 and one.core_suv is None and not one.touches]
    for lesion in large:
        centre_vox = np.rint(to_voxel[:3, :3] @ lesion.centre_mm + to_voxel[:3, 3]).astype(int)
        assert widespread.instances[tuple(centre_vox)] == lesion.id
        bright += widespread.pet[tuple(centre_vox)] == pytest.approx(lesion.suv, rel=0.35)
    assert large
    assert bright >= 0.7 * len(large)


# PhantomLesion statistics


def test_volumes_are_log_normal_within_their_range() -> None:
    rng = np.random.default_rng(1)
    volumes = np.array([lesion_rules.draw_volume_ml(rng) for _ in range(6000)])
    assert volumes.min() >= 0.1
    assert volumes.max() <= 120
    assert 0.9 < np.median(volumes) < 1.3
    assert (volumes > 20).mean() == pytest.approx(0.022, abs=0.008)  # (1 - Phi(ln 20 / 1.5)) / 0.937
    assert volumes.max() > 50


def test_counts_run_from_none_to_a_hundred() -> None:
    rng = np.random.default_rng(2)
    counts = np.array([lesion_rules.draw_count(rng, whole_body=True) for _ in range(4000)])
    assert (counts == 0).mean() == pytest.approx(0.1, abs=0.02)
    assert 4 <= np.median(counts) <= 7
    assert counts.max() == 100
    small_field = [lesion_rules.draw_count(rng, whole_body=False) for _ in range(1000)]
    assert min(small_field) == 1
    assert max(small_field) <= 30


def test_lesions_vary_in_place_uptake_and_core() -> None:
    edge_mm = np.full(3, 2000.0)
    found: list[PhantomLesion] = []
    for case in range(12):
        rng = np.random.default_rng(case)
        sites = draw_patient(rng, "psma").sites
        found += lesion_rules.draw_lesions(rng, sites, 25, -edge_mm, edge_mm, "psma")
    suv = np.array([one.suv for one in found])
    assert suv.min() >= 2
    assert suv.max() <= 60
    assert suv.min() < 3
    assert suv.max() > 30
    regions = {one.region.split(":")[0] for one in found}
    assert regions == {"bone", "node", "prostate bed"}
    cores = [one for one in found if one.core_suv is not None]
    assert cores
    assert all(one.volume_ml > 8 and one.core_suv < 0.5 * one.suv for one in cores)  # type: ignore[operator]


# Uptake and CT


@pytest.mark.parametrize("tracer", ["psma", "psma-1007", "fdg"])
def test_measured_organ_suv_agrees_with_the_literature(tracer: str) -> None:
    measured: dict[str, list[float]] = {organ: [] for organ in MEASURED_SUV[tracer]}
    for case in range(8):
        phantom = make_phantom(21, case, tracer, spacing_mm=(4.5, 4.5, 4.5), lesions=0)
        for organ, values in measured.items():
            values.append(float(phantom.pet[organ_mask(phantom, organ)].mean()))
    for organ, (mean, deviation) in MEASURED_SUV[tracer].items():
        found = np.array(measured[organ])
        assert abs(found.mean() - mean) < 0.75 * deviation, f"{organ}: {found.mean():.2f}, published {mean}"
        assert (np.abs(found - mean) < 3.5 * deviation).all(), f"{organ}: {found}"
        assert 0.3 * deviation < found.std(ddof=1) < 2 * deviation, f"{organ}: {found.std(ddof=1):.2f}"


def test_organs_have_the_size_of_the_reference_man() -> None:
    reference_ml = {"liver": 1710, "spleen": 143, "kidney": 295, "parotid gland": 48, "submandibular gland": 24}
    found: dict[str, list[float]] = {organ: [] for organ in reference_ml}
    for case in range(4):
        phantom = make_phantom(22, case, spacing_mm=(4.0, 4.0, 4.0), lesions=0)
        for organ, values in found.items():
            values.append(float(organ_mask(phantom, organ).sum() * 0.064))
    for organ, volume_ml in reference_ml.items():
        assert np.mean(found[organ]) == pytest.approx(volume_ml, rel=0.25), organ


def test_ct_is_in_hounsfield_units_and_displaced_by_a_few_mm() -> None:
    phantom = make_phantom(3, 5, spacing_mm=(4.0, 4.0, 4.0), lesions=0)
    for organ, hu in {"lung": -800, "liver": 55, "spleen": 48, "bladder": 5}.items():
        core = ndimage.binary_erosion(organ_mask(phantom, organ), iterations=2)
        assert np.median(phantom.ct[core]) == pytest.approx(hu, abs=12), organ
    assert np.median(phantom.ct[organ_mask(phantom, "femur")]) > 150
    assert phantom.ct[0, -1, -1] < -900
    shift = np.array(phantom.settings["misalignment_mm"])
    assert 0.1 < np.linalg.norm(shift) < 7
    assert phantom.ct.dtype == np.int16


def test_ct_on_its_own_grid_shows_the_same_body() -> None:
    phantom = make_phantom(3, 5, ct_grid="own", **PELVIS)
    assert phantom.ct.shape != phantom.pet.shape
    np.testing.assert_allclose(np.linalg.norm(phantom.ct_affine[:3, :3], axis=0), (1.95, 1.95, 3.0))
    corners = [affine[:3, 3] - affine.diagonal()[:3] / 2 for affine in (phantom.pet_affine, phantom.ct_affine)]
    np.testing.assert_allclose(corners[0], corners[1], atol=2.0)


# Physics


@pytest.mark.parametrize("fwhm_mm", [4.0, 5.5, 7.0])
@pytest.mark.parametrize("radius_mm", [3.0, 5.0, 10.0])
def test_recovery_of_a_small_sphere_follows_theory(fwhm_mm: float, radius_mm: float) -> None:
    # centre of a sphere of radius R under a Gaussian: erf(R / sqrt(2) s) - sqrt(2 / pi) (R / s) exp(-R^2 / 2 s^2)
    lesion, grid = sphere(radius_mm), centred_grid(81, 0.5)
    activity = np.zeros(grid.shape, np.float32)
    found = covered_share(lesion, grid, np.zeros(3))
    assert found is not None
    activity[found[0]] = found[1]
    image = physics.blur(activity, grid.spacing_mm, fwhm_mm)
    ratio = radius_mm / (fwhm_mm / 2.354820045)
    expected = erf(ratio / np.sqrt(2)) - np.sqrt(2 / np.pi) * ratio * np.exp(-(ratio**2) / 2)
    assert image[40, 40, 40] == pytest.approx(expected, abs=0.01)
    assert image.sum() == pytest.approx(activity.sum(), rel=1e-4)


def test_point_source_has_the_stated_width() -> None:
    point = np.zeros((41, 41, 41), np.float32)
    point[20, 20, 20] = 1
    profile = physics.blur(point, (1.0, 1.0, 1.0), 6.0)[:, 20, 20]
    fine = np.interp(np.arange(0, 40, 0.01), np.arange(41), profile)
    assert (fine > profile.max() / 2).sum() * 0.01 == pytest.approx(6.0, abs=0.1)


@pytest.mark.parametrize("spacing_mm", [2.0, 4.0, 5.5])
def test_blur_is_as_wide_in_coarse_voxels(spacing_mm: float) -> None:
    kernel = physics.gaussian_kernel(5.0, spacing_mm)
    place = (np.arange(len(kernel)) - len(kernel) // 2) * spacing_mm
    assert np.sqrt((kernel * place**2).sum()) == pytest.approx(5.0 / 2.354820045, rel=0.01)


def test_lesion_in_a_case_is_blurred_by_psf_and_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    # Without noise, the case with its lesion less the case without: its spread is lesion + PSF + filter
    monkeypatch.setattr(physics, "add_noise", lambda image, counts, rng: image)
    arguments = {"field": "pelvis", "spacing_mm": (2.0, 2.0, 2.0), "shape": (160, 130, 130)}
    for case in range(20):
        phantom = make_phantom(8, case, lesions=1, **arguments)  # type: ignore[arg-type]
        (lesion,) = phantom.lesions
        if lesion.region.startswith("node") and lesion.volume_ml < 3 and lesion.suv > 5:
            break
    excess = phantom.pet.astype(float) - make_phantom(8, case, lesions=0, **arguments).pet  # type: ignore[arg-type]
    settings = phantom.settings
    blurred = (settings["psf_mm"] ** 2 + settings["filter_mm"] ** 2) / (8 * np.log(2))
    spreads = []
    for volume in (excess, phantom.label):
        mass = volume.sum(axis=(1, 2)).astype(float)
        x = np.arange(len(mass)) * 2.0
        middle = (mass * x).sum() / mass.sum()
        spreads.append((mass * (x - middle) ** 2).sum() / mass.sum())
    assert spreads[0] - spreads[1] == pytest.approx(blurred, rel=0.15)


def test_noise_in_uniform_tissue_is_as_asked() -> None:
    spacing_mm, filter_mm = (4.0, 4.0, 3.0), 5.0
    counts = physics.counts_per_suv(0.1, 5.0, spacing_mm, filter_mm)
    uniform = np.full((60, 60, 60), 5.0, np.float32)
    noisy = physics.add_noise(uniform, counts, np.random.default_rng(0))
    image = physics.blur(noisy, spacing_mm, filter_mm)[8:-8, 8:-8, 8:-8]
    assert image.mean() == pytest.approx(5.0, rel=0.005)
    assert image.std() / image.mean() == pytest.approx(0.1, rel=0.05)
    assert noisy.std() / 5.0 == pytest.approx((counts * 5.0) ** -0.5, rel=0.02)  # Poisson before the filter


# Arguments, speed, files


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tracer": "choline"}, "choline"),
        ({"field": "knee"}, "knee"),
        ({"shape": (4, 80, 80)}, "8 voxels"),
        ({"spacing_mm": (4.0, 4.0, 40.0)}, "10 mm"),
        ({"ct_grid": "mr"}, "mr"),
        ({"scanner": "new"}, "usual, older, digital"),
        ({"lesion_ml": 0.0}, "0.1 to 120 ml"),
        ({"outline": "41"}, "as 41%"),
        ({"outline": "5%"}, "20% to 80%"),
    ],
)
def test_wrong_arguments_are_named(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_phantom(0, 0, **wrong)  # type: ignore[arg-type]


def test_spacing_and_shape_follow_from_each_other() -> None:
    by_shape = make_phantom(1, 0, field="pelvis", shape=(96, 80, 80))
    assert by_shape.pet.shape == (96, 80, 80)
    assert by_shape.settings["spacing_mm"][0] == by_shape.settings["spacing_mm"][1] == pytest.approx(4.0)
    spacings = [make_phantom(1, case, field="pelvis").settings["spacing_mm"] for case in range(4)]
    assert all(2 <= s <= 5.5 for spacing in spacings for s in spacing)
    assert len({tuple(spacing) for spacing in spacings}) > 1


def test_a_whole_body_has_the_shape_and_about_the_lesions_asked_for() -> None:
    phantom = make_phantom(7, 0, shape=(100, 100, 200), lesions=60)
    assert phantom.pet.shape == (100, 100, 200)
    assert phantom.pet.dtype == np.float32
    assert len(phantom.lesions) >= 55


def test_cohort_is_an_nnunet_folder_with_a_manifest(tmp_path: Path) -> None:
    path = write_cohort(tmp_path / "data", 4, seed=2, field="pelvis", val=1, test=1)
    manifest = read_manifest(path)
    assert [case.split for case in manifest.cases] == ["train", "train", "val", "test"]
    report = check_manifest(manifest, ["PT", "CT"])
    assert not report.errors
    nnunet = {case.id: case for case in from_nnunet(tmp_path / "data", None)}
    for case in manifest.cases:
        assert nnunet[case.id].images.keys() == {"PT", "CT"}
        assert nnunet[case.id].images["PT"].resolve() == case.images["PT"].resolve()
        header = nib.load(case.images["PT"]).header
        assert header.get_xyzt_units()[0] == "mm"
        assert header["sform_code"] > 0
        assert header["qform_code"] > 0
    phantom = make_phantom(2, 1, field="pelvis")
    stored = nib.load(manifest.cases[1].images["PT"])
    np.testing.assert_array_equal(np.asarray(stored.dataobj), phantom.pet)
    np.testing.assert_allclose(stored.affine, phantom.pet_affine, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(nib.load(manifest.cases[1].images["CT"]).dataobj), phantom.ct)
    with (tmp_path / "data" / "lesions.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == phantom.id]
    voxel_ml = abs(np.linalg.det(phantom.pet_affine[:3, :3])) / 1000
    for row, lesion in zip(rows, phantom.lesions, strict=True):
        counted_ml = (phantom.instances == lesion.id).sum() * voxel_ml
        assert float(row["mask_volume_ml"]) == pytest.approx(counted_ml, abs=1e-4)
        assert float(row["true_volume_ml"]) == pytest.approx(lesion.volume_ml, abs=1e-4)
    with pytest.raises(InputError, match="holds"):
        write_cohort(tmp_path / "data", 4)


def test_case_does_not_depend_on_how_many_are_made(tmp_path: Path) -> None:
    small = write_cohort(tmp_path / "one", 1, seed=9, field="pelvis")
    large = write_cohort(tmp_path / "two", 2, seed=9, field="pelvis")
    first, again = read_manifest(small).cases[0], read_manifest(large).cases[0]
    assert first.images["PT"].read_bytes() == again.images["PT"].read_bytes()
    with pytest.raises(InputError, match="train"):
        write_cohort(tmp_path / "none", 2, val=1, test=1)


def test_command_makes_another_kind(tmp_path: Path) -> None:
    kind = "--field pelvis --tracer psma-1007 --scanner older --lesion-ml 0.4 --outline 41% --seed 6"
    command("phantom", "--out", tmp_path / "c", "--cases", 2, "--val", 0, "--test", 1, *kind.split())
    expected = make_phantom(6, 0, "psma-1007", "pelvis", scanner="older", lesion_ml=0.4, outline="41%")
    manifest = read_manifest(tmp_path / "c" / "manifest.json")
    (case,), (test,) = manifest.split("train"), manifest.split("test")
    assert test.label is not None
    assert test.label.parent.name == "labelsTs"
    assert case.id == expected.id == "phantom_psma-1007_6_0000"
    np.testing.assert_array_equal(np.asarray(nib.load(case.images["PT"]).dataobj), expected.pet)
    np.testing.assert_array_equal(np.asarray(nib.load(case.label).dataobj), expected.label)
