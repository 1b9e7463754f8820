"""The soft tissues of the phantom (body outline, organs, vessels, nodes), and the complete patient.

Same frame as the skeleton (mm; x right, y front, z up from the symphysis). Organ sizes follow the reference
man of ICRP Publication 89: liver 1800 g, spleen 150 g, kidneys 310 g, brain 1450 g, heart with blood 840 g,
parotids 50 g and submandibular glands 25 g (both sides).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sammed3d_ft.phantom.shapes import Ellipsoid, Outline, Part, Point, Solid, Tube, draw_waves, point
from sammed3d_ft.phantom.skeleton import LesionSite, both_sides, site, skeleton, spine_y

# (z, half width, half depth, y centre) of a man with 15 mm of fat
TRUNK = (
    (-82, 40, 34, -12), (-62, 120, 72, -8), (-30, 172, 96, -6), (0, 180, 106, -4), (60, 178, 110, -2),
    (120, 168, 110, 0), (170, 160, 110, 0), (220, 152, 110, 0), (280, 154, 112, 0), (340, 162, 114, 0),
    (400, 167, 115, 0), (460, 171, 113, -2), (520, 177, 106, -5), (560, 182, 94, -10),
    (585, 172, 80, -14), (604, 128, 66, -15), (625, 78, 58, -16),
)  # fmt: skip
NECK_AND_HEAD = (
    (596, 80, 60, -16), (620, 62, 56, -16), (650, 58, 58, -12), (680, 62, 66, -6), (705, 69, 78, 0),
    (740, 76, 94, 4), (790, 79, 99, 4), (825, 74, 92, 4), (850, 61, 76, 3), (866, 42, 53, 2),
    (876, 14, 18, 2),
)  # fmt: skip
CAVITY = (  # inside of the abdominal wall
    (-4, 40, 34, 2), (20, 62, 48, 0), (60, 84, 62, 2), (120, 112, 76, 8), (180, 126, 82, 10),
    (250, 128, 84, 8), (330, 130, 86, 4), (365, 118, 78, 2), (392, 84, 58, 0), (408, 24, 16, 0),
)  # fmt: skip


@dataclass(frozen=True)
class Patient:
    """One patient: parts in painting order, lesion sites, and movement of the diaphragm, all in mm."""

    parts: tuple[Part, ...]
    sites: tuple[LesionSite, ...]
    scale: np.ndarray
    breath_mm: float
    waves: np.ndarray


def _loops(rng: np.random.Generator, centre: Point, reach: Point, count: int, step_mm: float) -> np.ndarray:
    """A smooth random path inside an ellipsoid, for bowel."""
    here, heading = rng.normal(0, 0.3, 3), rng.normal(0, 1, 3)
    points = []
    for _ in range(count):
        heading = (
            0.6 * heading / np.linalg.norm(heading)
            + rng.normal(0, 0.55, 3)
            - 0.8 * here * max(0.0, float(here @ here) - 0.35)
        )
        here = here + heading / np.linalg.norm(heading) * step_mm / np.asarray(reach)
        points.append(np.asarray(centre) + np.clip(here, -1.1, 1.1) * reach)
    return np.asarray(points)


def fill(tissue: str, solid: Solid, **more: Any) -> Part:
    return Part(solid, ((0.0, tissue),), **more)


def organ(name: str, solid: Solid, **more: Any) -> Part:
    """An organ whose tissue has the same name."""
    return Part(solid, ((0.0, name),), organ=name, **more)


def outline(rng: np.random.Generator) -> list[Part]:
    fat = float(np.clip(rng.lognormal(np.log(17), 0.35), 8, 38))
    more = fat - 15
    trunk = Outline([(z, a + more, b + more * 0.8, y) for z, a, b, y in TRUNK])
    skins: list[tuple[Solid, float]] = [(trunk, fat)]
    for side in (1, -1):
        thigh: list[Point] = [(side * 90, -6, 0), (side * 94, -4, -130), (side * 92, -2, -320)]
        arm: list[Point] = [(side * 150, -14, 565), (side * 182, -8, 640), (side * 198, 4, 920)]
        skins += [(Tube(thigh, (88 + more, 82 + more, 70)), fat), (Tube(arm, (46, 44, 36)), 0.3 * fat)]
    skins += [(Outline(NECK_AND_HEAD, 2.1), 4.0), (Ellipsoid((0, 46, 704), (56, 54, 52)), 5.0)]
    couch_y = -124 - more
    parts = [fill("couch", Outline([(-900, 215, 2.5, couch_y), (1500, 215, 2.5, couch_y)]))]
    # all of the fat before all of the muscle: where a limb joins the trunk no fat is left inside
    parts += [fill("fat", solid) for solid, _ in skins]
    parts += [Part(solid, ((depth, "muscle"),)) for solid, depth in skins]
    parts += [
        fill("visceral fat", Outline(CAVITY), rough_mm=4.0),
        fill("visceral fat", Ellipsoid((0, 16, 460), (46, 66, 100)), rough_mm=3.0),
    ]
    for side in (1, -1):
        parts += [
            fill("muscle", Tube([(side * 34, -66, 110), (side * 36, -76, 220), (side * 34, -84, 380)], 22.0)),
            fill(
                "muscle",
                Tube(
                    [
                        (side * 36, -30, 290),
                        (side * 46, -28, 210),
                        (side * 62, -14, 130),
                        (side * 76, 20, 50),
                        (side * 92, 14, -20),
                    ],
                    (8, 17, 19, 16, 12),
                ),
            ),
            fill("visceral fat", Ellipsoid((side * 66, -60, 30), (10, 8, 60), (0, side * 20, 0))),
        ]
    return parts


def head_and_neck() -> list[Part]:
    parts = [
        fill("air", Ellipsoid((0, 70, 726), (9, 22, 20))),
        fill("muscle", Ellipsoid((0, 74, 738), (1.5, 18, 18))),
        fill("air", Tube([(0, 22, 708), (0, 6, 684), (0, 12, 660)], 6.0)),
        organ("pharynx", Ellipsoid((0, 24, 718), (15, 6, 8))),
        organ("pharynx", Tube([(-15, 22, 700), (-13, 24, 688)], 4.5)),
        organ("pharynx", Tube([(15, 22, 700), (13, 24, 688)], 4.5)),
        fill("air", Tube([(0, 14, 655), (0, 8, 630), (0, -4, 590), (0, -18, 535)], (8, 9, 9, 9))),
        organ("larynx", Tube([(-6, 4, 638), (0, 20, 638), (6, 4, 638)], 3.5)),
        fill("stomach", Tube([(0, -20, 650), (-3, -32, 560), (-8, -36, 460), (-20, -20, 390)], 7.0)),
    ]
    for side in (1, -1):
        parts += [
            fill("air", Ellipsoid((side * 27, 62, 728), (13, 15, 17))),
            fill("eye", Ellipsoid((side * 31, 80, 757), (12.5, 12.5, 12.5))),
            organ("lacrimal gland", Ellipsoid((side * 43, 76, 768), (4, 7, 6.5), (0, side * -30, 0))),
            organ("parotid gland", Ellipsoid((side * 55, 6, 704), (12, 19, 26), (12, 0, 0)), rough_mm=2.0),
            organ("submandibular gland", Ellipsoid((side * 33, 34, 666), (11, 16, 16))),
            organ("sublingual gland", Ellipsoid((side * 12, 60, 672), (5, 13, 6), (0, 0, side * 12))),
            organ("thyroid", Ellipsoid((side * 18, 4, 612), (8, 9, 21))),
        ]
    return parts


def chest() -> list[Part]:
    heart = Ellipsoid((-18, 30, 438), (56, 44, 50), (0, 25, -25))
    left_ventricle = Ellipsoid((-42, 28, 426), (32, 37, 37), (0, 35, -35))
    return [
        organ("lung", Ellipsoid((71, -6, 462), (59, 84, 142), (0, 0, 8))),
        organ("lung", Ellipsoid((-71, -6, 464), (58, 83, 140), (0, 0, -8))),
        fill("visceral fat", Ellipsoid((-72, 4, 322), (64, 78, 74)), breathes=1.0),
        fill("mediastinum", Ellipsoid((0, 4, 500), (26, 58, 90))),
        fill("air", Tube([(0, -4, 590), (0, -16, 550)], 9.0)),
        fill("air", Tube([(50, -20, 505), (0, -16, 536), (-50, -20, 505)], (5, 8, 5))),
        Part(heart, ((0.0, "fat"), (4.0, "blood")), organ="heart", breathes=0.4),
        Part(left_ventricle, ((0.0, "myocardium"), (10.0, "blood")), organ="myocardium", breathes=0.4),
    ]


def vessels() -> list[Part]:
    arch = [(10, 12, 470), (16, 14, 515), (4, 0, 540), (-18, -30, 535), (-26, spine_y(510) + 10, 505)]
    down = [(-27, spine_y(z) + 12, z) for z in (480, 440, 400)] + [
        (-14, spine_y(z) + 28, z) for z in (350, 300, 250, 200, 174)
    ]
    cava = [
        (22, -8, 500),
        (22, 0, 430),
        (20, -2, 390),
        (19, spine_y(300) + 28, 300),
        (18, spine_y(200) + 26, 200),
        (16, -4, 168),
    ]
    parts = [fill("blood", Tube(arch + down, 11.0), organ="aorta"), fill("blood", Tube(cava, 10.5))]
    for side in (1, -1):
        start: Point = (-12, -2, 174) if side < 0 else (4, -2, 172)
        parts += [
            fill(
                "blood",
                Tube(
                    [
                        start,
                        (side * 40, -18, 118),
                        (side * 62, 14, 62),
                        (side * 74, 38, 22),
                        (side * 84, 34, -80),
                    ],
                    5.5,
                ),
            ),
            fill("blood", Tube([(side * 40, -18, 118), (side * 50, -48, 80), (side * 56, -40, 40)], 4.5)),
            fill("blood", Tube([(side * 14, 6, 545), (side * 26, 4, 610), (side * 30, 6, 680)], 5.0)),
        ]
    return parts


def gut(rng: np.random.Generator) -> list[Part]:
    wall_and_gas = ((0.0, "colon"), (4.0, "colon contents"))
    duodenum = [
        (20, 34, 288),
        (36, 18, 286),
        (42, 2, 255),
        (34, -6, 226),
        (8, 4, 216),
        (-18, 6, 226),
        (-30, 16, 248),
    ]
    colon = [
        [(98, 14, 105), (106, 0, 170), (104, -2, 228)],
        [(104, -2, 228), (80, 48, 232), (0, 74, 212), (-80, 50, 246), (-108, -14, 284)],
        [(-108, -14, 284), (-114, -18, 210), (-106, 4, 135)],
        [(-106, 4, 135), (-70, 34, 108), (-30, 20, 104), (10, -10, 106), (4, -44, 92)],
    ]
    parts = [
        organ("ileum", Tube(_loops(rng, (30, 40, 145), (62, 34, 46), 24, 26.0), 12.0)),
        *(
            Part(
                Tube(course, 17.0 + rng.uniform(-3, 4)),
                wall_and_gas,
                organ="colon",
                uptake=float(rng.lognormal(0, 0.4)),
            )
            for course in colon
        ),
        organ("rectum", Tube([(4, -44, 92), (0, -56, 60), (0, -50, 25), (0, -40, -15)], (14, 17, 16, 9))),
        organ("jejunum", Tube(_loops(rng, (-46, 36, 205), (62, 34, 58), 26, 27.0), 12.0), breathes=0.3),
        Part(
            Ellipsoid((-62, 26, 338), (42, 36, 56), (0, -25, 20)),
            ((0.0, "stomach"), (7.0, "stomach contents")),
            organ="stomach",
            breathes=0.8,
            rough_mm=5.0,
        ),
        organ(
            "pancreas",
            Tube([(22, 14, 262), (4, 26, 280), (-36, 8, 296), (-80, -22, 318)], (14, 10, 10, 9)),
            breathes=0.5,
        ),
        organ("duodenum", Tube(duodenum, 12.0), breathes=0.5),
    ]
    return parts


def upper_abdomen() -> list[Part]:
    parts = [
        organ("liver", Ellipsoid((65, -4, 334), (57, 72, 80), (0, 10, 0)), breathes=1.0, rough_mm=5.0),
        organ("liver", Ellipsoid((38, 26, 342), (56, 48, 54), (0, -20, -8)), breathes=1.0, rough_mm=5.0),
        organ("liver", Ellipsoid((-6, 44, 356), (58, 32, 28), (0, -12, -8)), breathes=1.0, rough_mm=5.0),
        organ("gall bladder", Ellipsoid((46, 54, 278), (12, 15, 28), (20, 0, 0)), breathes=1.0),
        organ("spleen", Ellipsoid((-102, -42, 330), (20, 38, 47), (-18, -14, -20)), breathes=1.0, rough_mm=4.0),
    ]
    for side, height in ((1, 244), (-1, 258)):
        parts += [
            organ(
                "kidney",
                Ellipsoid((side * 60, -46, height), (28, 25, 54), (6, side * -14, side * 25)),
                breathes=0.7,
                rough_mm=1.5,
            ),
            organ(
                "renal pelvis",
                Ellipsoid((side * 46, -38, height), (11, 9, 24), (0, side * -14, side * 25)),
                breathes=0.7,
            ),
            fill("adrenal", Ellipsoid((side * 34, -36, height + 60), (5, 9, 12)), breathes=0.7),
            fill("ganglion", Ellipsoid((side * 12, spine_y(305) + 22, 308), (3, 3.5, 9))),
            fill("ganglion", Ellipsoid((side * 16, -52, 62), (3, 3, 4)), uptake=0.8),
            fill("ganglion", Ellipsoid((side * 24, spine_y(585) + 12, 585), (3, 3, 6)), uptake=0.8),
        ]
    return parts


def lower_urinary(rng: np.random.Generator) -> tuple[list[Part], list[LesionSite]]:
    """Bladder (60 to 350 ml), prostate or prostate bed, and partly filled ureters, a classic pitfall."""
    operated = bool(rng.random() < 0.5)
    volume_ml = float(np.clip(rng.lognormal(np.log(140), 0.45), 60, 350))
    r = (volume_ml * 1000 * 3 / (4 * np.pi)) ** (1 / 3)
    base = 12.0 if operated else 29.0
    parts: list[Part] = []
    for side, height in ((1, 238), (-1, 252)):
        course = np.array(
            [
                (side * 44, -36, height),
                (side * 40, -28, 190),
                (side * 38, -22, 130),
                (side * 50, -38, 75),
                (side * 22, -14, base + 12),
            ]
        )
        dense = np.stack([np.interp(np.linspace(0, 4, 60), np.arange(5), axis) for axis in course.T], -1)
        for _ in range(int(rng.integers(0, 4))):
            start, length = int(rng.integers(0, 50)), int(rng.integers(2, 12))
            parts.append(
                organ(
                    "ureter",
                    Tube(dense[start : start + length + 1], 2.4),
                    uptake=float(rng.lognormal(-0.2, 0.6)),
                )
            )
    if not operated:
        size = float(rng.lognormal(0.1, 0.15))
        parts.append(organ("prostate", Ellipsoid((0, 2, 12), (22 * size, 16 * size, 17))))
    parts.append(
        Part(
            Ellipsoid((0, 14, base + 0.86 * r), (1.14 * r, 1.02 * r, 0.86 * r)),
            ((-2.5, "bladder wall"), (0.0, "urine")),
            organ="bladder",
            rough_mm=2.5,
        )
    )
    parts.append(fill("urine", Tube([(0, 8, base + 2), (0, 8, -22)], 2.2), uptake=0.25, organ="urethra"))
    bed = [(-10.0, -4.0, 14.0), (10.0, -4.0, 14.0)] if not operated else [(-9.0, -8.0, 4.0), (9.0, -8.0, 10.0)]
    return parts, [site("prostate bed", bed, 11 if operated else 16, 5.0)]


def node_sites() -> list[LesionSite]:
    sites = [
        site("node: retroperitoneal", [(-28, -2, 180), (-30, -8, 250), (-26, -12, 290)], 10, 1.6),
        site("node: retroperitoneal", [(2, 4, 185), (3, -2, 260)], 8, 1.0),
        site("node: mesorectal", [(-14, -70, 40), (12, -72, 70)], 7, 0.6),
        site("node: mediastinal", [(14, -12, 520), (-14, -14, 500), (2, -22, 470)], 10, 0.7),
        site("node: supraclavicular", [(-34, 20, 585), (-60, 6, 592)], 8, 0.6),
    ]
    for side in (1, -1):
        sites += [
            site("node: iliac", [(side * 34, -26, 130), (side * 48, -2, 92), (side * 64, 10, 56)], 8, 1.5),
            site("node: obturator", [(side * 60, -8, 56), (side * 58, 8, 36)], 8, 1.2),
            site("node: internal iliac", [(side * 44, -38, 100), (side * 54, -50, 66)], 8, 0.9),
            site("node: inguinal", [(side * 82, 52, 6), (side * 86, 52, -30)], 8, 0.25),
            site("node: axillary", [(side * 128, 10, 530), (side * 138, -10, 556)], 8, 0.15),
            site("node: cervical", [(side * 42, -4, 625), (side * 44, -8, 655)], 7, 0.2),
        ]
    return sites


def soft_tissue_sites() -> list[LesionSite]:
    """Lesion sites in lung, liver and muscle: common with FDG, rare with PSMA."""
    sites = [
        site("liver", [(50, 0, 320), (95, -10, 350)], 28, 0.8, breathes=1.0),
        site("muscle", [(95, -60, 40), (110, 10, -60)], 25, 0.2),
        site("muscle", [(-95, -60, 40), (-110, 10, -60)], 25, 0.2),
    ]
    return sites + [
        site("lung", points, 25, 0.7) for points in both_sides([(60, -30, 400), (85, 0, 470), (60, 0, 560)])
    ]


def _varied(part: Part, rng: np.random.Generator) -> Part:
    """The same organ in another patient: shifted by a few mm, a few per cent larger or smaller."""
    shift, size, uptake = (
        rng.normal(0, 2.5, 3),
        float(np.exp(rng.normal(0, 0.04))),
        float(np.exp(rng.normal(0, 0.04))),
    )
    solid = part.solid
    if part.organ in {"lung", "bladder", "brain", "cerebellum", "urethra", "prostate"} or not part.organ:
        return replace(part, uptake=part.uptake * uptake)
    if isinstance(solid, Ellipsoid):
        semi = point(np.asarray(solid.semi_axes) * size)
        return replace(
            part, solid=replace(solid, semi_axes=semi).placed(np.ones(3), shift), uptake=part.uptake * uptake
        )
    return replace(part, solid=solid.placed(np.ones(3), shift * 0.5), uptake=part.uptake * uptake)


def draw_patient(rng: np.random.Generator, tracer: str) -> Patient:
    """Draw one patient: stature, girth, positions and sizes of organs, and the tracer's lesion sites."""
    scale = np.clip(rng.normal(1, (0.05, 0.05, 0.04)), 0.88, 1.12)
    breath_mm = float(np.clip(rng.normal(0, 5), -10, 10))
    bones, bone_sites = skeleton()
    urinary, bed = lower_urinary(rng)
    trunk = chest() + gut(rng) + upper_abdomen() + vessels() + urinary
    ordered = outline(rng) + [_varied(part, rng) for part in trunk] + bones  # bones over the edges of lungs and organs,
    ordered += [_varied(part, rng) for part in head_and_neck()]  # eyes, glands and airways over the skull and the jaws
    sites = bed + node_sites() + bone_sites + (soft_tissue_sites() if tracer == "fdg" else [])
    none = np.zeros(3)
    return Patient(
        parts=tuple(replace(part, solid=part.solid.placed(scale, none)) for part in ordered),
        sites=tuple(place.placed(scale, none) for place in sites),
        scale=scale,
        breath_mm=breath_mm,
        waves=draw_waves(rng),
    )
