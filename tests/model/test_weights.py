"""Reading, loading, hashing and writing weights: every format, every kind of invalid file, hostile pickles."""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import pickle
import stat
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.build import build_model, seeded_model
from sammed3d_ft.model.sam_med3d import SAMMed3D
from sammed3d_ft.model.variants import VARIANTS
from sammed3d_ft.model.weight_fit import PATCH_WEIGHT, describe_misfit, recognise_variant
from sammed3d_ft.model.weights import load_weights, read_state_dict, read_whole_model, save_safetensors
from sammed3d_ft.provenance import file_hash, state_hash
from tests.support.published_files import published_layout

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def model() -> SAMMed3D:
    return seeded_model("mini", seed=1)


@pytest.fixture(scope="module")
def state(model: SAMMed3D) -> State:
    return dict(model.state_dict())


def shapes_of(variant: str, in_channels: int = 1) -> dict[str, torch.Size]:
    with torch.device("meta"):
        built = SAMMed3D(VARIANTS[variant], in_channels)
    return {name: tensor.shape for name, tensor in built.state_dict().items()}


def on_meta(shapes: dict[str, torch.Size]) -> State:
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def write_published(path: Path, state: State) -> None:
    torch.save(published_layout(state), path)


def write_bare(path: Path, state: State) -> None:
    torch.save(state, path)


def write_old_form(path: Path, state: State) -> None:
    torch.save(published_layout(state), path, _use_new_zipfile_serialization=False)


def write_compiled(path: Path, state: State) -> None:
    torch.save({"state_dict": {f"module._orig_mod.{name}": t for name, t in state.items()}, "epoch": 1}, path)


def write_safetensors(path: Path, state: State) -> None:
    save_file(state, path)


def write_export(path: Path, state: State) -> None:
    save_safetensors(path, state, {"variant": "mini", "spacing_mm": "3.0"})


FORMS = {
    write_published: "training checkpoint",
    write_bare: "state dict",
    write_old_form: "training checkpoint",
    write_compiled: "training checkpoint",
    write_safetensors: "safetensors",
    write_export: "export",
}


@pytest.mark.parametrize("write", FORMS, ids=lambda f: f.__name__)
def test_every_form_loads(write: Callable[[Path, State], None], tmp_path: Path, state: State) -> None:
    path = tmp_path / "weights.bin"  # recognised by content, not by suffix
    write(path, state)
    target = seeded_model("mini", seed=2)
    assert not torch.equal(target.state_dict()[PATCH_WEIGHT], state[PATCH_WEIGHT])
    report = load_weights(target, path)
    for name, tensor in target.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert report.kind == FORMS[write]
    assert report.tensors == len(state)
    assert report.zero_initialised == ()


def test_what_lies_beside_published_tensors_is_reported(tmp_path: Path, state: State) -> None:
    write_published(tmp_path / "a.pth", state)
    found = read_state_dict(tmp_path / "a.pth")
    assert set(found.extra_keys) == set(published_layout(state)) - {"model_state_dict"}
    assert set(found.state) == set(state)


def test_export_folder_and_its_metadata(tmp_path: Path, state: State) -> None:
    write_export(tmp_path / "model.safetensors", state)
    found = read_state_dict(tmp_path)
    assert found.kind == "export"
    assert found.metadata == {"variant": "mini", "spacing_mm": "3.0"}
    save_file({"x": torch.ones(1)}, tmp_path / "plain.safetensors", metadata={"format": "pt"})
    assert read_state_dict(tmp_path / "plain.safetensors").metadata == {"format": "pt"}
    with pytest.raises(InputError, match=r"expected one .safetensors file in it, found model.* plain.*"):
        read_state_dict(tmp_path)


def test_half_precision_file_fills_a_float32_model(tmp_path: Path, state: State) -> None:
    torch.save({name: tensor.half() for name, tensor in state.items()}, tmp_path / "half.pth")
    target = seeded_model("mini", seed=2)
    load_weights(target, tmp_path / "half.pth")
    assert target.state_dict()[PATCH_WEIGHT].dtype == torch.float32
    assert torch.equal(target.state_dict()[PATCH_WEIGHT], state[PATCH_WEIGHT].half().float())


class Hostile:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def hostile_files(folder: Path, state: State, trap: Path) -> dict[str, Path]:
    bad = Hostile(trap)
    contents = {
        "alone": bad,
        "among tensors": {**state, "extra": bad},
        "in the namespace": published_layout(state, args=argparse.Namespace(a=bad)),
        "beside tensors": published_layout(state, losses=[bad]),
    }
    files = {}
    for number, (name, content) in enumerate(contents.items()):
        for zipped in (True, False):
            path = folder / f"{number}{zipped}.pth"
            torch.save(content, path, _use_new_zipfile_serialization=zipped)
            files[f"{name}, {'zip' if zipped else 'old form'}"] = path
    for protocol in (0, 2, 4):
        path = folder / f"plain{protocol}.pkl"
        path.write_bytes(pickle.dumps({"a": bad}, protocol=protocol))
        files[f"plain pickle {protocol}"] = path
    return files


def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, state: State) -> None:
    trap = tmp_path / "trap"
    files = hostile_files(tmp_path, state, trap)
    assert len(files) == 11
    for name, path in files.items():
        with pytest.raises(InputError) as caught:
            read_state_dict(path)
        message = str(caught.value)
        assert str(path) in message, name
        if "plain" not in name:
            assert f"refers to {os.mkdir.__module__}.mkdir" in message, name
        assert not trap.exists(), name
    # The trap works if code is run.
    torch.load(tmp_path / "0True.pth", weights_only=False)
    assert trap.is_dir()


def test_the_list_of_harmless_names_is_not_left_behind(tmp_path: Path, state: State) -> None:
    before = set(torch.serialization.get_safe_globals())
    write_published(tmp_path / "a.pth", state)
    read_state_dict(tmp_path / "a.pth")
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="Unsupported global"):
        torch.load(tmp_path / "a.pth", weights_only=True)


def wrong_file(kind: str, folder: Path, state: State) -> Path:
    path = folder / f"{kind}.pth"
    if kind == "missing":
        return path
    if kind in ("truncated zip", "truncated old form", "truncated safetensors", "safetensors header"):
        writer = {"truncated zip": write_bare, "truncated old form": write_old_form}.get(kind, write_safetensors)
        writer(path, state)
        whole = path.read_bytes()
        path.write_bytes(whole[: 100 if kind == "safetensors header" else len(whole) // 2])
    elif kind == "adapter folder":
        path.mkdir()
        (path / "adapter_config.json").write_text("{}")
        save_file({"base_model.lora_A.weight": torch.ones(2)}, path / "adapter_model.safetensors")
    elif kind == "bare folder":
        path.mkdir()
    elif kind in ("tensor", "no tensors", "nothing"):
        torch.save({"tensor": torch.ones(3), "no tensors": {"epoch": 3, "lr": 0.1}, "nothing": {}}[kind], path)
    else:
        path.write_bytes(
            {
                "empty": b"",
                "web page": b"<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>",
                "lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 402\n",
                "gzip": gzip.compress(b"weights"),
                "json": b'{"image_encoder": 1}',
                "text": b"not weights at all",
            }[kind]
        )
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("missing", "no weights at"),
        ("empty", "it is empty"),
        ("web page", "a web page saved under that name"),
        ("lfs pointer", "a git-lfs pointer; run `git lfs pull`"),
        ("gzip", "compressed with gzip"),
        ("json", "a JSON file"),
        ("text", "neither by torch.save nor as safetensors"),
        ("truncated zip", "damaged or truncated checkpoint"),
        ("truncated old form", "damaged or truncated checkpoint"),
        ("truncated safetensors", "damaged or truncated safetensors file"),
        ("safetensors header", "cut off in its header"),
        ("adapter folder", "is a LoRA adapter"),
        ("bare folder", "expected one .safetensors file in it, found none"),
        ("tensor", "holds a Tensor; expected tensors by name"),
        ("no tensors", "it holds epoch, lr instead"),
        ("nothing", "it holds nothing"),
    ],
)
def test_each_wrong_file_is_one_clear_line(kind: str, said: str, tmp_path: Path, state: State) -> None:
    path = wrong_file(kind, tmp_path, state)
    with pytest.raises(InputError) as caught:
        read_state_dict(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 500


def test_an_odd_stream_that_can_be_read_gives_no_warning(tmp_path: Path, state: State) -> None:
    path = tmp_path / "odd.pth"
    write_old_form(path, state)
    whole = path.read_bytes()
    assert whole[:2] == b"\x80\x02"  # the pickle protocol
    path.write_bytes(b"\x80\x22" + whole[2:])
    warnings.simplefilter("error")  # pytest restores the filters after the test
    assert state_hash(read_state_dict(path).state) == state_hash(state)


def test_missing_unexpected_and_misshapen_names_by_group(tmp_path: Path, model: SAMMed3D, state: State) -> None:
    broken = dict(state)
    for name in list(broken):
        if name.startswith("image_encoder.blocks.0.mlp"):
            del broken[name]
    broken["mask_decoder.extra.weight"] = torch.ones(1)
    broken["image_encoder.neck.9.weight"] = torch.ones(1)
    broken["image_encoder.neck.9.bias"] = torch.ones(1)
    positions = "image_encoder.pos_embed"
    broken[positions] = broken[positions][..., :-1]
    torch.save(broken, tmp_path / "broken.pth")
    before = state_hash(model.state_dict())
    with pytest.raises(InputError) as caught:
        load_weights(model, tmp_path / "broken.pth")
    message = str(caught.value)
    width = state[positions].shape[-1]
    assert f"of its {len(state)} tensors, 4 missing (image_encoder.blocks.* 4, such as" in message
    assert "3 unexpected (mask_decoder.extra.weight, image_encoder.neck.* 2, such as" in message
    assert f"1 with another shape ({positions} (1, 8, 8, 8, {width - 1}) where the model has (1, 8, 8, 8" in message
    assert state_hash(model.state_dict()) == before


def cnn_state() -> State:
    return {
        "model.0.conv.unit0.conv.weight": torch.ones(4, 1, 3, 3, 3),
        "model.0.conv.unit0.conv.bias": torch.ones(4),
    }


def hinted_states() -> dict[str, tuple[State, str]]:
    published = on_meta(shapes_of("vit_b_ori"))
    mini = on_meta(shapes_of("mini"))
    encoder = {n.removeprefix("image_encoder."): t for n, t in mini.items() if n.startswith("image_encoder.")}
    lora = {"base_model.model.image_encoder.blocks.0.attn.qkv.lora_A.weight": torch.ones(8, 192)}
    flat = {PATCH_WEIGHT: torch.ones(768, 3, 16, 16), "image_encoder.pos_embed": torch.ones(1, 64, 64, 768)}
    two = on_meta(shapes_of("mini", in_channels=2))
    part = {name: tensor for name, tensor in mini.items() if "mask_decoder" not in name}
    return {
        "other variant": (published, "it holds the variant vit_b_ori, but the model is mini"),
        "adapter": (lora, "looks like a LoRA adapter: use its base checkpoint here"),
        "2D SAM": (flat, "looks like weights of the 2D SAM"),
        "CNN": (cnn_state(), "looks like a CNN checkpoint"),
        "encoder alone": (encoder, "only one part of the model"),
        "two channels": (two, "has 2 input channels (PET and CT): build the model with in_channels=2"),
        "without decoder": (part, "its encoder is that of mini, but other tensors are missing"),
    }


@pytest.mark.parametrize("case", hinted_states())
def test_misfits_are_explained(case: str) -> None:
    state, hint = hinted_states()[case]
    message = describe_misfit(state, shapes_of("mini"))
    assert message is not None
    assert hint in message
    assert "\n" not in message
    assert len(message) < 1200


def test_variants_are_recognised() -> None:
    for name in VARIANTS:
        for channels in (1, 2):
            assert recognise_variant(on_meta(shapes_of(name, channels))) == name
    assert recognise_variant(cnn_state()) is None
    assert describe_misfit(on_meta(shapes_of("mini")), shapes_of("mini")) is None


def test_one_channel_weights_in_a_two_channel_model(tmp_path: Path, state: State, model: SAMMed3D) -> None:
    write_bare(tmp_path / "one.pth", state)
    both = seeded_model("mini", seed=2, in_channels=2)
    report = load_weights(both, tmp_path / "one.pth")
    assert report.zero_initialised == (f"{PATCH_WEIGHT}[:, 1] (second input channel)",)
    patch = both.state_dict()[PATCH_WEIGHT]
    assert torch.equal(patch[:, :1], state[PATCH_WEIGHT])
    assert not patch[:, 1].any()
    images = torch.randn(1, 2, 64, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(both.image_encoder(images), model.image_encoder(images[:, :1]))

    # Its own weights load completely, and a one-channel model refuses them.
    both.state_dict()[PATCH_WEIGHT][:, 1] = 3.0
    save_safetensors(tmp_path / "two.safetensors", both.state_dict(), {})
    again = seeded_model("mini", seed=3, in_channels=2)
    assert load_weights(again, tmp_path / "two.safetensors").zero_initialised == ()
    assert torch.equal(again.state_dict()[PATCH_WEIGHT], both.state_dict()[PATCH_WEIGHT])
    with pytest.raises(InputError, match="in_channels=2"):
        load_weights(seeded_model("mini", seed=3), tmp_path / "two.safetensors")


def test_whole_models_are_named(tmp_path: Path, state: State) -> None:
    write_published(tmp_path / "a.pth", state)
    name, found = read_whole_model(tmp_path / "a.pth")
    assert name == "mini"
    assert state_hash(found.state) == state_hash(state)
    torch.save(cnn_state(), tmp_path / "cnn.pth")
    with pytest.raises(InputError, match="does not hold a complete SAM-Med3D"):
        read_whole_model(tmp_path / "cnn.pth")


def test_equal_content_gives_equal_bytes(tmp_path: Path, state: State) -> None:
    metadata = {f"key {n}": str(n) for n in range(9)}
    backwards = dict(reversed(metadata.items()))
    save_safetensors(tmp_path / "a" / "b.safetensors", state, metadata)
    save_safetensors(tmp_path / "c.safetensors", dict(reversed(state.items())), backwards)
    assert file_hash(tmp_path / "a" / "b.safetensors") == file_hash(tmp_path / "c.safetensors")
    assert read_state_dict(tmp_path / "c.safetensors").metadata == metadata


def test_shared_memory_and_views_are_written(tmp_path: Path) -> None:
    table = torch.arange(6.0).view(2, 3)
    save_safetensors(tmp_path / "a.safetensors", {"a": table, "b": table, "c": table.t()}, {})
    found = read_state_dict(tmp_path / "a.safetensors").state
    assert torch.equal(found["b"], table)
    assert torch.equal(found["c"], table.t())


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, state: State, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"x": torch.ones(2)}, {})
    before = path.read_bytes()

    real = Path.write_bytes

    def full_disk(name: Path, content: bytes) -> int:
        real(name, content[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(InputError, match="a.safetensors: cannot be written .No space left"):
        save_safetensors(path, state, {})
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


@pytest.mark.skipif(os.name != "posix", reason="file modes are POSIX")
def test_written_files_have_ordinary_rights(tmp_path: Path) -> None:
    (tmp_path / "ordinary").touch()
    save_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {})
    modes = [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("ordinary", "a.safetensors")]
    assert modes[0] == modes[1]


def test_file_hash() -> None:
    path = Path(__file__)
    assert file_hash(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_state_hash_is_what_it_says() -> None:
    state = {"b": torch.tensor([1.0, 2.0]), "a": torch.tensor(7, dtype=torch.int64)}
    content = b'["a", "torch.int64", []]' + np.int64(7).tobytes()
    content += b'["b", "torch.float32", [2]]' + np.array([1, 2], np.float32).tobytes()
    assert state_hash(state) == hashlib.sha256(content).hexdigest()


def test_state_hash_tells_every_difference(tmp_path: Path, state: State) -> None:
    name = "mask_decoder.iou_token.weight"
    other = {
        "order": dict(reversed(state.items())),
        "name": {("x" if key == name else key): value for key, value in state.items()},
        "value": {**state, name: state[name] + 1e-6},
        "shape": {**state, name: state[name].view(-1)},
        "type": {**state, name: state[name].bfloat16()},
    }
    hashes = {key: state_hash(value) for key, value in other.items()}
    assert hashes.pop("order") == state_hash(state)
    assert len({state_hash(state), *hashes.values()}) == 5
    write_published(tmp_path / "a.pth", state)
    assert state_hash(read_state_dict(tmp_path / "a.pth").state) == state_hash(state)


def test_metadata_is_json_in_one_key(tmp_path: Path) -> None:
    save_safetensors(tmp_path / "a.safetensors", {"x": torch.ones(2)}, {"variant": "mini", "modality": "PT"})
    raw = (tmp_path / "a.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert json.loads(header["__metadata__"]["sammed3d_ft"]) == {"variant": "mini", "modality": "PT"}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"a\nb": torch.ones(1)}, r"'a\\nb' is not the name of a tensor"),
        ({"a": torch.ones(1).expand(1 << 40)}, r"larger than their stored values \(a\)"),
        ({"a": torch.eye(3).to_sparse()}, "no tensors by name"),
    ],
)
def test_tensors_that_damage_can_make_are_refused(content: dict, says: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(InputError, match=says):
        read_state_dict(tmp_path / "x.pth")


def test_nan_weights_are_refused(tmp_path: Path) -> None:
    state = build_model("mini", "mini").state_dict()
    state["image_encoder.pos_embed"][0, 0, 0, 0, 0] = float("nan")
    save_safetensors(tmp_path / "x.safetensors", state, {})
    with pytest.raises(InputError, match=r"NaN or infinite weights \(image_encoder.pos_embed\)"):
        load_weights(build_model("mini"), tmp_path / "x.safetensors")
