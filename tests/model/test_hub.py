"""`hub:owner/name` and `push_to_hub`, by the hub's real client against a stand-in server."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.model.hub import local_copy
from sammed3d_ft.model.push import push_to_hub
from sammed3d_ft.model.weights import save_safetensors
from sammed3d_ft.prompted.pretrained import open_pretrained
from sammed3d_ft.prompted.task import PromptedTask
from sammed3d_ft.provenance import state_hash
from sammed3d_ft.recipes.train import load_config
from tests.support.hub import TOKEN, Hub, Repo, command_line, one_line, run_python, serving
from tests.support.tiny_cases import write_cohort
from tests.support.training_runs import config_file

# What is loaded, in one line of JSON.
OPEN = """
import json, sys
from sammed3d_ft.prompted.pretrained import open_pretrained
from sammed3d_ft.provenance import state_hash
found = open_pretrained({path!r}, {base!r})
print(json.dumps([state_hash(found.model.state_dict()), found.preprocessing.to_json(), found.accumulate]))
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as server:
        yield server


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export folder of a LoRA run from `mini`: model.safetensors and the adapter, its weights not zero."""
    folder = tmp_path_factory.mktemp("run")
    manifest = write_cohort(folder / "data", 1, 1, 0)
    config = load_config(
        config_file(folder / "run", manifest, "lora"),
        ["model.weights=mini", "model.spacing_mm=2.5", "clicks.accumulate=false"],
    )
    task = PromptedTask(config, read_manifest(manifest))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in task.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02)
    task.export(folder / "export", {})
    return folder / "export"


def told(path: Path, base: str | None = None) -> list[object]:
    found = open_pretrained(path, base)
    return [state_hash(found.model.state_dict()), found.preprocessing.to_json(), found.accumulate]


def test_an_export_goes_up_and_comes_back(hub: Hub, export: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    done = run_python(command_line("weights", "push", export, "lab/mini-psma", "--private"), hub.url, home, TOKEN)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["lab/mini-psma"]
    assert done.stdout.splitlines() == [f"{hub.url}/lab/mini-psma/commit/{repo.commit}", "use it as hub:lab/mini-psma"]
    assert repo.private
    assert sorted(repo.files) == ["README.md", "model.safetensors"]
    assert repo.files["model.safetensors"] == (export / "model.safetensors").read_bytes()
    card = repo.files["README.md"].decode()
    assert "library_name: sammed3d-ft" in card
    assert "- accumulated clicks: false" in card
    assert "--checkpoint hub:lab/mini-psma" in card

    # A card that somebody wrote stays.
    repo.files["README.md"] = b"ours"
    again = f"import sammed3d_ft; sammed3d_ft.push_to_hub({str(export / 'model.safetensors')!r}, 'lab/mini-psma')"
    code = OPEN.format(path="hub:lab/mini-psma", base=None)
    there = run_python(again + code, hub.url, home, TOKEN)
    assert there.returncode == 0, there.stderr
    assert repo.files["README.md"] == b"ours"
    assert json.loads(there.stdout) == told(export / "model.safetensors")
    assert hub.downloads == ["model.safetensors"]
    offline = run_python(code, "http://127.0.0.1:9", home, TOKEN)  # from the cache
    assert json.loads(offline.stdout) == json.loads(there.stdout)


def test_an_adapter_goes_up_and_comes_back(hub: Hub, export: Path, tmp_path: Path) -> None:
    code = f"import sammed3d_ft; print(sammed3d_ft.push_to_hub({str(export / 'adapter')!r}, 'lab/adapter'))"
    done = run_python(code, hub.url, tmp_path / "home", TOKEN)
    assert done.returncode == 0, done.stderr
    repo = hub.repos["lab/adapter"]
    assert not repo.private
    assert sorted(repo.files) == ["README.md", *sorted(path.name for path in (export / "adapter").iterdir())]
    assert "--base BASE_WEIGHTS" in repo.files["README.md"].decode()
    repo.files["optimizer.safetensors"] = b"is not downloaded"
    there = run_python(OPEN.format(path="hub:lab/adapter@main", base="mini"), hub.url, tmp_path / "home")
    assert there.returncode == 0, there.stderr
    assert json.loads(there.stdout) == told(export / "adapter", "mini")
    assert "optimizer.safetensors" not in hub.downloads


def refusals(call: str, asked: list[tuple[str, str | None]], hub: Hub, home: Path) -> list[str]:
    """What a call (an expression of `name`) refuses with, for each name and token; one process for all."""
    code = f"""
import json, os
from sammed3d_ft.errors import InputError
from sammed3d_ft.model.hub import local_copy
from sammed3d_ft.model.push import push_to_hub
told = []
for name, token in {asked!r}:
    os.environ.pop("HF_TOKEN", None)
    os.environ.update({{"HF_TOKEN": token}} if token else {{}})
    try:
        told.append("went through: " + str({call}))
    except InputError as error:
        told.append(str(error))
print(json.dumps(told))
"""
    done = run_python(code, hub.url, home)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_what_cannot_be_downloaded(hub: Hub, tmp_path: Path) -> None:
    hub.repos = {"lab/secret": Repo(True, {"model.safetensors": b""}), "lab/other": Repo(False, {"weights.pth": b"x"})}
    absent = "was not found on the hub: check the name; if it is private, set HF_TOKEN"
    expected = {
        ("hub:lab/none", TOKEN): f"lab/none {absent}",
        ("hub:lab/secret", None): f"lab/secret {absent}",
        ("hub:lab/other@v9", None): "lab/other on the hub has no revision v9: check the branch, tag or commit",
        ("hub:lab/other", None): "lab/other on the hub holds neither an export (model.safetensors) nor a LoRA adapter",
    }
    told = refusals("local_copy(name)", list(expected), hub, tmp_path / "home")
    for line, said in zip(told, expected.values(), strict=True):
        assert line.startswith(said)


def test_what_cannot_be_uploaded(hub: Hub, export: Path, tmp_path: Path) -> None:
    expected = {
        ("lab/new", None): "no token for the hub: set HF_TOKEN, or run `hf auth login`",
        (
            "lab/new",
            "hf_wrong",
        ): "the hub refused access to lab/new: the token (HF_TOKEN or `hf auth login`) is invalid",
        ("others/new", TOKEN): "the hub refused access to others/new: the token",
    }
    told = refusals(f"push_to_hub({str(export)!r}, name)", list(expected), hub, tmp_path / "home")
    for line, said in zip(told, expected.values(), strict=True):
        assert line.startswith(said)
    assert hub.repos == {}


def test_without_a_network(export: Path, tmp_path: Path) -> None:
    nowhere, home = "http://127.0.0.1:9", tmp_path / "home"
    for words in (("inspect", "hub:lab/model"), ("push", export, "lab/model")):
        line = one_line(run_python(command_line("weights", *words), nowhere, home, TOKEN))
        assert line.startswith("error: the hub could not be used for lab/model (")
        assert line.endswith("check the network and HF_ENDPOINT")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), RuntimeError("Data processing error: No space left on device")],
)
def test_a_full_disk_is_named(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("huggingface_hub.snapshot_download", full)
    with pytest.raises(InputError, match="^the disk is full: lab/model needs more space in .*HF_HOME"):
        local_copy("hub:lab/model")


@pytest.mark.parametrize("name", ["hub:", "hub:mini", "hub:a/b/c", "hub:a b/c", "hub:../x"])
def test_a_name_that_is_no_repository(name: str) -> None:
    with pytest.raises(InputError, match="is not a repository on the hub: expected owner/name"):
        local_copy(name)


def test_only_exports_and_adapters_are_uploaded(export: Path, tmp_path: Path) -> None:
    save_safetensors(tmp_path / "bare.safetensors", {"a": torch.ones(1)}, {})
    shutil.copytree(export / "adapter", tmp_path / "adapter")
    (tmp_path / "adapter" / "decoder.safetensors").unlink()
    for path, said in (
        (tmp_path / "bare.safetensors", "is neither an export nor a LoRA adapter"),
        (tmp_path / "missing", "is neither an export nor a LoRA adapter"),
        (tmp_path / "adapter", "decoder.safetensors is missing"),
    ):
        with pytest.raises(InputError, match=said):
            push_to_hub(path, "lab/new")
    with pytest.raises(InputError, match="expected owner/name"):
        push_to_hub(export, "new")
