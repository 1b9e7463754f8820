"""PET scanners: their voxels, resolution, reconstruction filter and noise.

`usual` covers most scanners in use. The other two serve to make different cohorts: `older` is a bismuth germanate or
early lutetium scanner without time of flight and with the filters of its time; `digital` has silicon photomultipliers,
point-spread reconstruction and almost no filter.

Sources of the resolution (NEMA NU 2, FWHM, 1 to 10 cm off axis): Discovery 600, bismuth germanate, 4.9 to 6.4 mm (De
Ponti et al., Med Phys 2011;38:968); Discovery MI 4.1 to 6.0 mm, mCT 4.3 to 5.9 mm, Vereos 4.0 mm (Hsu et al., J Nucl
Med 2017;58:1511, and its table of others). In patients, positron range and motion add blur, and point-spread modelling
removes some of it. Filters, noise and voxels are plausible settings without a source.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scanner:
    """Parameters of a scanner's images; ranges (low, high) are uniform.

    Attributes:
        spacings_mm: in-plane spacing and slice thickness of its reconstructions.
        psf_mm: FWHM of the point spread before the reconstruction filter.
        filter_mm: FWHM of the filter; at least 1.25 voxels, or it would not smooth.
        liver_noise: coefficient of variation in the liver of the finished image.
    """

    spacings_mm: tuple[tuple[float, float], ...]
    psf_mm: tuple[float, float]
    filter_mm: tuple[float, float]
    liver_noise: tuple[float, float]


SCANNERS: dict[str, Scanner] = {
    "usual": Scanner(
        spacings_mm=(
            (4.07, 3.0),
            (4.07, 2.0),
            (4.07, 5.0),
            (2.73, 3.27),
            (3.65, 3.27),
            (5.47, 3.27),
            (4.0, 4.0),
            (2.6, 2.0),
            (2.0, 3.0),
        ),
        psf_mm=(4, 7),
        filter_mm=(4, 6),
        liver_noise=(0.06, 0.14),
    ),
    "older": Scanner(
        spacings_mm=((4.69, 3.27), (4.69, 4.25), (5.31, 5.0), (5.47, 3.27)),
        psf_mm=(6, 7.5),
        filter_mm=(7, 9),
        liver_noise=(0.12, 0.2),
    ),
    "digital": Scanner(
        spacings_mm=((1.65, 1.65), (1.82, 2.79), (2.0, 2.0)),
        psf_mm=(3.2, 4.5),
        filter_mm=(2, 3),
        liver_noise=(0.08, 0.16),
    ),
}
