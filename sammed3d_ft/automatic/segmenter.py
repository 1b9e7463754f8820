"""Automatic segmentation: sliding-window inference over a whole scan, with logits on the scan's own grid."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from sammed3d_ft.automatic.networks import build_network
from sammed3d_ft.automatic.scan_preparation import ScanPreparation, prepare_scan
from sammed3d_ft.errors import InputError
from sammed3d_ft.images.grids import Volume
from sammed3d_ft.model.build import usable_device
from sammed3d_ft.model.weight_fit import describe_misfit
from sammed3d_ft.model.weights import read_metadata, read_state_dict

FORMAT = "sammed3d_ft baseline 1"
"""Format name in the metadata of an export."""

_OVERLAP = 0.5
_WINDOWS_AT_ONCE = 4


def is_automatic(path: Path) -> bool:
    """Whether a checkpoint is the export of an automatic network, by its header alone."""
    return read_metadata(path).get("format") == FORMAT


class AutomaticSegmenter:
    """Segments scans without clicks.

    The scan is prepared as in training. The network runs on windows of the crop size that overlap by half, and their
    logits are averaged with Gaussian weights (MONAI's sliding window). A scan smaller than the window is zero-padded.

    Args:
        network: (B, C, S, S, S) float32 -> logits (B, 1, S, S, S).
        preparation: as in the network's training.
        crop_size: S.
        device: device to move the network to; None leaves it where it is (a plain function runs on the CPU).
        metadata: of the network's export; empty while the network is being trained.
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
        """Load the segmenter from a baseline's export.

        Args:
            path: ``export/model.safetensors`` of a run, or its folder.
            device: None selects CUDA if available, else the CPU.

        Raises:
            InputError: a missing file, a file that is not a baseline's export, damaged metadata, or an unavailable
                device.
        """
        chosen = usable_device(device)  # checked first, because reading the weights takes longer
        found = read_state_dict(path)
        metadata = found.metadata
        if metadata.get("format") != FORMAT:
            raise InputError(f"{path} is not the export of a baseline (unet, segresnet, ...)")
        try:
            preparation = ScanPreparation.from_json(metadata["preparation"])
            name, size, crop_size = metadata["network"], metadata["size"], int(metadata["crop_size"])
            with torch.random.fork_rng(devices=[]):
                network = build_network(name, size, len(preparation.modalities), crop_size)
        except (KeyError, ValueError) as error:  # InputError is a ValueError
            raise InputError(f"{path}: the metadata of a baseline's export are invalid ({error})") from error
        misfit = describe_misfit(found.state, {name: tensor.shape for name, tensor in network.state_dict().items()})
        if misfit is not None:
            raise InputError(f"{path}: the weights do not fit {name} of size {size}: {misfit}")
        network.load_state_dict(found.state)
        return cls(network.eval(), preparation, crop_size, chosen, metadata)

    @property
    def modalities(self) -> tuple[str, ...]:
        """The modalities it needs; its logits are on the grid of the first."""
        return self.preparation.modalities

    def segment(self, images: Mapping[str, Volume]) -> np.ndarray:
        """Lesion logits, (x, y, z) float32, on the canonical grid of the first modality; lesion where > 0.

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
            # Full precision, even if the caller trains in mixed precision: accelerate replaces the module's forward by
            # one that would turn autocast on again. Windows are summed on the CPU, so that GPU memory does not limit
            # the scan.
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
