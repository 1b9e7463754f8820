"""Learning curve of fine-tuning: mean Dice over test lesions against the number of labelled cases.

python scripts/learning_curve.py OUT [--cases 0 4 8 16 24] [--seeds 0 1 2] [--config configs/few_cases.yaml]
                                 [--steps 300] [--scanner older] [--lesion-ml 1] [--outline 41%] [key.path=value ...]

Makes a cohort of phantoms that differ from those `mini` was trained on, fine-tunes with the preset on the first N of
its cases in a seeded random order (so smaller sets are subsets of larger ones), and scores the same test cases with the
simulated user of validation. Every fourth of the N cases is used for validation, because its labels cost as much as
training labels. 0 cases means the initial weights. All trainings have about the same number of steps. Writes
learning_curve.csv and learning_curve.png. Re-run the same command to continue; finished trainings are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from prompts.lesions import lesions_from_mask
from prompts.randomness import uniforms
from sammed3d_ft.benchmark.trainings import Training
from sammed3d_ft.dataset.manifest import Case, read_manifest, write_manifest
from sammed3d_ft.errors import InputError
from sammed3d_ft.evaluation.statistics import summarise
from sammed3d_ft.files import whole_file, write_csv, write_whole
from sammed3d_ft.images.images import read_label
from sammed3d_ft.phantom.cohort import write_cohort
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.prompted.predictor import Predictor
from sammed3d_ft.prompted.simulated_user import simulate_files
from sammed3d_ft.recipes.train import load_config

CLICKS = (1, 3, 5)
VALIDATION_EVERY = 4
_LAUNCH = ["--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]

Scores = Mapping[tuple[str, int], Mapping[int, float]]
"""Dice after k clicks by case and lesion."""


@dataclass(frozen=True)
class Point:
    """Mean lesion Dice over the test cases and the gain over the initial weights, each with its interval.

    With several seeds, each lesion's Dice is averaged first. Intervals: 95 %, bootstrap over patients.
    """

    mean: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


def subset(cases: Sequence[Case], count: int, seed: int) -> list[Case]:
    """The first `count` cases in the seed's order, every fourth of them for validation."""
    order = np.argsort(uniforms((seed, "learning curve"), len(cases)), kind="stable")[:count]
    return [
        replace(cases[index], split="val" if place % VALIDATION_EVERY == VALIDATION_EVERY - 1 else "train")
        for place, index in enumerate(order.tolist())
    ]


def make_cohort(out: Path, options: dict[str, object]) -> Path:
    """The manifest of the cohort, created if missing; InputError if it was made with other options."""
    options_file = out / "cohort.json"
    if not options_file.exists():
        write_cohort(out / "data", **options)  # type: ignore[arg-type]
        write_whole(options_file, json.dumps(options, indent=1) + "\n")
    before = json.loads(options_file.read_text(encoding="utf-8"))
    if before != options:
        raise InputError(f"{out} contains a cohort made with {before}, expected {options}: choose another folder")
    return out / "data" / "manifest.json"


def lesion_count(cases: Sequence[Case], connectivity: int) -> int:
    return sum(
        lesions_from_mask(read_label(case.label, case=case.id).array, connectivity)[1] for case in cases if case.label
    )


def prompted_config(path: Path, overrides: Sequence[str]) -> PromptedConfig:
    config = load_config(path, overrides)
    if not isinstance(config, PromptedConfig):
        raise InputError(f"{path} is the config of a baseline, which takes no clicks")
    return config


def training(
    folder: Path,
    config: Path,
    overrides: Sequence[str],
    cases: Sequence[Case],
    test: Sequence[Case],
    steps: int,
    seed: int,
) -> Training:
    """Train on these cases, with `data.repeats` chosen for about this many steps, and score the test cases."""
    manifest = folder / "manifest.json"
    write_manifest(manifest, [*cases, *test])
    given = [
        *overrides,
        f"run.dir={folder / 'run'}",
        f"run.seed={seed}",
        f"data.manifest={manifest}",
        f"validate.clicks={list(CLICKS)}",
        "validate.test=true",
    ]
    plain = prompted_config(config, given)
    shown = (
        lesion_count([case for case in cases if case.split == "train"], plain.data.connectivity) * plain.optim.epochs
    )
    if not shown:
        raise InputError(f"seed {seed}: no lesion in the {len(cases)} cases to train on; choose another seed")
    repeats = max(1, round(steps * plain.optim.batch_size * plain.optim.accumulate / shown))
    chosen = load_config(config, [*given, f"data.repeats={repeats}"])
    return Training(config.stem, f"cases_{len(cases)}", seed, folder / "run", chosen)


def read_scores(path: Path) -> Scores:
    """Lesion scores of a run's ``test_cases.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["lesion"] != "all"]
    return {(row["case"], int(row["lesion"])): {k: float(row[f"dice@{k}"]) for k in CLICKS} for row in rows}


def zero_shot(path: Path, weights: str, test: Sequence[Case]) -> Scores:
    """Scores of the initial weights, in the format of a run's ``test_cases.csv``."""
    if not path.exists():
        predictor = Predictor.from_pretrained(weights)
        rows = [
            {"case": score.case, "lesion": lesion.lesion} | {f"dice@{k}": lesion.dice[k] for k in CLICKS}
            for score in (simulate_files(predictor, case, CLICKS) for case in test)
            for lesion in score.lesions
        ]
        path.parent.mkdir(parents=True, exist_ok=True)
        write_csv(path, ["case", "lesion", *(f"dice@{k}" for k in CLICKS)], rows)
    return read_scores(path)


def curve(scores: Mapping[int, Sequence[Scores]]) -> dict[int, dict[int, Point]]:
    """By number of cases and of clicks. `scores`: by number of cases, one for each seed; 0 cases must be there."""
    lesions = sorted(scores[0][0])
    patients = [case for case, _ in lesions]
    dice = {
        (count, k): np.array([np.mean([one[lesion][k] for one in seeds]) for lesion in lesions])
        for count, seeds in scores.items()
        for k in CLICKS
    }
    columns = {f"{count} {k}": values.tolist() for (count, k), values in dice.items()}
    columns |= {f"gain {count} {k}": (values - dice[0, k]).tolist() for (count, k), values in dice.items()}
    found = summarise(columns, patients)
    points: dict[int, dict[int, Point]] = {count: {} for count in scores}
    for count, k in dice:
        one, gain = found[f"{count} {k}"], found[f"gain {count} {k}"]
        points[count][k] = Point(one.mean, one.ci_low, one.ci_high, gain.mean, gain.ci_low, gain.ci_high)
    return points


def draw(points: Mapping[int, Mapping[int, Point]], title: str, out: Path) -> None:
    """Mean Dice (left) and gain over the initial weights (right), against the number of cases."""
    figure = Figure(figsize=(11, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    counts = sorted(points)
    for place, (k, colour) in enumerate(zip(CLICKS, ("#0072b2", "#009e73", "#d55e00"), strict=True)):
        at = np.array(counts) + 0.15 * (place - 1)  # side by side, so that intervals do not hide each other
        for axes, names in ((left, ("mean", "low", "high")), (right, ("gain", "gain_low", "gain_high"))):
            mean, low, high = np.array([[getattr(points[count][k], name) for name in names] for count in counts]).T
            errors = np.nan_to_num(np.stack([mean - low, high - mean]))
            label = f"{k} click{'s' if k > 1 else ''} per lesion"
            axes.errorbar(at, mean, errors, label=label, color=colour, marker="o", capsize=3, elinewidth=0.8)
    left.set(title="Mean Dice of the test lesions", ylabel="mean Dice", ylim=(0, 1))
    right.set(title="Gain over the weights as they are", ylabel="mean difference in Dice")
    right.axhline(0, color="0.4", linewidth=0.8)
    for axes in (left, right):
        axes.set(xlabel="labelled cases (a quarter of them for validation)", xticks=counts)
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.legend(frameon=False, loc="lower right")
    figure.suptitle(title)
    with whole_file(out) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--cases", type=int, nargs="+", default=[0, 4, 8, 16, 24])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--config", type=Path, default=Path("configs/few_cases.yaml"))
    parser.add_argument("--steps", type=int, default=300, help="of each training, about")
    parser.add_argument("--test", type=int, default=8, help="test cases")
    parser.add_argument("--cohort-seed", type=int, default=500)
    parser.add_argument("--field", default="pelvis")
    parser.add_argument("--tracer", default="psma")
    parser.add_argument("--scanner", default="older")
    parser.add_argument("--lesion-ml", type=float, default=1.0)
    parser.add_argument("--outline", default="41%")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="settings of the config to change")
    given = parser.parse_intermixed_args()
    counts = sorted({0, *given.cases})
    if any(0 < count < VALIDATION_EVERY for count in counts):
        parser.error(f"--cases: 0, or at least {VALIDATION_EVERY}, one of which is for validation")
    options = {
        "cases": counts[-1] + given.test,
        "test": given.test,
        "seed": given.cohort_seed,
        **{name: getattr(given, name) for name in ("field", "tracer", "scanner", "lesion_ml", "outline")},
    }
    given.out.mkdir(parents=True, exist_ok=True)
    found = read_manifest(make_cohort(given.out, options))
    test = found.split("test")
    scores: dict[int, list[Scores]] = {}
    for count in counts:
        for seed in given.seeds:
            folder = given.out / f"seed_{seed}" / f"cases_{count}"
            if count:
                folder.mkdir(parents=True, exist_ok=True)
                cases = subset(found.split("train"), count, seed)
                run = training(folder, given.config, given.overrides, cases, test, given.steps, seed)
                if not run.is_done():
                    print(f"training on {count} cases, seed {seed}: {folder / 'run.log'}", flush=True)
                    failed = run.run(_LAUNCH, Training.launch)
                    if failed:
                        raise SystemExit(failed)
                scores.setdefault(count, []).append(read_scores(folder / "run" / "test_cases.csv"))
            elif not scores:
                plain = prompted_config(given.config, [*given.overrides, "run.dir=x", "data.manifest=x"])
                scores[0] = [zero_shot(given.out / "cases_0" / "test_cases.csv", plain.model.weights, test)]
    points = curve(scores)
    rows = [
        {"cases": count, "seeds": len(scores[count]), "clicks": k, "lesions": len(scores[0][0]), **vars(point)}
        for count, by_clicks in points.items()
        for k, point in by_clicks.items()
    ]
    write_csv(given.out / "learning_curve.csv", list(rows[0]), rows)
    title = f"{given.config.stem}: {len(test)} test phantoms, {len(scores[0][0])} lesions, {len(given.seeds)} seed"
    draw(points, title + ("s" if len(given.seeds) > 1 else ""), given.out / "learning_curve.png")
    for count in counts:
        print(f"{count:3d} cases  " + "  ".join(f"{k}: {points[count][k].mean:.3f}" for k in CLICKS))
    print(f"{given.out / 'learning_curve.csv'}, {given.out / 'learning_curve.png'}")


if __name__ == "__main__":
    main()
