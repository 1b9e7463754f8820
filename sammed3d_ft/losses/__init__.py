"""Loss functions by name: L1DFL and MONAI's, with a common interface."""

from sammed3d_ft.losses.l1dfl import L1DFL

__all__ = ["L1DFL"]
