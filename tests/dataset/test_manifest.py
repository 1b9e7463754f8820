"""Manifests: reading, writing, and building them from every data set format."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from sammed3d_ft.dataset.builders import (
    from_csv,
    from_folders,
    from_monai,
    from_nnunet,
    guess_form,
    with_groups,
)
from sammed3d_ft.dataset.manifest import Case, read_manifest, write_manifest
from sammed3d_ft.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    return folder


def write(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def entry(**changes):
    return {"id": "a", "images": {"PT": "a.nii"}, "label": None, "split": "val", "group": None} | changes


# the file itself


def test_paths_are_relative_and_survive_moving_manifest_and_data_together(tmp_path):
    data = touch(tmp_path / "home" / "data", "a/pet.nii", "a/mask.nii")
    case = Case("a", {"PT": data / "a/pet.nii"}, data / "a/mask.nii", "train", "patient 1")
    write_manifest(tmp_path / "home" / "lists" / "m.json", [case])
    stored = json.loads((tmp_path / "home" / "lists" / "m.json").read_text())
    assert stored["version"] == 1
    assert stored["cases"][0]["images"] == {"PT": "../data/a/pet.nii"}
    (tmp_path / "home").rename(tmp_path / "moved")
    manifest = read_manifest(tmp_path / "moved" / "lists" / "m.json")
    assert manifest.cases[0] == Case(
        "a",
        {"PT": tmp_path / "moved/data/a/pet.nii"},
        tmp_path / "moved/data/a/mask.nii",
        "train",
        "patient 1",
    )
    assert manifest.split("train") == manifest.cases
    assert manifest.split("test") == ()


def test_a_manifest_in_a_linked_folder_still_finds_its_data(tmp_path):
    data = touch(tmp_path / "data", "pet.nii")
    (tmp_path / "far" / "away").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "far" / "away")
    (tmp_path / "far" / "ct.nii").touch()
    images = {"PT": data / "pet.nii", "CT": tmp_path / "link" / ".." / "ct.nii"}  # the CT lies in far/
    write_manifest(tmp_path / "link" / "m.json", [Case("a", images)])
    for way in ("link", "far/away"):
        read = read_manifest(tmp_path / way / "m.json").cases[0].images
        assert read["PT"].samefile(data / "pet.nii")
        assert read["CT"].samefile(tmp_path / "far" / "ct.nii")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "line 1 is not valid JSON"),
        ([], "is not a manifest"),
        ({"training": []}, "is not a manifest"),
        ({"version": 2, "cases": []}, "manifest version 2"),
        ({"version": 1, "cases": [{"images": {}}]}, "entry 0: has no 'id'"),
        ({"version": 1, "cases": [entry(images={})]}, "case a has no 'images'"),
        ({"version": 1, "cases": [entry(id="x/y")]}, "must not contain /"),
        ({"version": 1, "cases": [entry(id="..")]}, "must not contain /"),
        ({"version": 1, "cases": [entry(images={"PT": "a\0b"})]}, "image path that is not text"),
        ({"version": 1, "cases": [entry(images={"MR": "x"})]}, "unknown modality ['MR']"),
        ({"version": 1, "cases": [entry(images={"PT": 3})]}, "image path that is not text"),
        ({"version": 1, "cases": [entry(lable="x")]}, "unknown fields ['lable']"),
        ({"version": 1, "cases": [entry(group=7)]}, "group 7, expected text or null"),
        ({"version": 1, "cases": [entry(split=1), "x"]}, "2 wrong entries: entry 0: case a has split 1"),
    ],
)
def test_a_manifest_of_another_form_is_refused_in_one_line(tmp_path, content, message):
    path = write(tmp_path / "m.json", content)
    with pytest.raises(InputError) as error:
        read_manifest(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f"{path}: ")


def test_a_missing_manifest_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_manifest(tmp_path / "none.json")


# nnU-Net


@pytest.fixture
def nnunet(tmp_path) -> Path:
    return touch(
        tmp_path / "Dataset221",
        "imagesTr/psma_0a1_2020_0000.nii.gz",
        "imagesTr/psma_0a1_2020_0001.nii.gz",
        "imagesTr/psma_0a1_2021_0001.nii.gz",  # its CT is missing, which is allowed
        "imagesTr/.hidden_0000.nii.gz",
        "labelsTr/psma_0a1_2020.nii.gz",
        "labelsTr/psma_0a1_2021.nii.gz",
        "imagesTs/psma_0b2_2020_0000.nii.gz",
        "imagesTs/psma_0b2_2020_0001.nii.gz",
    )


def test_nnunet_folder_as_autopet_publishes_it(nnunet):
    assert guess_form(nnunet) == "nnunet"
    first, second, third = from_nnunet(nnunet)
    assert first == Case(
        "psma_0a1_2020",
        {
            "PT": nnunet / "imagesTr/psma_0a1_2020_0001.nii.gz",
            "CT": nnunet / "imagesTr/psma_0a1_2020_0000.nii.gz",
        },
        nnunet / "labelsTr/psma_0a1_2020.nii.gz",
    )
    assert (second.id, list(second.images), second.split) == ("psma_0a1_2021", ["PT"], None)
    assert (third.id, list(third.images), third.label, third.split) == (
        "psma_0b2_2020",
        ["PT", "CT"],
        None,
        "test",
    )
    assert [case.group for case in with_groups([first, second, third])] == [
        "psma_0a1",
        "psma_0a1",
        "psma_0b2",
    ]


def test_nnunet_channel_names_are_taken_from_dataset_json_or_the_user(nnunet):
    write(nnunet / "dataset.json", {"channel_names": {"0": "PET", "1": "CT"}})
    with pytest.raises(InputError, match="psma_0a1_2021 has no PT"):
        from_nnunet(nnunet)
    write(nnunet / "dataset.json", {"channel_names": {"0": "CT", "1": "CT"}})
    with pytest.raises(InputError, match=r"do not show which is PET .* --channels CT,PT"):
        from_nnunet(nnunet)
    assert from_nnunet(nnunet, ["CT", "PT"])[0].images["PT"].name == "psma_0a1_2020_0001.nii.gz"
    assert list(from_nnunet(nnunet, ["-", "PT"])[0].images) == ["PT"]
    with pytest.raises(InputError, match="expected each of"):
        from_nnunet(nnunet, ["CT", "MR"])


def test_nnunet_problems_are_listed_all_at_once(nnunet):
    (nnunet / "labelsTr/psma_0a1_2020.nii.gz").unlink()
    touch(nnunet, "labelsTr/lost.nii.gz", "imagesTr/nochannel.nii.gz", "imagesTr/psma_0a1_2020_0002.nii.gz")
    with pytest.raises(InputError) as error:
        from_nnunet(nnunet)
    for part in (
        "4 problems",
        "psma_0a1_2020 has no label",
        "lost.nii.gz has no image",
        "nochannel.nii.gz has no channel number",
        "is channel 2",
    ):
        assert part in str(error.value)


def test_nnunet_folders_hold_other_formats_too(tmp_path):
    folder = touch(tmp_path, "imagesTr/a_0001.nrrd", "imagesTr/b_0001.mha", "labelsTr/a.nrrd", "labelsTr/b.mha")
    cases = from_nnunet(folder)
    assert [(case.id, case.images["PT"].name, case.label.name) for case in cases] == [
        ("a", "a_0001.nrrd", "a.nrrd"),
        ("b", "b_0001.mha", "b.mha"),
    ]
    touch(tmp_path, "imagesTr/a_0001.nii.gz")
    with pytest.raises(InputError, match="imagesTr/a_0001 exists 2 times"):
        from_nnunet(folder)


# MONAI datalists


def test_monai_datalist_with_one_and_two_channels(tmp_path):
    touch(
        tmp_path,
        "a/pet.nii",
        "a/ct.nii",
        "a/seg.nii",
        "b/pet.nii",
        "b/ct.nii",
        "b/seg.nii",
        "c/pet.nii",
        "c/ct.nii",
    )
    content = {
        "training": [{"image": ["a/ct.nii", "a/pet.nii"], "label": "a/seg.nii", "group": "p1"}],
        "validation": [{"image": ["b/ct.nii", "b/pet.nii"], "label": "b/seg.nii", "id": "second"}],
        "testing": [{"image": ["c/ct.nii", "c/pet.nii"]}],
    }
    path = write(tmp_path / "list.json", content)
    with pytest.raises(
        InputError, match=r"training\[0\] has 2 images; name their modalities, such as --channels CT,PT"
    ):
        from_monai(path)
    train, val, test = from_monai(path, ["CT", "PT"])
    assert train == Case(
        "a_pet",
        {"PT": tmp_path / "a/pet.nii", "CT": tmp_path / "a/ct.nii"},
        tmp_path / "a/seg.nii",
        "train",
        "p1",
    )
    assert (val.id, val.split) == ("second", "val")
    assert (test.id, test.split, test.label) == ("c_pet", "test", None)


def test_monai_single_images_folds_and_plain_paths(tmp_path):
    touch(tmp_path, "x_0000.nii.gz", "x_seg.nii.gz", "y.nii.gz", "y_seg.nii.gz", "z.nii.gz")
    content = {
        "training": [
            {"image": "x_0000.nii.gz", "label": "x_seg.nii.gz", "fold": 0},
            {"image": "y.nii.gz", "label": "y_seg.nii.gz", "fold": 1},
        ],
        "test": ["z.nii.gz"],
    }
    path = write(tmp_path / "list.json", content)
    assert [(c.id, c.split) for c in from_monai(path)] == [("x", None), ("y", None), ("z", "test")]
    assert [(c.id, c.split) for c in from_monai(path, fold=1)] == [
        ("x", "train"),
        ("y", "val"),
        ("z", "test"),
    ]
    assert from_monai(path)[0].images == {"PT": tmp_path / "x_0000.nii.gz"}
    write(path, content | {"modality": {"0": "CT"}})
    assert list(from_monai(path)[0].images) == ["CT"]
    with pytest.raises(InputError, match="no entry has fold 5"):
        from_monai(path, fold=5)


def test_monai_wrong_entries_and_files_are_listed_all_at_once(tmp_path):
    path = write(tmp_path / "list.json", {"training": [{"label": "x"}, {"image": ["a", "b"]}, {"image": 3}]})
    with pytest.raises(InputError, match=r"3 wrong entries: training\[0\].*training\[1\].*training\[2\]"):
        from_monai(path)
    write(path, {"training": [{"image": "gone1.nii", "label": "gone2.nii"}, {"image": "gone3.nii"}]})
    with pytest.raises(InputError, match=r"3 files do not exist: .*gone1.nii; .*gone2.nii; .*gone3.nii"):
        from_monai(path)
    with pytest.raises(InputError, match="is not a datalist"):
        from_monai(write(path, {"numTraining": 3}))


# CSV


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv(tmp_path, separator, caplog):
    touch(tmp_path, "a.nii", "a_ct.nii", "a_seg.nii", "b.nii")
    rows = [
        ["id", "PET", "CT", "Label", "split", "group", "age"],
        ["a", "a.nii", "a_ct.nii", "a_seg.nii", "train", "p1", "70"],
        ["b", "b.nii", "", "", "", "", "71"],
    ]
    path = tmp_path / "cases.csv"
    path.write_text("\ufeff" + "\r\n".join(separator.join(row) for row in rows))  # as Excel saves it
    with caplog.at_level(logging.WARNING):
        first, second = from_csv(path)
    assert first == Case(
        "a", {"PT": tmp_path / "a.nii", "CT": tmp_path / "a_ct.nii"}, tmp_path / "a_seg.nii", "train", "p1"
    )
    assert second == Case("b", {"PT": tmp_path / "b.nii"})
    assert "columns not used: age" in caplog.text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,PT\na,a.nii\n", "columns ['name', 'PT']; expected id"),
        ("id,label\na,a.nii\n", "expected id, PT and/or CT"),
        ("id,PT\n", "expected id, PT and/or CT"),
        ("id,PT,PET\na,a.nii,a.nii\n", "expected id, PT and/or CT"),
        ("id,PT,split\na,a.nii,valid\n,a.nii,\n", "2 wrong lines: line 2 has split 'valid'"),
        ("id,PT\na,a.nii\na,a.nii\n", "1 id is not unique: a"),
        ("id,PT\na,gone.nii\n", "1 file does not exist"),
    ],
)
def test_csv_mistakes(tmp_path, text, message):
    touch(tmp_path, "a.nii")
    with pytest.raises(InputError) as error:
        from_csv(write(tmp_path / "cases.csv", text))
    assert message in str(error.value)


# patterns of folders


def test_folders_with_optional_ct(tmp_path):
    touch(
        tmp_path,
        "s1/PET.nii.gz",
        "s1/mask.nii.gz",
        "s1/CT.nii.gz",
        "s2/PET.nii.gz",
        "s2/mask.nii.gz",
        "notes.txt",
    )
    cases = from_folders(tmp_path, "{id}/PET.nii.gz", "{id}/mask.nii.gz", "{id}/CT.nii.gz")
    assert cases == [
        Case(
            "s1",
            {"PT": tmp_path / "s1/PET.nii.gz", "CT": tmp_path / "s1/CT.nii.gz"},
            tmp_path / "s1/mask.nii.gz",
        ),
        Case("s2", {"PT": tmp_path / "s2/PET.nii.gz"}, tmp_path / "s2/mask.nii.gz"),
    ]


def test_folders_of_patients_with_several_studies(tmp_path):
    touch(
        tmp_path,
        "p1/d1/SUV.nii",
        "p1/d1/SEG.nii",
        "p1/d2/SUV.nii",
        "p1/d2/SEG.nii",
        "p2/d3/SUV.nii",
        "p2/d3/SEG.nii",
    )
    cases = from_folders(tmp_path, "{group}/{id}/SUV.nii", "{group}/{id}/SEG.nii")
    assert [(case.id, case.group) for case in cases] == [("d1", "p1"), ("d2", "p1"), ("d3", "p2")]
    cases = from_folders(tmp_path, "{id}/SUV.nii", "{id}/SEG.nii")  # one id over both folders
    assert [case.id for case in cases] == ["p1_d1", "p1_d2", "p2_d3"]
    assert [case.group for case in with_groups(cases, "(p.)_.*")] == ["p1", "p1", "p2"]


def test_a_repeated_placeholder_must_match_itself(tmp_path):
    touch(tmp_path, "a/a_pet.nii", "b/b_pet.nii", "b/a_pet.nii")
    assert [case.id for case in from_folders(tmp_path, "{id}/{id}_pet.nii")] == ["a", "b"]


def test_folder_mistakes(tmp_path):
    touch(tmp_path, "a/pet.nii", "b/pet.nii", "b/c/pet.nii")
    with pytest.raises(InputError, match=r"3 labels are missing: .*a/seg.nii; .*b/seg.nii; .*b/c/seg.nii"):
        from_folders(tmp_path, "{id}/pet.nii", "{id}/seg.nii")
    with pytest.raises(InputError, match="no file matches"):
        from_folders(tmp_path, "{id}/PET.nii")
    with pytest.raises(InputError, match=r"has no \{id\}"):
        from_folders(tmp_path, "pet.nii")
    with pytest.raises(InputError, match=r"\{name\} is unknown"):
        from_folders(tmp_path, "{name}/pet.nii")
    with pytest.raises(InputError, match="uses a placeholder"):
        from_folders(tmp_path, "{id}/pet.nii", "{group}/{id}/seg.nii")
    with pytest.raises(InputError, match="no case has a CT"):
        from_folders(tmp_path, "{id}/pet.nii", None, "{id}/ct.nii")
    touch(tmp_path, "p1/x/SUV.nii", "p2/x/SUV.nii")
    with pytest.raises(InputError, match="1 id is not unique: x"):
        from_folders(tmp_path, "{group}/{id}/SUV.nii")


def test_group_pattern_mistakes():
    cases = [Case("a_1", {}), Case("b", {})]
    assert with_groups(cases) == cases
    with pytest.raises(InputError, match="1 id does not match: b"):
        with_groups(cases, "(.)_.")
    with pytest.raises(InputError, match="has no group"):
        with_groups(cases, ".*")
    with pytest.raises(InputError, match="group pattern"):
        with_groups(cases, "(")


def test_an_unknown_form_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="--pattern"):
        guess_form(tmp_path)
    with pytest.raises(InputError, match="no such file or folder"):
        guess_form(tmp_path / "none")
