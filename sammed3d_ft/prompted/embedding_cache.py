"""On-disk cache of a frozen encoder's embeddings, computed once per lesion and view.

Each file holds one view of one lesion: embedding, target (packed bits), initial mask and first click. Files are written
atomically, so building the cache can resume after an interruption.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.utils.data import Dataset

from sammed3d_ft.files import write_whole
from sammed3d_ft.prompted.lesion_store import LesionStore
from sammed3d_ft.prompted.samples import LesionSamples, SampleSettings
from sammed3d_ft.training.batches import EpochLoader
from sammed3d_ft.training.scan_files import readable


class EmbeddingCache:
    """Embeddings of several augmented views of every lesion in a store.

    Args:
        folder: the cache folder; its name should depend on weights, preprocessing and sample settings.
        store: the lesions.
        settings: settings for drawing views: view v of lesion i is sample i of epoch v.
        views: views per lesion.
    """

    def __init__(self, folder: Path, store: LesionStore, settings: SampleSettings, views: int) -> None:
        self.folder, self.store, self.settings, self.views = folder, store, settings, views

    def file(self, index: int, view: int) -> Path:
        return self.folder / f"{self.store.entries[index].id.replace('/', '__')}__view{view:03d}.safetensors"

    def missing(self, process: int = 0, processes: int = 1) -> list[tuple[int, int]]:
        """(view, lesion) pairs that are not on disk yet, from this process's share."""
        pairs = [(view, index) for view in range(self.views) for index in range(len(self.store))]
        return [pair for pair in pairs[process::processes] if not self.file(pair[1], pair[0]).exists()]

    def build(
        self,
        encode: Callable[[Tensor], Tensor],
        batch_size: int,
        process: int = 0,
        processes: int = 1,
        workers: int = 0,
    ) -> Iterator[int]:
        """Compute the missing views; after each batch, yield the number of views written.

        Args:
            encode: (batch, C, S, S, S) float32 on the CPU -> (batch, D, g, g, g). Always called with
                ``batch_size`` samples (the last batch is padded), because the last bits of an embedding depend on
                the batch size.
        """
        missing = self.missing(process, processes)
        loader = EpochLoader(partial(LesionSamples, self.store, self.settings), workers)
        for view in sorted({view for view, _ in missing}):
            indices = [index for v, index in missing if v == view]
            for batch in loader.batches(
                view, [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
            ):
                image: Tensor = batch["image"]
                filled = torch.cat([image, image[:1].expand(batch_size - len(image), -1, -1, -1, -1)])
                embeddings = encode(filled)[: len(image)].float().cpu()
                for row, index in enumerate(batch["index"]):
                    tensors = {
                        "embedding": embeddings[row].clone(memory_format=torch.contiguous_format),
                        "target": torch.from_numpy(np.packbits(batch["target"][row].numpy())),
                        "start": batch["start"][row].clone(),
                        "coords_vox": batch["coords_vox"][row].clone(),
                        "label": batch["label"][row].clone(),
                    }
                    write_whole(self.file(index, view), save(tensors))
                yield len(batch["index"])


class CachedSamples(Dataset[dict[str, object]]):
    """The cached samples of one epoch; epochs, and repetitions within an epoch, cycle through the views.

    Args:
        repeats: samples per lesion in an epoch; sample i shows lesion ``i % len(store)``.
    """

    def __init__(self, cache: EmbeddingCache, epoch: int, repeats: int = 1) -> None:
        self.cache, self.epoch, self.repeats = cache, epoch, repeats

    def __len__(self) -> int:
        return len(self.cache.store) * self.repeats

    def __getitem__(self, index: int) -> dict[str, object]:
        repetition, lesion = divmod(index, len(self.cache.store))
        view = (self.epoch * self.repeats + repetition) % self.cache.views
        with readable(self.cache.file(lesion, view)) as path:
            tensors: dict[str, object] = dict(load_file(path))
        size = self.cache.settings.crop_size
        packed = tensors["target"]
        assert isinstance(packed, Tensor)
        bits = np.unpackbits(packed.numpy(), count=size**3).reshape(1, size, size, size)
        return {**tensors, "target": torch.from_numpy(bits.astype(bool)), "index": index}
