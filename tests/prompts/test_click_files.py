"""Click files: reading and writing every format, files of other programs, and every kind of error."""

import json
import math
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompts import FORMS, Click, InputError, check_inside, clicks_to_vox, read_clicks, write_clicks
from prompts.parsing import label_of_name

# An oblique, left-handed image with three different spacings, stored in no canonical order.
AFFINE = np.array([[0.0, -1.9, 0.3, 101.5], [-2.1, 0.05, 0.0, 33.25], [0.1, 0.2, 3.2, -700.125], [0, 0, 0, 1.0]])
SHAPE = (40, 50, 60)


def clicks_on_voxels() -> list[Click]:
    voxels = np.array([[0, 0, 0], [39, 49, 59], [7, 8, 9], [20, 3, 31]], float)
    positions = voxels @ AFFINE[:3, :3].T + AFFINE[:3, 3]
    meanings: list[tuple[int, int | str | None]] = [(1, 3), (1, 'left, "upper" femur'), (1, None), (0, None)]
    return [Click(tuple(p), *m) for p, m in zip(positions.tolist(), meanings, strict=True)]


def name_for(form: str) -> str:
    return {"slicer-json": "c.mrk.json", "slicer-fcsv": "c.fcsv"}.get(form, "c.json")


@pytest.mark.parametrize("form", FORMS)
def test_every_form_comes_back(form: str, tmp_path: Path) -> None:
    clicks = clicks_on_voxels()
    path = tmp_path / name_for(form)
    write_clicks(path, clicks, form=form, affine=AFFINE, shape=SHAPE)
    back = read_clicks(path, affine=AFFINE, shape=SHAPE)
    assert [c.label for c in back] == [1, 1, 1, 0]
    keeps_lesions = form not in ("autopet", "grand-challenge")
    assert [c.lesion for c in back] == ([c.lesion for c in clicks] if keeps_lesions else [None] * 4)
    positions, expected = [c.position_mm for c in back], [c.position_mm for c in clicks]
    if form in ("voxel", "autopet", "grand-challenge"):
        np.testing.assert_allclose(positions, expected, atol=1e-9)
    else:
        assert positions == expected
    assert list(tmp_path.iterdir()) == [path]  # no temporary file is left


finite = st.floats(-1e6, 1e6)


@pytest.mark.parametrize("form", ["world-ras", "world-lps", "slicer-json", "slicer-fcsv"])
@settings(max_examples=30, deadline=None)
@given(
    position=st.tuples(finite, finite, finite),
    lesion=st.one_of(st.none(), st.integers(), st.text(min_size=1)),
)
def test_world_forms_are_exact(
    form: str, position: tuple[float, float, float], lesion: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("exact") / name_for(form)
    click = Click(position, 1, lesion)  # type: ignore[arg-type]
    write_clicks(path, [click], form=form)
    assert read_clicks(path) == [click]


def test_form_goes_by_the_name(tmp_path: Path) -> None:
    clicks = [Click((1.0, 2.0, 3.0), 1)]
    for name in ("a.json", "a.mrk.json", "A.FCSV"):
        write_clicks(tmp_path / name, clicks)
        assert read_clicks(tmp_path / name) == clicks
    assert json.loads((tmp_path / "a.json").read_text()) == {
        "version": 1,
        "coordinate_system": "world",
        "orientation": "RAS",
        "units": "mm",
        "points": [{"position": [1.0, 2.0, 3.0], "label": 1}],
    }
    assert json.loads((tmp_path / "a.mrk.json").read_text())["markups"][0]["coordinateSystem"] == "LPS"
    assert (tmp_path / "A.FCSV").read_text().splitlines()[1:] == [
        "# CoordinateSystem = LPS",
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID",
        "1,-1.0,-2.0,3.0,0,0,0,1,1,1,0,tumor-1,,",
    ]


def test_autopet_forms_are_written_as_the_challenge_has_them(tmp_path: Path) -> None:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    clicks = [Click((2.0, 4.0, 6.9), 1), Click((0.0, 0.0, 9.1), 0)]  # voxel 3.45 and 4.55: to the nearest
    write_clicks(tmp_path / "a.json", clicks, form="autopet", affine=affine)
    assert json.loads((tmp_path / "a.json").read_text()) == {"tumor": [[1, 2, 3]], "background": [[0, 0, 5]]}
    write_clicks(tmp_path / "g.json", clicks, form="grand-challenge", affine=affine)
    assert json.loads((tmp_path / "g.json").read_text()) == {
        "version": {"major": 1, "minor": 0},
        "type": "Multiple points",
        "points": [{"point": [1, 2, 3], "name": "tumor"}, {"point": [0, 0, 5], "name": "background"}],
    }


def test_the_challenges_clicks_lie_in_lesions_of_the_stored_array(real_data: Path) -> None:
    image = nib.load(real_data / "psma_masks" / "label_expert.nii.gz")
    label = np.asarray(image.dataobj)
    clicks = read_clicks(real_data / "psma_masks" / "lesion-clicks.json", affine=image.affine, shape=label.shape)
    assert [c.label for c in clicks] == [1] * 10 + [0] * 10
    hit = [bool(label[tuple(v)]) for v in clicks_to_vox(clicks, image.affine).astype(int)]
    assert hit == [True] * 10 + [False] * 10
    # In world mm the clicks belong to the scan, whatever the axis order: here the canonical one.
    canonical = nib.as_closest_canonical(image)
    turned = np.asarray(canonical.dataobj)
    assert [bool(turned[tuple(v)]) for v in clicks_to_vox(clicks, canonical.affine).astype(int)] == hit


# --- files as others make them ---


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def slicer(points: list[dict], **markup: object) -> dict:
    return {"@schema": "x", "markups": [{"type": "Fiducial", "controlPoints": points, **markup}]}


def test_slicer_json_as_a_person_saves_it(tmp_path: Path) -> None:
    points = [
        {
            "id": "1",
            "label": "F-1",
            "position": [10.0, 20.0, 30.0],
            "positionStatus": "defined",
            "locked": False,
        },
        {"id": "2", "label": "Background_1", "description": "liver", "position": [1, 2, 3]},
        {"id": "3", "label": "F-3", "position": None, "positionStatus": "undefined"},
        {"id": "4", "label": "", "description": "lesion=12", "position": [0.5, 0.0, 0.0]},
    ]
    expected = [
        Click((-10.0, -20.0, 30.0), 1),
        Click((-1.0, -2.0, 3.0), 0),
        Click((-0.5, 0.0, 0.0), 1, 12),
    ]
    path = write(tmp_path / "F.mrk.json", slicer(points, coordinateSystem="LPS", coordinateUnits="mm"))
    assert read_clicks(path) == expected
    # LPS is also the schema's default.
    assert read_clicks(write(path, slicer(points))) == expected
    flipped = [Click((-c.position_mm[0], -c.position_mm[1], c.position_mm[2]), c.label, c.lesion) for c in expected]
    assert read_clicks(write(path, slicer(points, coordinateSystem="RAS"))) == flipped


def test_slicer_json_with_lists_in_both_frames(tmp_path: Path) -> None:
    content = slicer([{"label": "a", "position": [1, 2, 3]}], coordinateSystem="RAS")
    content["markups"].append(slicer([{"label": "neg-1", "position": [1, 2, 3]}])["markups"][0])
    assert read_clicks(write(tmp_path / "two.mrk.json", content)) == [
        Click((1.0, 2.0, 3.0), 1),
        Click((-1.0, -2.0, 3.0), 0),
    ]


@pytest.mark.parametrize(("stated", "sign"), [("LPS", -1), ("RAS", 1), ("0", 1), ("1", -1)])
def test_fcsv_frames_old_and_new(stated: str, sign: int, tmp_path: Path) -> None:
    text = (
        f"# Markups fiducial file version = 4.10\n# CoordinateSystem = {stated}\n"
        "# columns = id,x,y,z,ow,ox,oy,oz,vis,sel,lock,label,desc,associatedNodeID\n"
        "vtkMRMLMarkupsFiducialNode_0,1.5,-2.25,3e1,0,0,0,1,1,1,0,F-1,,vtkMRMLScalarVolumeNode1\n"
        'vtkMRMLMarkupsFiducialNode_1,4,5,6,0,0,0,1,1,1,0,"negative, bladder",lesion=pelvis,\n'
    )
    assert read_clicks(write(tmp_path / "F.fcsv", text)) == [
        Click((sign * 1.5, sign * -2.25, 30.0), 1),
        Click((sign * 4.0, sign * 5.0, 6.0), 0, "pelvis"),
    ]


def test_grand_challenge_points_named_by_lesion_number_are_foreground(tmp_path: Path) -> None:
    content = {
        "name": "Points of interest",
        "type": "Multiple points",
        "points": [{"name": "7", "point": [1.5, 2, 3]}, {"point": [0, 0, 0]}],
        "version": {"major": 1, "minor": 0},
    }
    clicks = read_clicks(write(tmp_path / "g.json", content), affine=np.eye(4))
    assert clicks == [Click((1.5, 2.0, 3.0), 1, 7), Click((0.0, 0.0, 0.0), 1)]


def test_one_kind_of_autopet_click_is_enough_and_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(b'\xef\xbb\xbf{"background": [[1, 2, 3]]}')
    assert read_clicks(path, affine=np.eye(4)) == [Click((1.0, 2.0, 3.0), 0)]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("F-1", 1), ("tumor", 1), ("", 1), ("bgroup", 1), ("Negev", 1), ("subgroup", 1),
        ("background-2", 0), ("BACKGROUND", 0), ("Negative_3", 0), ("bg1", 0), ("my bg", 0), ("neg-1", 0),
    ],
)  # fmt: skip
def test_names_say_the_label(name: str, label: int) -> None:
    assert label_of_name(name) == label


# --- wrong input: one clear line each ---

OURS = {"version": 1, "coordinate_system": "voxel", "points": [{"position": [1, 2, 3], "label": 1}]}
WORLD = {**OURS, "coordinate_system": "world", "orientation": "RAS", "units": "mm"}


def with_point(**point: object) -> dict:
    return {**OURS, "points": [OURS["points"][0], {"position": [1, 2, 3], "label": 1, **point}]}  # type: ignore[index]


WRONG = {
    "empty file": ("", "the click file is empty"),
    "no clicks": ({**OURS, "points": []}, "contains no clicks"),
    "no autopet clicks": ({"tumor": [], "background": []}, "contains no clicks"),
    "cut off": ('{"tumor": [[1, 2', "malformed JSON at line 1"),
    "endless digits": ('{"tumor": [[1, 2, ' + "9" * 5000 + "]]}", "malformed JSON"),
    "a list": ([[1, 2, 3]], "not a click file in a known format"),
    "unknown form": ({"points": [[1, 2, 3]]}, "not a click file in a known format"),
    "misspelt": ({"tumor": [[1, 2, 3]], "backgroud": []}, "unknown key 'backgroud'"),
    "version": ({**OURS, "version": 2}, "version is 2"),
    "frame": ({**OURS, "coordinate_system": "mm"}, '"voxel" or "world"'),
    "metres": ({**WORLD, "units": "m"}, 'units is \'m\'; world coordinates must be in "mm"'),
    "orientation": ({**WORLD, "orientation": "RAI"}, "orientation is 'RAI'"),
    "no orientation": ({**OURS, "coordinate_system": "world", "units": "mm"}, "orientation is None"),
    "points no list": ({**OURS, "points": {"a": 1}}, "must be a list"),
    "point no object": ({**OURS, "points": [[1, 2, 3]]}, "point 1 is"),
    "two numbers": (with_point(position=[1, 2]), "point 2 is at .*three finite numbers"),
    "text": (with_point(position=["1", 2, 3]), "point 2 is at"),
    "too large": (with_point(position=[1, 2, 10**400]), "point 2 is at"),
    "not a number": ('{"tumor": [[1, 2, NaN]]}', "point 1 of 'tumor' is at"),
    "label": (with_point(label=2), "point 2 has label 2"),
    "no label": (with_point(label=None), "point 2 has label None"),
    "lesion": (with_point(lesion=1.5), "point 2 has lesion 1.5"),
    "slicer units": (slicer([], coordinateUnits="m"), "coordinateUnits is 'm'"),
    "slicer frame": (slicer([], coordinateSystem="IJK"), "coordinateSystem is 'IJK'"),
    "slicer line": ({"markups": [{"type": "Line"}]}, "markup of type 'Line'"),
    "slicer position": (slicer([{"position": [1, 2]}]), "point 1 is at"),
    "slicer nothing": ({"markups": []}, "contains no clicks"),
    "challenge name": ({"type": "Multiple points", "points": [{"point": [1, 2, 3], "name": 5}]}, "name is 5"),
    "image of no shape": ({**OURS, "image": {"affine": np.eye(4).tolist()}}, '"image" is .* must give the shape'),
    "image of no place": ({**OURS, "image": {"shape": [4, 5, 6], "affine": [[1, 2], [3]]}}, "must give the shape"),
    "image of a plane": ({**OURS, "image": {"shape": [4, 5, 6], "affine": [[0] * 4] * 4}}, "must give the shape"),
    "outside": (with_point(position=[1, 50, 3]), "point 2 lies outside the image: voxel \\(1, 50, 3\\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_files(case: str, tmp_path: Path) -> None:
    content, says = WRONG[case]
    path = write(tmp_path / "clicks.json", content)
    with pytest.raises(InputError, match=says) as caught:
        read_clicks(path, affine=AFFINE, shape=SHAPE)
    message = str(caught.value)
    assert message.startswith(str(path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("# Markups fiducial file version = 4.10\n1,2,3,4\n", "CoordinateSystem in the header is missing"),
        ("# CoordinateSystem = 2\n1,2,3,4\n", "is '2'"),
        ("# CoordinateSystem = LPS\n1,2,three,4\n", "point 1 is"),
        ("# CoordinateSystem = LPS\n1,2,3\n", "point 1 is"),
        ("# CoordinateSystem = LPS\n1,2,3,nan\n", "point 1 is at"),
        ("# CoordinateSystem = LPS\n", "contains no clicks"),
    ],
)
def test_wrong_fcsv(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=says):
        read_clicks(write(tmp_path / "F.fcsv", text))


def test_missing_and_binary_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such click file"):
        read_clicks(tmp_path / "none.json")
    (tmp_path / "b.json").write_bytes(b"\x1f\x8b\xff\x00")
    with pytest.raises(InputError, match="not a text file"):
        read_clicks(tmp_path / "b.json")
    with pytest.raises(InputError, match="cannot be read"):
        read_clicks(tmp_path)


def test_voxels_need_their_image(tmp_path: Path) -> None:
    path = write(tmp_path / "v.json", OURS)
    with pytest.raises(InputError, match="--image"):
        read_clicks(path)
    with pytest.raises(InputError, match="--image"):
        write_clicks(path, clicks_on_voxels(), form="autopet")


@pytest.mark.parametrize("form", ["world-ras", "world-lps", "voxel"])
def test_a_file_names_its_image_and_is_refused_for_another(form: str, tmp_path: Path) -> None:
    path, clicks = tmp_path / "c.json", clicks_on_voxels()
    write_clicks(path, clicks, form=form, affine=AFFINE, shape=SHAPE)
    assert json.loads(path.read_text())["image"] == {"shape": list(SHAPE), "affine": AFFINE.tolist()}
    # The same grid stored in another axis order, its second axis reversed, is the same image.
    turned = np.zeros((4, 4))
    turned[2, 0], turned[0, 1], turned[1, 2], turned[3, 3] = 1, 1, -1, 1
    turned[1, 3] = SHAPE[1] - 1
    shape = (SHAPE[2], SHAPE[0], SHAPE[1])
    again = read_clicks(path, affine=AFFINE @ turned, shape=shape)
    np.testing.assert_allclose([c.position_mm for c in again], [c.position_mm for c in clicks], atol=1e-9)
    # Without an image, the one recorded in the file locates the voxels.
    np.testing.assert_allclose([c.position_mm for c in read_clicks(path)], [c.position_mm for c in again], atol=1e-9)

    moved, coarser, header = AFFINE.copy(), AFFINE.copy(), AFFINE.astype(np.float32)
    moved[2, 3] += 0.02 * 3.2
    coarser[:3, 0] *= 1.01
    read_clicks(path, affine=header, shape=SHAPE)  # a NIfTI header holds float32
    for affine, size, says in (
        (moved, SHAPE, "corners up to 0.02 voxels apart"),
        (coarser, SHAPE, "made on another image"),
        (AFFINE, (40, 50, 61), "40x50x60 voxels against 40x50x61"),
        (AFFINE, (50, 40, 60), "40x50x60 voxels against 50x40x60"),
        (AFFINE[:, [1, 0, 2, 3]], SHAPE, "40x50x60 voxels against 40x50x60 with different axis directions"),
    ):
        with pytest.raises(InputError, match=says):
            read_clicks(path, affine=affine, shape=size)


@pytest.mark.parametrize("voxel_mm", [1e307, float("nan")])
def test_an_absurd_affine_in_a_file_is_refused(voxel_mm: float, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    write_clicks(path, clicks_on_voxels(), affine=AFFINE, shape=SHAPE)
    content = json.loads(path.read_text())
    content["image"]["affine"] = np.diag([voxel_mm, 1, 1, 1]).tolist()
    write(path, content)
    warnings.simplefilter("error")  # pytest restores the filters after the test
    with pytest.raises(InputError, match="it must give the shape of the image"):
        read_clicks(path, affine=np.eye(4), shape=SHAPE)


def test_a_point_outside_is_named_with_coordinates_and_range() -> None:
    good, bad = Click((1.0, 1.0, 1.0), 1), Click((1.0, -8.0, 7.0), 0)
    check_inside([good], np.diag([2.0, 4.0, 5.0, 1.0]), (3, 3, 3))
    with pytest.raises(InputError) as caught:
        check_inside([good, bad], np.diag([2.0, 4.0, 5.0, 1.0]), (3, 4, 5), "mine.json")
    message = str(caught.value)
    for part in ("mine.json", "point 2", "(0.5, -2, 1.4)", "(1, -8, 7) mm", "(0..2, 0..3, 0..4)"):
        assert part in message


def test_inside_ends_half_a_voxel_beyond_the_last_centre() -> None:
    for vox, inside in ((-0.5, True), (-0.51, False), (9.49, True), (9.5, False)):
        click = Click((vox, 0.0, 0.0), 1)
        if inside:
            check_inside([click], np.eye(4), (10, 1, 1))
        else:
            with pytest.raises(InputError, match="outside"):
                check_inside([click], np.eye(4), (10, 1, 1))


def test_nothing_wrong_is_written(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    clicks = clicks_on_voxels()
    for options, says in (
        ({"form": "csv"}, "choose one of world-ras"),
        ({"affine": AFFINE, "shape": (5, 5, 5)}, "point 2 lies outside"),
    ):
        with pytest.raises(InputError, match=says):
            write_clicks(path, clicks, **options)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="no clicks to write"):
        write_clicks(path, [])
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        write_clicks(tmp_path / "file" / "out.json", clicks)


def test_a_click_is_checked_when_made() -> None:
    with pytest.raises(InputError, match="three finite numbers"):
        Click((1.0, math.nan, 2.0), 1)
    with pytest.raises(InputError, match=r"1 \(foreground\) or 0"):
        Click((1.0, 2.0, 3.0), -1)
