"""The skeleton of the phantom, and the sites of bone metastases.

A man of about 175 cm. Origin: midline, middle of the trunk, upper edge of the pubic symphysis; mm, x right, y
front, z up.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sammed3d_ft.phantom.shapes import Drum, Ellipsoid, Part, Point, Tube

BONE = ((0.0, "cortical bone"), (1.5, "marrow"))
SHAFT = ((0.0, "cortical bone"), (5.0, "fatty marrow"))

# Front-to-back course of the vertebral bodies' centres: (z, y), from the promontory to the skull.
SPINE_COURSE = np.array(
    (
        (110, -42), (150, -32), (200, -28), (250, -32), (312, -42), (360, -52), (400, -57),
        (450, -58), (500, -54), (550, -47), (600, -36), (655, -22), (712, -14),
    )
)  # fmt: skip
# name, number of vertebrae, pitch, half width, half depth of the body; from below
SPINE = (
    ("lumbar", 5, 38.0, 24.0, 17.5),
    ("thoracic", 12, 24.3, 16.5, 14.5),
    ("cervical", 7, 17.0, 12.0, 9.0),
)
SPINE_START_Z = 110.0
# per pair of ribs, from the first: half width and half depth of the cage, angle at which the bone ends
# (90 = midline), fall from the spine to that end
RIBS = (
    (52, 48, 58, 26), (84, 68, 60, 36), (104, 80, 60, 46), (118, 88, 60, 56), (127, 93, 60, 66),
    (132, 96, 58, 76), (135, 98, 55, 84), (136, 98, 46, 88), (135, 97, 38, 88), (132, 94, 28, 82),
    (126, 90, 2, 64), (114, 86, -24, 44),
)  # fmt: skip


@dataclass(frozen=True)
class LesionSite:
    """A lesion site: along `points` (mm), up to `radius_mm` away; a thicker lesion is stretched along it."""

    region: str
    points: np.ndarray
    radius_mm: float
    weight: float
    breathes: float = 0.0

    def placed(self, scale: np.ndarray, shift_mm: np.ndarray) -> LesionSite:
        return LesionSite(self.region, self.points * scale + shift_mm, self.radius_mm, self.weight, self.breathes)


def site(region: str, points: list[Point], radius_mm: float, weight: float, breathes: float = 0.0) -> LesionSite:
    return LesionSite(region, np.asarray(points, dtype=float), radius_mm, weight, breathes)


def spine_y(z: float | np.integer) -> float:
    return float(np.interp(z, SPINE_COURSE[:, 0], SPINE_COURSE[:, 1]))


def both_sides(points: list[Point]) -> list[list[Point]]:
    return [[(side * x, y, z) for x, y, z in points] for side in (1, -1)]


def spine() -> tuple[list[Part], list[LesionSite], dict[str, float]]:
    """Vertebral bodies with discs, canal, arches and spinous processes; and the height of each thoracic body."""
    parts: list[Part] = []
    sites: list[LesionSite] = []
    heights: dict[str, float] = {}
    z = SPINE_START_Z
    course = [(0.0, spine_y(h), float(h)) for h in np.arange(100, 722, 20)]
    parts.append(Part(Tube(course, 13.0), ((0.0, "disc"),)))
    for name, count, pitch, half_width, half_depth in SPINE:
        for number in range(count, 0, -1):
            middle = z + pitch / 2
            y = spine_y(middle)
            body = Drum((0, y, middle), (half_width, half_depth), pitch / 2 - (4.5 if name == "lumbar" else 2.5))
            parts.append(Part(body, BONE, organ="vertebra"))
            back = y - half_depth
            arch = half_width * 0.75
            for side in (1, -1):
                lamina: list[Point] = [
                    (side * arch, back, middle),
                    (side * arch, back - 14, middle - 3),
                    (0, back - 26, middle - 6),
                ]
                parts.append(Part(Tube(lamina, 4.5), BONE))
                if name != "cervical":
                    parts.append(
                        Part(
                            Tube(
                                [(side * arch, back - 10, middle), (side * (arch + 22), back - 16, middle)],
                                4.5,
                            ),
                            BONE,
                        )
                    )
            parts.append(
                Part(
                    Tube(
                        [
                            (0, back - 26, middle - 6),
                            (0, back - (46 if name != "cervical" else 38), middle - 16),
                        ],
                        4.0,
                    ),
                    BONE,
                )
            )
            weight = {"lumbar": 0.9, "thoracic": 0.55, "cervical": 0.15}[name]
            spread = half_width * 0.6
            sites.append(site("bone: spine", [(-spread, y, middle), (spread, y, middle)], half_depth, weight))
            heights[f"{name[0].upper()}{number}"] = middle
            z += pitch
    canal = [
        (0.0, spine_y(h) - (28.0 if h < 310 else 23.0 if h < 600 else 17.0), float(h)) for h in np.arange(110, 725, 20)
    ]
    parts.append(Part(Tube(canal, 7.5), ((0.0, "cord"),)))
    return parts, sites, heights


def chest_cage(heights: dict[str, float]) -> tuple[list[Part], list[LesionSite]]:
    parts: list[Part] = []
    sites: list[LesionSite] = []
    for number, (half_width, half_depth, end_deg, fall) in enumerate(RIBS, start=1):
        start_z = heights[f"T{number}"] + 4
        back = spine_y(start_z) - 22
        angles = np.radians(np.linspace(-74, end_deg, 12))
        t = np.linspace(0, 1, 12)
        y_centre = back + half_depth - 2
        course = np.stack(
            [half_width * np.cos(angles), y_centre + half_depth * np.sin(angles), start_z - fall * t**1.2], -1
        )
        for side in (1, -1):
            points = course * (side, 1, 1)
            parts.append(Part(Tube(points, 5.5), ((0.0, "cortical bone"), (1.2, "marrow")), organ="rib"))
            sites.append(LesionSite("bone: rib", points, 6.0, 0.14))
    parts.append(Part(Ellipsoid((0, 84, 490), (20, 6.5, 80), (-5, 0, 0)), BONE, organ="sternum"))
    sites.append(site("bone: sternum", [(0, 88, 440), (0, 80, 540)], 8, 0.5))
    for clavicle in both_sides([(14, 62, 560), (70, 48, 578), (140, -8, 592)]):
        parts.append(Part(Tube(clavicle, 6.5), BONE))
        sites.append(site("bone: clavicle", clavicle, 6, 0.15))
    for side in (1, -1):
        parts.append(Part(Ellipsoid((side * 112, -74, 525), (40, 5.5, 66), (0, side * -12, side * 28)), BONE))
        parts.append(Part(Tube([(side * 85, -86, 570), (side * 150, -40, 590)], 7.0), BONE))
        sites.append(site("bone: scapula", [(side * 100, -78, 490), (side * 125, -66, 560)], 7, 0.45))
    return parts, sites


def pelvis_and_limbs() -> tuple[list[Part], list[LesionSite]]:
    parts: list[Part] = []
    sites: list[LesionSite] = []
    parts.append(
        Part(
            Tube([(0, -46, 104), (0, -64, 82), (0, -78, 55), (0, -80, 28), (0, -68, 8)], (26, 23, 17, 11, 6)),
            BONE,
            organ="sacrum",
        )
    )
    sites.append(site("bone: sacrum", [(-26, -55, 95), (0, -66, 75), (26, -55, 95)], 16, 1.4))
    for side in (1, -1):
        parts += [
            Part(Ellipsoid((side * 34, -54, 92), (26, 17, 28), (20, 0, side * -25)), BONE, organ="sacrum"),
            Part(
                Ellipsoid((side * 84, -18, 132), (8.5, 52, 64), (0, side * 14, side * -38)),
                BONE,
                organ="ilium",
            ),
            Part(
                Tube([(side * 66, -42, 92), (side * 78, -18, 60), (side * 84, -6, 32)], (11, 14, 24)),
                BONE,
                organ="ilium",
            ),
            Part(Ellipsoid((side * 88, -2, 20), (27, 27, 27)), BONE, organ="ilium"),
            Part(
                Tube([(side * 80, -18, 20), (side * 66, -42, -18), (side * 56, -34, -38)], (16, 14, 10)),
                BONE,
                organ="ischium",
            ),
            Part(
                Tube([(side * 76, 10, 28), (side * 42, 38, 14), (side * 9, 44, -6)], (10, 8, 9)),
                BONE,
                organ="pubis",
            ),
            Part(Tube([(side * 10, 40, -14), (side * 50, -24, -38)], 7.0), BONE, organ="pubis"),
            Part(Tube([(side * 92, -2, 22), (side * 128, -14, -4)], (21, 14)), BONE, organ="femur"),
            Part(Ellipsoid((side * 90, -2, 22), (23, 23, 23)), BONE, organ="femur"),
            Part(Ellipsoid((side * 130, -16, -2), (18, 20, 24)), BONE, organ="femur"),
            Part(
                Tube([(side * 126, -13, -8), (side * 116, -6, -130), (side * 108, -4, -300)], (16, 13.5, 13)),
                SHAFT,
                organ="femur",
            ),
            Part(Ellipsoid((side * 172, -24, 604), (23, 23, 23)), BONE, organ="humerus"),
            Part(
                Tube([(side * 176, -20, 612), (side * 190, -6, 740), (side * 198, 4, 900)], (15, 11, 11)),
                SHAFT,
                organ="humerus",
            ),
        ]
        sites += [
            site("bone: ilium", [(side * 66, -42, 95), (side * 84, -18, 130), (side * 96, 0, 170)], 12, 1.6),
            site("bone: ilium", [(side * 84, -10, 40), (side * 80, -20, 62)], 18, 0.7),
            site("bone: ischium", [(side * 78, -22, 10), (side * 62, -40, -22)], 12, 0.7),
            site("bone: pubis", [(side * 60, 26, 22), (side * 14, 42, -2)], 8, 0.7),
            site("bone: femur", [(side * 92, -3, 20), (side * 128, -14, -6), (side * 122, -9, -90)], 13, 0.8),
            site("bone: humerus", [(side * 172, -24, 600), (side * 184, -12, 690)], 11, 0.35),
        ]
    return parts, sites


def head_bones() -> tuple[list[Part], list[LesionSite]]:
    """Skull with the brain inside it, and jaws."""
    parts = [
        Part(Ellipsoid((0, -4, 752), (58, 66, 34)), ((0.0, "cortical bone"), (5.0, "muscle"))),
        Part(Ellipsoid((0, -38, 752), (50, 38, 30)), ((0.0, "cord"), (2.0, "grey matter")), organ="cerebellum"),
        Part(Ellipsoid((0, 2, 800), (71, 89, 70)), ((0.0, "cortical bone"), (6.0, "cord"))),
        Part(
            Ellipsoid((0, 2, 800), (62.5, 80.5, 61.5)),
            ((0.0, "grey matter"), (9.0, "white matter")),
            organ="brain",
            rough_mm=1.5,
        ),
        Part(Ellipsoid((0, -40, 750), (46, 32, 22)), ((0.0, "grey matter"),), organ="cerebellum"),
        Part(Tube([(0, -20, 712), (0, -14, 760)], (8, 12)), ((0.0, "white matter"),), organ="brain"),
        Part(
            Tube([(-26, 50, 694), (-16, 76, 694), (0, 84, 694), (16, 76, 694), (26, 50, 694)], 7.0),
            ((0.0, "cortical bone"), (4.0, "marrow")),
        ),
        Part(
            Tube(
                [
                    (-52, 6, 722),
                    (-48, 18, 684),
                    (-30, 64, 670),
                    (0, 84, 668),
                    (30, 64, 670),
                    (48, 18, 684),
                    (52, 6, 722),
                ],
                6.5,
            ),
            BONE,
        ),
    ]
    for side in (1, -1):
        parts.append(Part(Ellipsoid((side * 16, 8, 800), (9, 22, 15)), ((0.0, "grey matter"),), organ="brain"))
        parts.append(
            Part(
                Ellipsoid((side * 20, -6, 800), (4, 26, 9), (0, 0, side * 10)),
                ((0.0, "cord"),),
                organ="brain",
            )
        )
    dome = [
        (-66.0, 0.0, 800.0),
        (-45.0, 0.0, 850.0),
        (0.0, -10.0, 868.0),
        (45.0, 0.0, 850.0),
        (66.0, 0.0, 800.0),
    ]
    return parts, [site("bone: skull", dome, 6, 0.4)]


def skeleton() -> tuple[list[Part], list[LesionSite]]:
    """All bones as parts (to be painted after the organs of the trunk) and all bone sites."""
    spine_parts, spine_sites, heights = spine()
    cage_parts, cage_sites = chest_cage(heights)
    pelvis_parts, pelvis_sites = pelvis_and_limbs()
    head_parts, head_sites = head_bones()
    return (
        head_parts + cage_parts + spine_parts + pelvis_parts,
        head_sites + cage_sites + spine_sites + pelvis_sites,
    )
