"""Short trainings of the tests: their config, how they are stopped, and how an export is replayed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prompts import read_clicks
from sammed3d_ft.dataset.manifest import read_manifest
from sammed3d_ft.images.images import read_image, read_label
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.recipes import train as recipe

ROOT = Path(__file__).resolve().parents[2]
YAML = """
run: {{dir: "{run}", seed: 1}}  # whose untrained masks are not empty
data: {{manifest: "{manifest}"}}
model: {{variant: mini, weights: random}}
clicks: {{rounds: 2}}
tune: {{method: {method}, lora_rank: 2}}
cache: {{views: 1}}
optim: {{epochs: 1, batch_size: 2, warmup: 0.5, lr_decoder: 1e-5, lr_encoder: 1e-5}}
validate: {{every_epochs: 1, clicks: [1, 5], test: false}}
checkpoint: {{every_steps: 1}}
track: {{trackers: [], log_every_steps: 1}}
"""


def config_file(run: Path, manifest: Path, method: str) -> Path:
    path = run.with_suffix(".yaml")
    path.write_text(YAML.format(run=run, manifest=manifest, method=method))
    return path


def replayed_dice(run: Path, manifest: Path, split: str, at: tuple[int, ...] = (1, 5)) -> dict[int, float]:
    """Mean Dice per case after k clicks per lesion: the export, given the run's own click files."""
    predictor = Predictor.from_pretrained(run / "export" / "model.safetensors", device="cpu")
    dice: dict[int, list[float]] = {k: [] for k in at}
    for case in read_manifest(manifest).split(split):
        assert case.label is not None
        pet, truth = read_image(case.images["PT"]), read_label(case.label).array > 0
        clicks = read_clicks(run / "clicks" / split / f"{case.id}.json")
        for k in at:
            predictor.set_image({"PT": pet})
            given: dict[object, int] = {}
            for click in clicks:
                given[click.lesion] = given.get(click.lesion, 0) + 1
                if given[click.lesion] <= k:
                    assert isinstance(click.lesion, int)
                    predictor.add_click(pet.to_vox(np.array(click.position_mm)), click.label, click.lesion)
            mask = predictor.mask() > 0
            dice[k].append(2 * float((mask & truth).sum()) / float(mask.sum() + truth.sum()))
    return {k: float(np.mean(values)) for k, values in dice.items()}


class Killed(BaseException):
    """Not an Exception, so that no code handles it."""


def train_until(last_step: int, config: Any) -> None:
    """A training that is killed as soon as the checkpoint of a step is written."""
    real = recipe.save_checkpoint

    def save_then_stop(folder: Path, step: int, *rest: Any, **named: Any) -> Path:
        path = real(folder, step, *rest, **named)
        if folder.name == "checkpoints" and step == last_step:
            raise Killed
        return path

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(recipe, "save_checkpoint", save_then_stop)
        with pytest.raises(Killed):
            recipe.train(config)
