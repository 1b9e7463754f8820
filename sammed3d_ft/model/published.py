"""Published weights known by name: their source, licence, and the settings they were trained with. Without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedWeights:
    """Weights that other groups published on the Hugging Face hub, as ``<name>.pth``.

    Attributes:
        name: accepted wherever a weights file is expected.
        repo: repository on the hub.
        trained_on: training data and paper, for people.
        licence: as far as its authors state one.
        clip: clipping limits by modality, PT in SUV and CT in HU; None: not clipped.
        spacing_mm: isotropic spacing of the crop.
        accumulate: whether training gave the decoder all clicks so far (True) or only the newest one (False).
        variant: architecture.
    """

    name: str
    repo: str
    trained_on: str
    licence: str
    clip: Mapping[str, tuple[float, float] | None]
    spacing_mm: float = 1.5
    accumulate: bool = False
    variant: str = "vit_b_ori"

    @property
    def file(self) -> str:
        """File name in the repository."""
        return f"{self.name}.pth"

    @property
    def path(self) -> Path:
        """Where `weights fetch` puts the file and where its name is looked up, relative to the current folder."""
        return Path("weights") / self.file

    @property
    def source(self) -> str:
        """Page of the repository."""
        return f"https://huggingface.co/{self.repo}"


def _seganypet(name: str, trained_on: str) -> PublishedWeights:
    # PET enters the z-score as it is. SegAnyPET trains at the spacing of the stored images and predicts at a target
    # spacing that its authors do not state; 1.5 mm is that of SAM-Med3D, from whose code theirs is adapted.
    return PublishedWeights(
        name=name,
        repo="YichiZhang98/SegAnyPET",
        trained_on=trained_on,
        licence="none stated by the authors (as of November 2026): ask them before you use or share the weights",
        clip={"PT": None},
    )


PUBLISHED = {
    weights.name: weights
    for weights in (
        PublishedWeights(
            name="sam_med3d_turbo",
            repo="blueyo0/SAM-Med3D",
            trained_on="SAM-Med3D turbo: CT, MR and other images (arXiv 2310.15161)",
            licence="Apache-2.0",
            clip={"PT": (0.0, 50.0), "CT": (-1000.0, 1000.0)},  # the package's own; its authors clip CT alone
        ),
        _seganypet("seganypet_v1", "SegAnyPET v1: organs on 5,000 PET scans (arXiv 2502.14351)"),
        _seganypet("seganypet_v2", "SegAnyPET v2: organs and lesions on 11,041 PET scans (arXiv 2603.11627)"),
        _seganypet("seganypet_lesion", "SegAnyPET-Lesion: v2 fine-tuned for lesions (arXiv 2603.11627)"),
    )
}


def published_as(path: str | Path) -> PublishedWeights | None:
    """The published weights that a path refers to, by their name or their file name; None for anything else."""
    path = Path(path)
    if str(path) in PUBLISHED and not path.exists():
        return PUBLISHED[str(path)]
    return next((weights for weights in PUBLISHED.values() if weights.file == path.name), None)


def click_mode(accumulate: bool) -> str:
    """The clicks that the decoder is given at each step, in words."""
    return "accumulated clicks" if accumulate else "newest click only"
