"""Training end to end on tiny scans: every method, resuming, replaying, and errors."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sammed3d_ft.dataset.manifest import read_manifest, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.losses import training_loss
from sammed3d_ft.model.build import seeded_model
from sammed3d_ft.model.weights import load_weights, read_state_dict, save_safetensors
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.recipes import train as recipe
from sammed3d_ft.recipes.train import load_config
from sammed3d_ft.training.checkpoints import list_checkpoints, read_checkpoint
from sammed3d_ft.training.failures import explain_failure
from tests.support.tiny_cases import write_cohort
from tests.support.training_runs import Killed, config_file, replayed_dice, train_until


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cohort(tmp_path_factory.mktemp("cohort"))


def settings(run: Path, manifest: Path, method: str = "full", *overrides: str) -> PromptedConfig:
    return load_config(config_file(run, manifest, method), overrides)


@pytest.mark.parametrize("method", ["decoder", "full", "lora"])
def test_a_run_writes_an_export_that_replays_to_its_validation_dice(
    method: str, tmp_path: Path, manifest: Path
) -> None:
    run = tmp_path / "run"
    summary = recipe.train(
        settings(
            run,
            manifest,
            method,
            f"validate.test={method == 'full'}",
            "validate.clicks=[1, 3, 5, 7]",
            f"model.zoom={method != 'lora'}",
        )
    )

    replayed = replayed_dice(run, manifest, "val", (1, 5, 7))
    assert replayed[1] == pytest.approx(summary["val/dice@1"], abs=1e-6)
    assert replayed[5] == pytest.approx(summary["val/dice@5"], abs=1e-6)
    assert replayed[7] == pytest.approx(summary["val/dice@7"], abs=1e-6)
    assert replayed[1] > 0  # a comparison of zeros would be meaningless
    assert json.loads((run / "summary.json").read_text())["export_sha256"] == summary["export_sha256"]
    assert ("test/dice@1" in summary) == (method == "full")
    assert (run / "export" / "adapter").is_dir() == (method == "lora")
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "train/loss" in line] == [1, 2]
    (validated,) = [line for line in logged if "val/dice@1" in line]
    assert "val/dice@3" in validated
    assert "val/dice@7" not in validated  # nothing is selected by it
    assert any((run / "cache").glob("embeddings_*/*.safetensors")) == (method == "decoder")


def test_given_weights_are_scored_before_training_and_may_stay_the_best(tmp_path: Path, manifest: Path) -> None:
    """A training that ruins the model exports the initial weights."""
    base = tmp_path / "base.safetensors"
    model = seeded_model("mini", seed=1)
    load_weights(model, "mini")  # good weights: enforced clicks alone give some Dice, even to a ruined model
    save_safetensors(base, model.state_dict(), {})
    changes = (f"model.weights={base}", "optim.lr_decoder=1e-1", "optim.lr_encoder=1e-1")
    config = settings(tmp_path / "run", manifest, "full", *changes)
    train_until(0, config)  # resumed right after the first validation
    summary = recipe.train(config)
    assert summary["best"]["step"] == summary["best"]["epoch"] == 0
    exported, given = (read_state_dict(path).state for path in (summary["export"], base))
    assert all(torch.equal(exported[name], given[name]) for name in given)
    logged = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["epoch"]) for line in logged if "val/dice@1" in line] == [(0, 0), (2, 1)]


def test_generic_shapes_join_the_lesions(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    recipe.train(settings(run, manifest, "full", "data.shapes=3"))
    logged = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logged if "train/loss" in line] == [1, 2, 3]  # 3 lesions, 3 shapes, 2 a step
    with pytest.raises(InputError, match="data.shapes 3: .*tune.method full or lora"):
        recipe.train(settings(tmp_path / "other", manifest, "decoder", "data.shapes=3"))


@pytest.mark.parametrize(
    ("method", "last_step", "workers"),
    [
        ("full", 1, 0),
        pytest.param("full", 1, 1, marks=pytest.mark.slow),
        pytest.param("decoder", 3, 1, marks=pytest.mark.slow),
        pytest.param("lora", 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_ends_in_the_same_export(
    method: str, last_step: int, workers: int, tmp_path: Path, manifest: Path
) -> None:
    """Steps 1 and 3 are amid epochs, step 2 is at the end of one. Samples come from a loader process or from none."""
    whole = recipe.train(settings(tmp_path / "whole", manifest, method, "optim.epochs=2"))
    broken = settings(tmp_path / "broken", manifest, method, "optim.epochs=2", f"data.workers={workers}")
    train_until(last_step, broken)
    assert not (tmp_path / "broken" / "summary.json").exists()
    resumed = recipe.train(broken)

    assert resumed["export_sha256"] == whole["export_sha256"]
    assert resumed["best"] == whole["best"]
    lines = [(tmp_path / name / "metrics.jsonl").read_text() for name in ("whole", "broken")]
    assert lines[0] == lines[1]


def test_checkpoints_are_written_when_due_between_validations(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of two steps, validation after the fourth: saved at every third step, or the first end after it."""
    saved: list[int] = []
    real = recipe.save_checkpoint

    def save(folder: Path, step: int, *rest: Any) -> Path:
        saved.extend([step] if folder.name == "checkpoints" else [])
        return real(folder, step, *rest)

    monkeypatch.setattr(recipe, "save_checkpoint", save)
    changes = ("optim.epochs=4", "validate.every_epochs=4", "checkpoint.every_steps=3", "clicks.rounds=1")
    recipe.train(settings(tmp_path / "run", manifest, "decoder", *changes))
    assert saved == [3, 6, 8]


def test_a_lost_best_model_is_reported_before_training(tmp_path: Path, manifest: Path) -> None:
    train_until(2, settings(tmp_path / "run", manifest, "full", "optim.epochs=2"))
    shutil.rmtree(tmp_path / "run" / "best")
    with pytest.raises(InputError, match="best does not contain step_2, the best model so far according to .*step_2"):
        recipe.train(settings(tmp_path / "run", manifest, "full", "optim.epochs=2"))


def test_an_error_in_a_loader_process_is_one_line(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path / "run", manifest, "decoder")
    train_until(1, load_config(file))
    for cached in (tmp_path / "run" / "cache").glob("embeddings_*/*.safetensors"):
        cached.write_bytes(b"damaged")
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        recipe.main(["--config", str(file), "data.workers=1"])
    assert ended.value.code == 2
    told = capsys.readouterr().err.replace("\r", "\n").splitlines()
    assert sum("damaged cache file" in line for line in told) == 1
    assert not any("Traceback" in line for line in told)


def test_an_unknown_tracker_is_refused_at_once(tmp_path: Path, manifest: Path) -> None:
    with pytest.raises(InputError, match="track.trackers .'tensorbord'."):
        recipe.train(settings(tmp_path / "run", manifest, "full", "track.trackers=[tensorbord]"))


def test_a_changed_setting_is_refused_on_resuming(tmp_path: Path, manifest: Path) -> None:
    run = tmp_path / "run"
    train_until(1, settings(run, manifest))
    before = (run / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"loss\.name: l1dfl -> dice"):
        recipe.train(settings(run, manifest, "full", "loss.name=dice"))
    assert (run / "config.yaml").read_text() == before
    with pytest.raises(InputError, match=r"run\.resume is never"):
        recipe.train(settings(run, manifest, "full", "run.resume=never"))


def test_inputs_that_changed_behind_their_names_are_refused_on_resuming(tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path / "cohort")
    run = tmp_path / "run"
    train_until(1, settings(run, manifest))
    facts = (run / "run.json").read_text()
    cases = list(read_manifest(manifest).cases)
    write_manifest(manifest, [*cases[:-1], replace(cases[-1], split="val")])
    with pytest.raises(InputError, match="same names .cases, splits or their files: "):
        recipe.train(settings(run, manifest))
    assert (run / "run.json").read_text() == facts


def test_a_setting_that_may_change_is_reported_and_taken(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    train_until(1, settings(run, manifest))
    recipe.train(settings(run, manifest, "full", "checkpoint.keep=1"))
    assert "checkpoint.keep: 2 -> 1" in capsys.readouterr().out
    assert len(list_checkpoints(run / "checkpoints")) == 1


def test_a_finished_run_is_not_done_again(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = recipe.train(settings(tmp_path / "run", manifest))
    monkeypatch.setattr(recipe.PromptedTask, "score", None)  # called, it would fail
    assert recipe.train(settings(tmp_path / "run", manifest)) == first
    assert "is finished" in capsys.readouterr().out


class Bomb:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.mark.slow
def test_a_pickle_planted_anywhere_in_a_run_does_not_run(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside every file under the names that others load, then in place of each file in turn."""
    run, gone_off = tmp_path / "run", tmp_path / "gone_off"
    bomb = pickle.dumps(Bomb(gone_off))
    config = settings(run, manifest, "decoder", "track.trackers=[tensorboard]")
    train_until(1, config)
    monkeypatch.setattr(recipe, "draw_training_curves", lambda run: None)
    files = [path for path in run.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".yaml", ".json", ".jsonl", ".safetensors"}
    foreign = ("pytorch_model.bin", "model.pt", "optimizer.bin", "scheduler.bin", "random_states_0.pkl", "scaler.pt")
    for folder in {path.parent for path in files}:
        for name in (*foreign, "custom_checkpoint_0.pkl", "cache.npy"):
            (folder / name).write_bytes(bomb)
    kept = tmp_path / "kept"
    shutil.copytree(run, kept)
    outcomes = []
    for path in [None, *files]:
        shutil.rmtree(run)
        shutil.copytree(kept, run)
        if path is not None:
            path.write_bytes(bomb)
        try:
            recipe.train(config)
            outcomes.append("went on")
        except InputError as error:
            outcomes.append("refused" if "\n" not in str(error) else str(error))
        assert not gone_off.exists(), path
    assert outcomes[0] == "went on"
    assert set(outcomes) == {"went on", "refused"}
    pickle.loads(bomb)
    assert gone_off.exists()  # it would have been noticed


@pytest.mark.parametrize("wrong", ["loss", "refusal", "gradient"])
def test_what_is_no_number_names_the_lesions_and_leaves_the_weights_from_before(
    wrong: str, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second step, which begins where the first ended; no checkpoint is due by itself."""

    class Broken(torch.nn.Module):
        calls = 0

        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            if self.calls <= 2:  # the rounds of the first step
                return logits.square().mean()
            if wrong == "refusal":
                raise InputError("NaN logits")
            if wrong == "gradient":
                return (logits - logits.detach()).abs().sqrt().sum()  # 0, of infinite slope
            return logits.sum() * float("nan")

    monkeypatch.setattr(training_loss, "build_loss", lambda name, **options: Broken())
    what = "gradient" if wrong == "gradient" else "loss"
    said = rf"step 1: the {what} is NaN or infinite for train_\d/1; .*step_1"
    with pytest.raises(InputError, match=said):
        recipe.train(settings(tmp_path / "run", manifest, "full", "checkpoint.every_steps=100"))
    saved = read_checkpoint(tmp_path / "run" / "checkpoints" / "step_1")
    assert saved.state["step"] == 1
    assert all(bool(torch.isfinite(tensor).all()) for tensor in saved.model.values())


def test_a_step_of_micro_batches_logs_the_loss_that_it_optimised(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two micro-batches of one lesion are one batch of two: Dice-CE is a mean over samples."""
    real, losses, highest, lines = recipe.PromptedTask.loss, [], [], []

    def loss(*arguments: Any) -> Any:
        value, logged = real(*arguments)
        losses.append(float(value.detach()))
        highest.append(float(logged["train/max_probability"]))
        return value, logged

    monkeypatch.setattr(recipe.PromptedTask, "loss", loss)
    for name, more in (("whole", ()), ("halves", ("optim.batch_size=1", "optim.accumulate=2"))):
        train_until(1, settings(tmp_path / name, manifest, "full", "loss.name=dice_ce", *more))
        lines.append(json.loads((tmp_path / name / "metrics.jsonl").read_text()))
    assert lines[1] == pytest.approx(lines[0], rel=1e-4)
    assert lines[1]["train/loss"] == pytest.approx((losses[1] + losses[2]) / 2, rel=1e-6)
    assert losses[1] != pytest.approx(losses[2], rel=1e-3)
    assert lines[1]["train/max_probability"] == max(highest[1:])
    assert highest[1] != highest[2]


def test_the_first_share_of_the_steps_is_trained_with_dice_ce(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of three steps, begun at 0, 1/3 and 2/3; two rounds of clicks each."""
    called: list[str] = []

    class Named(torch.nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            called.append(self.name)
            if len(called) == 6:
                raise Killed
            return logits.square().mean()

    monkeypatch.setattr(training_loss, "build_loss", lambda name, **options: Named(name))
    with pytest.raises(Killed):
        recipe.train(settings(tmp_path / "run", manifest, "full", "optim.batch_size=1", "loss.warm_start=0.5"))
    assert called == ["dice_ce"] * 4 + ["l1dfl"] * 2


def test_only_the_lesions_of_the_micro_batch_that_is_no_number_are_named(
    tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, names = recipe.PromptedTask.loss, []

    def loss(self: recipe.PromptedTask, model: torch.nn.Module, batch: dict[str, Any], *rest: Any) -> Any:
        names.extend(self.case_ids(batch))
        value, logged = real(self, model, batch, *rest)
        return value * (float("nan") if len(names) == 2 else 1), logged

    monkeypatch.setattr(recipe.PromptedTask, "loss", loss)
    with pytest.raises(InputError, match="step 0: the loss is NaN or infinite for ") as error:
        recipe.train(settings(tmp_path / "run", manifest, "full", "optim.batch_size=1", "optim.accumulate=3"))
    assert len(set(names)) == 3
    assert [name in str(error.value) for name in names] == [False, True, False]


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_of_the_model_is_refused_with_the_reason(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = load_config(config_file(tmp_path / "run", tmp_path / "manifest.json", "full"))
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")  # as the launcher sets it
    with pytest.raises(InputError, match=f"started with {name}, which shards models that do not fit on one GPU"):
        recipe.train(config)


def test_running_out_of_memory_names_the_settings_that_help(tmp_path: Path, manifest: Path) -> None:
    config = settings(tmp_path / "run", manifest)
    told = explain_failure(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), config.memory_savers)
    assert told is not None
    for way in ("optim.batch_size=1 optim.accumulate=2", "clicks.gradient_rounds=1 (now 2)", "tune.method=decoder"):
        assert way in told
    assert explain_failure(RuntimeError("mat1 and mat2 shapes cannot be multiplied"), []) is None


@pytest.fixture
def any_kernel_afterwards() -> Iterator[None]:
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("wanted", [True, False])
def test_only_deterministic_kernels_if_wanted(
    wanted: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, any_kernel_afterwards: None
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    with pytest.raises(InputError, match=r"absent\.json"):
        recipe.train(settings(tmp_path / "run", tmp_path / "absent.json", "full", f"run.deterministic={wanted}"))
    assert torch.are_deterministic_algorithms_enabled() == wanted
    assert ("CUBLAS_WORKSPACE_CONFIG" in os.environ) == wanted


def test_an_operation_without_a_deterministic_form_is_named(any_kernel_afterwards: None) -> None:
    torch.use_deterministic_algorithms(True)
    with pytest.raises(RuntimeError) as error:
        torch.zeros(2).put_(torch.tensor([0]), torch.ones(1))
    told = explain_failure(error.value, [])
    assert told is not None
    assert told.startswith("run.deterministic is true, but put_ does not have a deterministic implementation")
    assert told.endswith("run.deterministic=false")


@pytest.mark.gpu
@pytest.mark.parametrize("method", ["decoder", "full", "lora"])
def test_a_deterministic_run_on_a_gpu_repeats_itself(
    method: str, tmp_path: Path, manifest: Path, any_kernel_afterwards: None
) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    first, second = (
        recipe.train(settings(tmp_path / name, manifest, method, "run.deterministic=true")) for name in ("1", "2")
    )
    assert first["export_sha256"] == second["export_sha256"]


def test_a_manifest_without_validation_is_refused(tmp_path: Path) -> None:
    manifest = write_cohort(tmp_path / "cohort", val=0)
    with pytest.raises(InputError, match="val"):
        recipe.train(settings(tmp_path / "run", manifest))


def test_wrong_input_ends_in_one_line_and_code_2(
    tmp_path: Path, manifest: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = config_file(tmp_path / "run", manifest, "full")
    with pytest.raises(SystemExit) as ended:
        recipe.main(["--config", str(file), "optim.epoch=3"])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "did you mean 'epochs'" in error
