"""Checkpoints, metrics.jsonl, and the optimiser's groups, state and schedule."""

from __future__ import annotations

import json
import math
import os
import pickle
import platform
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from sammed3d_ft.errors import InputError
from sammed3d_ft.model.adapters import configure_tuning
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.training import checkpoints
from sammed3d_ft.training.checkpoints import list_checkpoints, prune_checkpoints, read_checkpoint, save_checkpoint
from sammed3d_ft.training.metrics_log import MetricsLog
from sammed3d_ft.training.optimizer import (
    build_optimizer,
    load_optimizer_tensors,
    optimizer_tensors,
    schedule_factor,
    set_learning_rates,
)
from sammed3d_ft.training.run_lock import locked_run

MODEL = {"a.weight": torch.arange(6.0).reshape(2, 3)}


def save(folder: Path, step: int, model: dict[str, torch.Tensor] = MODEL) -> Path:
    return save_checkpoint(folder, step, model, {"a.weight/step": torch.tensor(3.0)}, {"step": step})


def test_a_checkpoint_comes_back_as_it_was(tmp_path: Path) -> None:
    found = read_checkpoint(save(tmp_path, 3))
    assert found.path == tmp_path / "step_3"
    assert torch.equal(found.model["a.weight"], MODEL["a.weight"])
    assert found.optimizer["a.weight/step"].item() == 3
    assert found.state == {"step": 3}


def test_views_and_shared_memory_can_be_saved(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    found = read_checkpoint(save(tmp_path, 1, model={"t": base.T, "same": base.T}))
    assert torch.equal(found.model["t"], base.T)
    assert torch.equal(found.model["same"], base.T)


def test_the_newest_are_kept_by_number(tmp_path: Path) -> None:
    checkpoints, bests = tmp_path / "checkpoints", tmp_path / "best"
    for step, best in ((2, 2), (9, 9), (10, 9), (11, 11)):
        save_checkpoint(checkpoints, step, MODEL, {}, {"best": {"step": best}})
        if step == best:
            save_checkpoint(bests, step, MODEL, {}, {})
    prune_checkpoints(checkpoints, bests, keep=2)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_10", "step_11"]
    # Step 10, should the newest be lost, asks for the best of step 9.
    assert sorted(path.name for path in bests.iterdir()) == ["step_11", "step_9"]


@pytest.mark.parametrize("what_fails", ["optimizer.safetensors", "state.json"])
def test_a_write_cut_off_leaves_the_earlier_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what_fails: str
) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as patched:
        for name in ("save_safetensors", "write_whole"):
            real = getattr(checkpoints, name)

            def write(path: Path, *content: object, real: Callable[..., None] = real) -> None:
                if path.name == what_fails:
                    raise KeyboardInterrupt
                real(path, *content)

            patched.setattr(checkpoints, name, write)
        with pytest.raises(KeyboardInterrupt):
            save(tmp_path, 2)
    assert [path.name for path in list_checkpoints(tmp_path)] == ["step_1"]
    assert read_checkpoint(tmp_path / "step_1").state == {"step": 1}
    save(tmp_path, 2)  # succeeds, and removes leftovers
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step_1", "step_2"]


@pytest.mark.parametrize("room_bytes", [10, 10_000, 4_000_300])
def test_a_full_disk_is_reported_and_damages_nothing(tmp_path: Path, room_bytes: int) -> None:
    """The system refuses to write more than so many bytes to a file: amid the first tensor file, or the second."""
    big = {"a.weight": torch.rand(1000, 1000)}
    save(tmp_path, 1, big)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room_bytes, hard))
    model = big if room_bytes < 4_000_000 else MODEL
    try:
        with pytest.raises(InputError, match=r"at step 2: .*cannot be wr.*step_1\. Free"):
            save_checkpoint(tmp_path, 2, model, {"o": torch.rand(1100, 1000)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)
    assert [path.name for path in tmp_path.iterdir()] == ["step_1"]
    assert torch.equal(read_checkpoint(tmp_path / "step_1").model["a.weight"], big["a.weight"])


def test_a_step_that_is_saved_stays_as_it_is(tmp_path: Path) -> None:
    save(tmp_path, 1)
    save(tmp_path, 1, model={"a.weight": torch.zeros(1)})
    assert torch.equal(read_checkpoint(tmp_path / "step_1").model["a.weight"], MODEL["a.weight"])


def test_a_run_is_written_by_one_process_at_a_time(tmp_path: Path) -> None:
    """A second process is refused while the first lives, and not after it was killed."""
    script = (
        "import sys, time; from pathlib import Path; from sammed3d_ft.training.run_lock import locked_run\n"
        "with locked_run(Path(sys.argv[1])): print('locked', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    said = rf"another process .pid {holder.pid} on {re.escape(platform.node())}. is writing this run"
    with pytest.raises(InputError, match=said), locked_run(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked_run(tmp_path):
        assert (tmp_path / ".lock").read_text().split()[0] == str(os.getpid())


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def test_a_planted_pickle_is_not_run(tmp_path: Path) -> None:
    gone_off = tmp_path / "gone_off"
    bomb = pickle.dumps(Bomb(gone_off))
    folder = save(tmp_path / "checkpoints", 1)
    for name in ("model.pt", "pytorch_model.bin", "optimizer.bin", "random_states_0.pkl", "scheduler.bin"):
        (folder / name).write_bytes(bomb)
    assert read_checkpoint(folder).state == {"step": 1}
    (folder / "model.safetensors").write_bytes(bomb)
    with pytest.raises(InputError, match=r"the checkpoint is unreadable .*(?i:header).* remove this folder"):
        read_checkpoint(folder)
    assert not gone_off.exists()
    pickle.loads(bomb)
    assert gone_off.exists()  # it would have been noticed


# The optimiser


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    optimizer.step()


def small() -> tuple[nn.Sequential, torch.optim.AdamW]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    return model, build_optimizer(model.named_parameters(), {"": 0.1, "2.": 0.01}, 0.05)


def test_the_optimiser_state_is_restored(tmp_path: Path) -> None:
    model, optimizer = small()
    for seed in range(3):
        step(model, optimizer, seed)
    saved = save_checkpoint(tmp_path, 3, model.state_dict(), optimizer_tensors(optimizer), {})
    step(model, optimizer, 9)

    other, continued = small()
    found = read_checkpoint(saved)
    other.load_state_dict(found.model)
    load_optimizer_tensors(continued, found.optimizer)
    step(other, continued, 9)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_state_of_an_unknown_parameter_is_refused() -> None:
    _, optimizer = small()
    with pytest.raises(InputError, match=r"unknown tensors, first '7\.weight/exp_avg'"):
        load_optimizer_tensors(optimizer, {"7.weight/exp_avg": torch.zeros(2)})


def test_a_model_that_is_all_frozen_is_refused() -> None:
    with pytest.raises(InputError, match="every parameter is frozen"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False).named_parameters(), {"": 0.1}, 0.0)


def decays_and_rates(method: str) -> tuple[dict[str, float], dict[str, float]]:
    model = seeded_model("mini", 0)
    configure_tuning(model, method, lora_rank=2)
    optimizer = build_optimizer(model.named_parameters(), {"": 2e-4, "image_encoder.": 5e-5}, 0.01)
    named = [name for group in optimizer.param_groups for name in group["names"]]
    assert sorted(named) == sorted(name for name, p in model.named_parameters() if p.requires_grad)
    decays = {n: group["weight_decay"] for group in optimizer.param_groups for n in group["names"]}
    rates = {n: group["lr"] for group in optimizer.param_groups for n in group["names"]}
    return decays, rates


@pytest.mark.parametrize("method", ["full", "lora", "decoder"])
def test_what_decays_and_how_fast_each_part_learns(method: str) -> None:
    decays, rates = decays_and_rates(method)
    shapes = {name: p.ndim for name, p in seeded_model("mini", 0).named_parameters()}
    for name, decay in decays.items():
        assert decay in (0.0, 0.01)
        if name.endswith(".bias") or "norm" in name or shapes.get(name, 2) < 2 or "iou_" in name:
            assert decay == 0.0, name
    # Matrices and kernels of the network proper do decay.
    assert decays["mask_decoder.transformer.layers.0.mlp.lin1.weight"] == 0.01
    assert decays["mask_decoder.output_upscaling.0.weight"] == 0.01
    assert decays["mask_decoder.mask_tokens.weight"] == 0.0
    if method == "full":
        assert decays["image_encoder.blocks.0.attn.qkv.weight"] == 0.01
        assert decays["image_encoder.pos_embed"] == 0.0
        assert decays["image_encoder.blocks.0.attn.rel_pos_d"] == 0.0
        assert decays["image_encoder.patch_embed.proj.weight"] == 0.01
    for name, rate in rates.items():
        assert rate == (5e-5 if name.startswith("image_encoder.") else 2e-4), name


def test_the_schedule_by_hand() -> None:
    factors = [schedule_factor(step, 1 / 3, 12) for step in range(13)]
    assert factors[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert factors[8] == pytest.approx(0.5)  # half way down the cosine
    assert factors[6] == pytest.approx(0.5 * (1 + math.cos(math.pi / 4)))
    assert factors[12] == pytest.approx(0.0)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert schedule_factor(0, 0, 10) == 1.0
    assert [schedule_factor(step, 0.1, 200) for step in (0, 9, 19, 20)] == [0.05, 0.5, 1.0, 1.0]
    assert [schedule_factor(step, 0.1, 24) for step in (0, 1)] == [0.5, 1.0]  # 2.4 steps are 2
    assert schedule_factor(0, 0.1, 4) == 1.0  # 0.4 steps are none
    # Warm-up over almost all steps: still rising at the last one, no division by zero.
    assert [schedule_factor(step, 0.99, 4) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_rates_follow_the_schedule_from_their_base() -> None:
    _, optimizer = small()
    for factor in (0.5, 0.1):  # not 0.05: factors do not accumulate
        set_learning_rates(optimizer, factor)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == pytest.approx([0.001, 0.01])


# metrics.jsonl


def test_the_log_is_cut_back_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path)
    for number in (1, 2, 3):
        log.write(number, {"loss": number / 7})
    with path.open("a") as file:
        file.write('{"step": 4, "lo')  # killed while writing
    MetricsLog(path, resume_step=2).write(3, {"loss": 0.5})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines == [{"step": 1, "loss": 1 / 7}, {"step": 2, "loss": 2 / 7}, {"step": 3, "loss": 0.5}]
    MetricsLog(path)
    assert path.read_text() == ""  # a new run starts with an empty log
