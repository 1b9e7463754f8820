"""Build wheel and sdist from a clean clone, install each in an empty environment, and use it from there, offline.

python scripts/try_wheel.py [--oldest]     # --oldest: with the oldest supported versions, and the wheel alone

Goes from nothing to a mask, its scores and a fine-tuned model. Committed files only; environments are temporary.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(*command: str | Path, folder: Path, **environment: str) -> None:
    print("$", *command, flush=True)
    subprocess.run([str(part) for part in command], cwd=folder, env=os.environ | environment, check=True)


def environment(folder: Path, *install: str | Path) -> Path:
    """Make a virtual environment with these packages, and return its folder of commands."""
    run(sys.executable, "-m", "venv", folder, folder=folder.parent)
    run(folder / "bin" / "python", "-m", "pip", "install", "--quiet", *install, folder=folder.parent)
    return folder / "bin"


def use(commands: Path, folder: Path) -> None:
    """Make phantoms, segment and score one, and fine-tune the small model, with every connection refused."""
    folder.mkdir()
    nowhere = "http://127.0.0.1:9"
    offline = {"HF_HUB_OFFLINE": "1", "HTTP_PROXY": nowhere, "HTTPS_PROXY": nowhere, "PYTHONPATH": ""}
    ours, case = commands / "sammed3d-ft", "phantom_psma_1_0003"
    label = f"data/labelsTs/{case}.nii.gz"
    size = ("--cases", "4", "--val", "1", "--test", "1", "--field", "pelvis", "--seed", "1")
    for command in (
        (ours, "phantom", "--out", "data", *size),
        (ours, "prompts", "make", label, "--out", "clicks.json"),
        (ours, "predict", "--image", f"data/imagesTs/{case}_0001.nii.gz", "--clicks", "clicks.json",
         "--checkpoint", "mini", "--out", "mask.nii.gz"),
        (ours, "evaluate", "--pred", "mask.nii.gz", "--gt", label, "--out", "scores"),
        (commands / "accelerate", "launch", "--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no",
         "--dynamo_backend", "no", "-m", "sammed3d_ft.recipes.train", "--config", "configs/demo.yaml",
         "data.manifest=data/manifest.json", "run.dir=run", "optim.epochs=1", "data.repeats=1", "cache.views=1"),
        (ours, "predict", "--image", f"data/imagesTs/{case}_0001.nii.gz", "--clicks", "clicks.json",
         "--checkpoint", "run/export/model.safetensors", "--out", "tuned.nii.gz"),
    ):  # fmt: skip
        run(*command, folder=folder, **offline)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--oldest", action="store_true", help="the oldest supported versions (constraints-oldest.txt)")
    oldest = parser.parse_args().oldest
    constraints = ROOT / ("constraints-oldest.txt" if oldest else "constraints.txt")
    with tempfile.TemporaryDirectory() as temporary:
        here = Path(temporary)
        run("git", "clone", "--quiet", ROOT, "source", folder=here)
        builder = environment(here / "builder", "build")
        run(builder / "python", "-m", "build", "--outdir", "..", folder=here / "source")
        for pattern in ("*.whl",) if oldest else ("*.whl", "*.tar.gz"):
            (archive,) = here.glob(pattern)
            name = archive.suffix[1:]
            use(environment(here / f"{name}-environment", "--constraint", constraints, archive), here / name)
            print(f"{archive.name}: installed and used with {constraints.name}", flush=True)


if __name__ == "__main__":
    main()
