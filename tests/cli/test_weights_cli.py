"""`weights fetch`, `inspect` and `convert`; fetch runs the hub's real client against a stand-in server."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import load_weights, read_state_dict
from sammed3d_ft.provenance import file_hash, state_hash
from tests.support.command import command
from tests.support.hub import Hub, Repo, client_environment, command_line, one_line, run_python, serving

CONTENT = bytes(range(256)) * (96 << 10)  # 24 MiB: the client writes pieces of 10
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving(Hub()) as server:
        server.repos["lab/weights"] = Repo(files={"sub/w.pth": CONTENT})
        yield server


def fetching(folder: Path, *options: str) -> str:
    """Python code that runs `weights fetch`."""
    source = ("--repo", "lab/weights", "--file", "sub/w.pth", "--out", folder / "w.pth")
    return command_line("weights", "fetch", *source, *options)


def fetch(endpoint: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    show_progress = {"TQDM_POSITION": "-1"}  # without a terminal
    return run_python(fetching(folder, *options), endpoint, folder / "home", **show_progress)


def test_fetch_then_fetch_again(hub: Hub, tmp_path: Path) -> None:
    done = fetch(hub.url, tmp_path, "--sha256", DIGEST.upper())
    assert done.returncode == 0, done.stderr
    assert f"SHA-256 {DIGEST} as expected" in done.stdout
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert "100%" in done.stderr  # the progress bar
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["w.pth"]
    hub.shutdown()  # an existing file needs no hub
    again = fetch(hub.url, tmp_path)
    assert again.returncode == 0
    assert "already exists" in again.stdout
    assert DIGEST in again.stdout
    assert hub.ranges == [None]


@pytest.mark.skipif(
    int(version("huggingface_hub").split(".")[0]) < 1, reason="the client retries since 1.0; before, the user does"
)
def test_a_broken_connection_is_taken_up_again(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 13 << 20
    done = fetch(hub.url, tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert hub.ranges == [None, f"bytes={10 << 20}-", f"bytes={20 << 20}-"]


def test_a_killed_download_continues(hub: Hub, tmp_path: Path) -> None:
    hub.break_after = 13 << 20
    command, environment = [sys.executable, "-c", fetching(tmp_path)], client_environment(hub.url, tmp_path / "home")
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        assert hub.broken.wait(60)
        hub.break_after = 0  # all requests fail until the client is killed
        while not any(path.stat().st_size for path in tmp_path.glob(".w.pth.*.incomplete")):
            assert first.poll() is None
        first.kill()
    assert not (tmp_path / "w.pth").exists()
    (partial,) = tmp_path.glob(".w.pth.*.incomplete")
    received = partial.stat().st_size
    assert 0 < received < len(CONTENT)

    hub.break_after = None
    hub.ranges.clear()
    done = fetch(hub.url, tmp_path, "--sha256", DIGEST)
    assert done.returncode == 0, done.stderr
    assert hub.ranges == [f"bytes={received}-"]
    assert (tmp_path / "w.pth").read_bytes() == CONTENT
    assert not partial.exists()


@pytest.mark.parametrize("whose", ["--sha256 is", "the hub states"])
def test_a_wrong_checksum_is_refused(whose: str, hub: Hub, tmp_path: Path) -> None:
    options = []
    if whose == "--sha256 is":
        options = ["--sha256", "0" * 64]
    else:
        hub.stated = "0" * 64
    line = one_line(fetch(hub.url, tmp_path, *options))
    assert f"downloaded with SHA-256 {DIGEST}, but {whose} {'0' * 64}" in line
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_a_hub_out_of_reach_is_one_line_with_the_way_out(tmp_path: Path) -> None:
    line = one_line(fetch("http://127.0.0.1:9", tmp_path))
    assert "could not download sub/w.pth of lab/weights from the hub" in line
    assert f"place it at {tmp_path / 'w.pth'}" in line


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--file", "other.pth"], "check --file"),
        (["--repo", "lab/nothing"], "check --repo"),
        (["--revision", "v9"], "check --revision"),
        (["--sha256", "abc"], "expected 64 hexadecimal digits"),
    ],
)
def test_what_the_hub_does_not_know(options: list[str], said: str, hub: Hub, tmp_path: Path) -> None:
    assert said in one_line(fetch(hub.url, tmp_path, *options))


def test_source_and_licence_are_printed_before_the_download(tmp_path: Path) -> None:
    done = run_python(command_line("weights", "fetch", "seganypet_v2"), "http://127.0.0.1:9", tmp_path / "home")
    assert "place it at" in one_line(done)
    assert str(tmp_path / "weights" / "seganypet_v2.pth") in one_line(done)
    source, licence, trained = done.stdout.splitlines()
    assert source == "source: https://huggingface.co/YichiZhang98/SegAnyPET, seganypet_v2.pth, revision main"
    assert licence.startswith("licence: none stated by the authors")
    assert "11,041 PET scans" in trained


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["seganypet"], "unknown weights 'seganypet': expected sam_med3d_turbo, seganypet_v1"),
        (["seganypet_v1", "--repo", "lab/weights"], "either the name seganypet_v1 or --repo and --file"),
    ],
)
def test_a_wrong_name(options: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=said):
        command("weights", "fetch", *options)


def test_a_present_file_with_another_checksum(tmp_path: Path) -> None:
    (tmp_path / "w.pth").write_bytes(b"old")
    with pytest.raises(InputError, match="remove it first"):
        command("weights", "fetch", "--out", tmp_path / "w.pth", "--sha256", "0" * 64)
    assert (tmp_path / "w.pth").read_bytes() == b"old"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `mini` checkpoint in the layout of the published training code."""
    path = tmp_path_factory.mktemp("weights") / "mini.pth"
    state = seeded_model("mini", seed=1).state_dict()
    content = {"model_state_dict": {f"module.{n}": t for n, t in state.items()}, "epoch": 3, "best_dice": 0.5}
    torch.save(content, path)
    return path


def test_inspect(published: Path) -> None:
    printed = command("weights", "inspect", published)
    told = {
        cells[0].strip(): cells[1].strip()
        for line in printed.splitlines()
        if len(cells := re.split(r"[│┃|]", line.strip("│┃| "))) == 2
    }
    state = read_state_dict(published).state
    assert told["kind"] == "training checkpoint"
    assert told["variant"] == "mini"
    assert told["input channels"] == "1"
    assert told["tensors"] == f"{len(state)} ({len(state)} float32)"
    assert told["parameters"] == f"{sum(t.numel() for t in state.values()):,}"
    decoder = sum(t.numel() for name, t in state.items() if name.startswith("mask_decoder."))
    assert told["mask_decoder"] == f"{decoder:,}"
    assert told["other keys"] == "epoch, best_dice"
    assert f"SHA-256 of file {file_hash(published)}\n" in printed
    assert f"hash of tensors {state_hash(state)}\n" in printed


def test_inspect_a_foreign_file(tmp_path: Path) -> None:
    torch.save({f"model.{n}.weight": torch.ones(2) for n in range(3)}, tmp_path / "cnn.pth")
    assert "unknown" in command("weights", "inspect", tmp_path / "cnn.pth")


def test_convert(published: Path, tmp_path: Path) -> None:
    out = tmp_path / "sub" / "mini.safetensors"
    told = command("weights", "convert", published, out)
    assert file_hash(out) in told
    found = read_state_dict(out)
    assert state_hash(found.state) == state_hash(read_state_dict(published).state)
    assert found.metadata == {
        "variant": "mini",
        "converted_from": "mini.pth",
        "converted_from_sha256": file_hash(published),
    }
    load_weights(seeded_model("mini", seed=2), out)

    for target, said in ((out, "already exists"), (tmp_path / "x.pth", "must end in .safetensors")):
        with pytest.raises(InputError, match=said):
            command("weights", "convert", published, target)


def test_convert_refuses_what_is_no_sam_med3d(tmp_path: Path) -> None:
    torch.save({"model.0.weight": torch.ones(4, 1, 3, 3, 3)}, tmp_path / "cnn.pth")
    with pytest.raises(InputError, match="looks like a CNN checkpoint"):
        command("weights", "convert", tmp_path / "cnn.pth", tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()
