"""Parts of Meta's `segment-anything` that SAM-Med3D shares, imported without torchvision.

`import segment_anything` also imports the 2D predictor and torchvision, which may fail to load with a CPU-only torch.
The `modeling` sub-package needs neither and imports only from itself, so it is loaded under a name inside this package.
A later `import segment_anything` is not affected.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

_NAME = f"{__package__}.segment_anything_modeling"


def _load_modeling() -> None:
    """Register the installed ``segment_anything/modeling`` as the package `_NAME`."""
    package = importlib.util.find_spec("segment_anything")  # locates the package without executing it
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("segment_anything is not installed: pip install segment-anything")
    folder = Path(package.submodule_search_locations[0]) / "modeling"
    spec = importlib.util.spec_from_file_location(
        _NAME, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    sys.modules[_NAME] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


_load_modeling()
modeling = importlib.import_module(_NAME)
"""The whole sub-package: `Sam`, `ImageEncoderViT`, `PromptEncoder`, `MaskDecoder`, `TwoWayTransformer`."""
MLPBlock = importlib.import_module(f"{_NAME}.common").MLPBlock
MLP = importlib.import_module(f"{_NAME}.mask_decoder").MLP
TwoWayTransformer = importlib.import_module(f"{_NAME}.transformer").TwoWayTransformer
