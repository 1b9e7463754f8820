"""The SAM-Med3D variants and their architecture parameters."""

from __future__ import annotations

from dataclasses import dataclass

from sammed3d_ft.errors import InputError


@dataclass(frozen=True)
class Variant:
    """One architecture. Sizes are in voxels (crop), tokens (grid, window) or channels.

    The encoder's grid has ``image_size // patch_size`` tokens per axis; the decoder's logits have four times as many
    voxels per axis.
    """

    name: str
    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    global_blocks: tuple[int, ...]
    out_dim: int
    decoder_mlp_dim: int
    spacing_mm: float
    window: int = 14
    decoder_heads: int = 8
    decoder_depth: int = 2
    mask_in_channels: int = 16
    iou_hidden_dim: int = 256
    num_masks: int = 4

    @property
    def grid(self) -> int:
        """Tokens per axis of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def logits_size(self) -> int:
        """Voxels per axis of the decoder's low-resolution logits."""
        return 4 * self.grid


VARIANTS: dict[str, Variant] = {
    variant.name: variant
    for variant in (
        # The published SAM-Med3D (uni-medical/SAM-Med3D, `vit_b_ori`): 100.5 M parameters, crops at 1.5 mm.
        Variant(
            name="vit_b_ori",
            image_size=128,
            patch_size=16,
            embed_dim=768,
            depth=12,
            num_heads=12,
            global_blocks=(2, 5, 8, 11),
            out_dim=384,
            decoder_mlp_dim=2048,
            spacing_mm=1.5,
        ),
        # A small version of the same architecture, for laptops, tests and the demo. Its field of view is the same,
        # 192 mm: 64 voxels at 3 mm instead of 128 at 1.5 mm.
        Variant(
            name="mini",
            image_size=64,
            patch_size=8,
            embed_dim=192,
            depth=6,
            num_heads=3,
            global_blocks=(2, 5),
            out_dim=192,
            decoder_mlp_dim=768,
            spacing_mm=3.0,
        ),
    )
}


def variant_named(name: str) -> Variant:
    """The variant with this name; for an unknown name, InputError lists the known ones."""
    try:
        return VARIANTS[name]
    except KeyError:
        raise InputError(f"unknown model variant {name!r}: expected one of {', '.join(sorted(VARIANTS))}") from None
