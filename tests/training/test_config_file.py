"""The config: shipped files, overrides, and one clear line for everything that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from sammed3d_ft.errors import InputError
from sammed3d_ft.prompted.config import PromptedConfig
from sammed3d_ft.recipes.train import load_config
from sammed3d_ft.training.config_file import differences

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
BASE = {
    "run": {"dir": "runs/x"},
    "data": {"manifest": "manifest.json"},
    "model": {"variant": "mini", "weights": "random"},
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(BASE))
    return path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        load_config(path, overrides)
    message = str(error.value)
    return message


def test_configs_are_shipped() -> None:
    assert {"decoder.yaml", "full.yaml", "lora.yaml"} <= {path.name for path in SHIPPED}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_shipped_config_is_valid_and_tells_its_command(path: Path) -> None:
    text = path.read_text()
    opening = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        opening.append(line)
    assert len(opening) > 1, "opens with a comment"
    name = path.relative_to(ROOT).as_posix()
    assert f"accelerate launch finetune.py --config {name}" in "\n".join(opening)
    config = load_config(path)
    assert not (config.tune.method == "decoder" and len(config.data.modalities) > 1)
    if config.model.weights == "random":
        assert "weights: random" in text


def test_a_shipped_config_is_found_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_config(Path("configs/decoder.yaml")).tune.method == "decoder"
    assert "configs/decoder.yaml" in refused(Path("configs/decodr.yaml"))


def test_overrides_have_the_types_of_their_settings(file: Path) -> None:
    config = load_config(
        file,
        [
            "optim.lr_decoder=1e-4",  # YAML 1.1 reads this as text
            "optim.epochs=7",
            "data.modalities=[PT, CT]",
            "clicks.accumulate=false",
            "model.spacing_mm=2",
            "data.clip.PT=[0, 30]",
            "run.dir=elsewhere/a=b",
        ],
    )
    assert config.optim.lr_decoder == 1e-4
    assert isinstance(config.optim.lr_decoder, float)
    assert config.optim.epochs == 7
    assert config.data.modalities == ("PT", "CT")
    assert config.clicks.accumulate is False
    assert config.model.spacing_mm == 2.0
    assert config.data.clip == {"PT": (0.0, 30.0)}
    assert config.run.dir == Path("elsewhere/a=b")


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.epoch=3", "unknown key optim.epoch, did you mean 'epochs'?"),
        ("optimm.epochs=3", "unknown key optimm, did you mean 'optim'?"),
        ("validate.every_epoch=3", "did you mean 'every_epochs'?"),
        ("optim.warmup_steps=50", "unknown key optim.warmup_steps, did you mean 'warmup'?"),
        ("optim.warmup=50", "optim.warmup: Input should be less than 1 (got 50)"),
        ("run.zzz=1", "known: dir, seed, resume"),
        ("optim.epochs", "expected key.path=value"),
        ("=3", "expected key.path=value"),
        ("run.dir.x=3", "dir is a value, not a section"),
        ("optim.epochs=[1", "override 'optim.epochs=[1'"),
        ("optim.epochs=many", "optim.epochs"),
        ("optim.epochs=0", "greater than or equal to 1 (got 0)"),
        ("model.variant=maxi", "unknown variant 'maxi': expected one of mini, vit_b_ori"),
        ("clicks.first=centre", "unknown strategy 'centre', expected one of"),
        ("clicks.next=centre", "unknown strategy 'centre', expected one of"),
        ("tune.method=all", "tune.method"),
        ("validate.clicks=[1, 3]", "must include 1 and 5"),
        ("validate.clicks=[0, 1, 5]", "at least one click"),
        ("loss.name=focal", "loss.name"),
        ("loss.warm_start=1", "loss.warm_start: Input should be less than 1 (got 1)"),
        ("loss={name: dice_ce, warm_start: 0.2}", "loss.warm_start 0.2 starts with Dice-CE, and loss.name is dice_ce"),
    ],
)
def test_a_wrong_setting_is_named(file: Path, override: str, says: str) -> None:
    assert says in refused(file, override)


def test_weights_have_no_default(file: Path) -> None:
    content = {**BASE, "model": {"variant": "mini"}}
    file.write_text(yaml.safe_dump(content))
    assert "model.weights is missing: set it in the file or with model.weights=VALUE" in refused(file)
    assert load_config(file, ["model.weights=random"]).model.weights == "random"


def test_all_problems_are_listed_at_once(file: Path) -> None:
    message = refused(file, "optim.epoch=3", "model.variant=maxi")
    assert "epochs" in message
    assert "maxi" in message


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2", "only words"])
def test_a_file_that_is_no_config_is_refused(file: Path, text: str) -> None:
    file.write_text(text)
    assert str(file) in refused(file)


def test_differences_are_those_that_matter(file: Path) -> None:
    old = load_config(file)
    new = load_config(
        file,
        [
            "optim.epochs=3",
            "data.clip.PT=[0, 30]",
            "data.workers=2",
            "track.log_every_steps=1",
            "checkpoint.every_steps=1",
            "cache.dir=elsewhere",
            "run.resume=never",
        ],
    )
    assert differences(old.as_plain(), old.as_plain()) == ([], [])
    matter, harmless = differences(old.as_plain(), new.as_plain())
    assert matter == ["data.clip.PT: None -> [0.0, 30.0]", "optim.epochs: 50 -> 3"]
    assert harmless == [
        "cache.dir: None -> elsewhere",
        "checkpoint.every_steps: 200 -> 1",
        "data.workers: None -> 2",
        "run.resume: auto -> never",
        "track.log_every_steps: 5 -> 1",
    ]


def test_a_config_survives_its_own_file(file: Path) -> None:
    """What a run writes beside its results is read back as the same config, and shows no difference."""
    config = load_config(file, ["data.clip.PT=[0, 30]", "data.modalities=[PT]"])
    written = yaml.safe_load(yaml.safe_dump(config.as_plain()))
    assert PromptedConfig.model_validate(written) == config
    assert differences(written, config.as_plain()) == ([], [])
