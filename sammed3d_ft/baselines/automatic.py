"""Automatic segmentation: a baseline slid over a whole scan, its logits brought back to the scan's own voxels."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from prompts.errors import InputError
from sammed3d_ft.baselines.networks import build_network
from sammed3d_ft.data.grids import Volume
from sammed3d_ft.data.isotropic import ScanPreparation, prepare_scan
from sammed3d_ft.model.devices import usable_device
from sammed3d_ft.model.weight_fit import describe_misfit
from sammed3d_ft.model.weights import read_state_dict

FORMAT = "sammed3d_ft baseline 1"
"""Of an export, in its metadata."""

_OVERLAP = 0.5
_WINDOWS_AT_ONCE = 4


class AutomaticSegmenter:
    """Segments scans without clicks.

    The scan is prepared as in training, the network sees windows of the crop's size that overlap by half, and their
    logits are averaged by Gaussian weights (MONAI's sliding window). A scan smaller than the window is padded by 0.

    Args:
        network: (B, C, S, S, S) float32 -> logits (B, 1, S, S, S).
        preparation: what it was trained with.
        crop_size: S.
        device: where to move the network, and where it runs; None leaves it where it is, and a stand-in on the CPU.
        metadata: of its export; empty for a network that is still in training.
    """

    def __init__(
        self,
        network: Callable[[Tensor], Tensor],
        preparation: ScanPreparation,
        crop_size: int,
        device: str | torch.device | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self.network, self.preparation, self.crop_size = network, preparation, crop_size
        self.metadata = dict(metadata or {})
        if isinstance(network, nn.Module):
            if device is not None:
                network.to(device)
            device = next(network.parameters(), torch.empty(0)).device
        self.device = torch.device(device or "cpu")

    @classmethod
    def from_pretrained(cls, path: str | Path, device: str | torch.device | None = None) -> AutomaticSegmenter:
        """The segmenter of a baseline's export.

        Args:
            path: ``export/model.safetensors`` of a run, or its folder.
            device: None takes a CUDA device if there is one, else the CPU.

        Raises:
            InputError: no such file, no baseline, metadata that are broken; a device that is not there.
        """
        chosen = usable_device(device)  # before the weights are read, which takes longer
        found = read_state_dict(path)
        told = found.metadata
        if told.get("format") != FORMAT:
            raise InputError(
                f"{path} is no export of a baseline (unet, segresnet, ...); models that are prompted by clicks, such "
                "as SAM-Med3D, are used by `sammed3d-ft predict`"
            )
        try:
            preparation = ScanPreparation.from_json(told["preparation"])
            name, size, crop_size = told["network"], told["size"], int(told["crop_size"])
            with torch.random.fork_rng(devices=[]):
                network = build_network(name, size, len(preparation.modalities), crop_size)
        except (KeyError, ValueError) as error:  # InputError is a ValueError
            raise InputError(f"{path}: its metadata are not those of a baseline's export ({error})") from error
        misfit = describe_misfit(found.state, {name: tensor.shape for name, tensor in network.state_dict().items()})
        if misfit is not None:
            raise InputError(f"{path} holds no whole {name} of size {size}: {misfit}")
        network.load_state_dict(found.state)
        return cls(network.eval(), preparation, crop_size, chosen, told)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The images it needs; the first one's grid is that of its logits."""
        return self.preparation.modalities

    def segment(self, images: Mapping[str, Volume]) -> np.ndarray:
        """Logits of lesion, (x, y, z) float32, on the canonical grid of the first modality; lesion where > 0.

        Args:
            images: by modality; PT in SUV, CT in HU.

        Raises:
            InputError: a modality is missing.
        """
        from monai.inferers import sliding_window_inference

        scan = prepare_scan(images, self.preparation)
        module = self.network if isinstance(self.network, nn.Module) else None
        training = module is not None and module.training
        if module is not None:
            module.eval()
        try:
            # Full precision, also where a caller trains in mixed precision: accelerate gives the module a forward of
            # its own, which would turn autocast on again. Windows are summed on the CPU, so that the memory of a card
            # does not limit the scan.
            network = self.network if module is None else partial(type(module).forward, module)
            with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
                logits = sliding_window_inference(
                    torch.from_numpy(scan.channels)[None],
                    self.crop_size,
                    _WINDOWS_AT_ONCE,
                    network,
                    overlap=_OVERLAP,
                    mode="gaussian",
                    sw_device=self.device,
                    device=torch.device("cpu"),
                )
        finally:
            if module is not None:
                module.train(training)
        assert isinstance(logits, Tensor)
        return scan.onto_scan(logits[0, 0].numpy())
