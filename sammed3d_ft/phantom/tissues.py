"""HU and SUV of each tissue, for two PSMA tracers and FDG, with the variation between patients.

Sources of the uptake (SUV by body weight)
- PSMA, 18F-DCFPyL, 65 scans, mean of organ SUVmean with SD between scans: kidney 20.1 and 19.4 (4.6), parotid
  9.1 (2.0), submandibular 9.6 (2.3), lacrimal 6.6 (1.8), liver 5.0 (0.7), spleen 4.0 (1.5). Li et al., J Nucl
  Med 2017;58:942.
- PSMA, 68Ga, 55 men, SUVmax: duodenum 17.6 (8.9), Waldeyer ring 10.4 (4.3), vocal cords 8.4 (3), descending
  colon 10.6 (9.2) in 65 %, thyroid 4.5 in 22 %. "Evaluation of practical interpretation hurdles in 68Ga-PSMA
  PET/CT in 55 patients", Clin Nucl Med 2017;42(7).
- PSMA-1007, 1086 patients, median SUVmean (interquartile range): kidney 13.1 (4.6), liver 11.8 (4.4), parotid 18.6
  (6.8), spleen 11.3 (5.8). Trägårdh et al., Clin Physiol Funct Imaging 2025, doi 10.1111/cpf.70016. Excretion is
  hepatobiliary: bile is bright and urine is not (Dang et al., Front Med 2023;10:1238333); lesion uptake is as with
  PSMA-11 (Hoberück et al., EJNMMI Res 2021;11:109). All other values are those of the column PSMA.
- FDG: cerebellum 8.0 (2.2), Wang et al., Mol Imaging Biol 2007;9:83; liver SUVmean 1.88 (0.41), 343 patients,
  Liu et al., Iran J Radiol 2019;16(2):e84881. Myocardium and urine vary the most, with diet and with filling.
Small organs are blurred by the scanner: a published SUVmean of a lacrimal or salivary gland is lower than its
true concentration. The values below are true concentrations, chosen so that the *measured* mean agrees with
the source (`MEASURED_SUV`, checked by a test). Tissues without a source above (muscle, fat, lung, blood, bowel
contents, ...) have plausible background values.

HU are the usual unenhanced values (fat -100, water 0, muscle 50, liver 55, spleen 48, kidney 32, lung -800,
trabecular bone 150 to 250, cortical bone 900).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Tissue:
    """HU, and per tracer the mean SUV over patients with its coefficient of variation (log-normal)."""

    hu: float
    psma: tuple[float, float]
    fdg: tuple[float, float]


TISSUES: dict[str, Tissue] = {
    #                         HU      PSMA           FDG
    "air": Tissue(-1000, (0.0, 0.0), (0.0, 0.0)),
    "couch": Tissue(100, (0.0, 0.0), (0.0, 0.0)),
    "fat": Tissue(-105, (0.22, 0.2), (0.25, 0.2)),
    "visceral fat": Tissue(-95, (0.35, 0.2), (0.40, 0.2)),
    "muscle": Tissue(52, (0.55, 0.2), (0.70, 0.2)),
    "mediastinum": Tissue(10, (0.9, 0.2), (1.1, 0.2)),
    "blood": Tissue(42, (1.5, 0.2), (1.7, 0.2)),
    "lung": Tissue(-800, (0.35, 0.2), (0.45, 0.2)),
    "cortical bone": Tissue(900, (0.30, 0.2), (0.40, 0.2)),
    "marrow": Tissue(200, (0.85, 0.25), (1.3, 0.25)),
    "fatty marrow": Tissue(-30, (0.40, 0.2), (0.45, 0.2)),
    "disc": Tissue(75, (0.45, 0.2), (0.6, 0.2)),
    "cord": Tissue(25, (0.4, 0.2), (1.2, 0.2)),
    "grey matter": Tissue(38, (0.15, 0.3), (9.3, 0.25)),
    "white matter": Tissue(28, (0.12, 0.3), (4.0, 0.25)),
    "eye": Tissue(10, (0.3, 0.2), (0.8, 0.2)),
    "lacrimal gland": Tissue(35, (17.5, 0.27), (1.2, 0.2)),
    "parotid gland": Tissue(25, (12.3, 0.22), (1.8, 0.3)),
    "submandibular gland": Tissue(40, (12.6, 0.24), (2.0, 0.3)),
    "sublingual gland": Tissue(40, (9.0, 0.4), (3.2, 0.4)),
    "pharynx": Tissue(45, (6.0, 0.4), (3.0, 0.3)),
    "larynx": Tissue(45, (4.0, 0.35), (1.8, 0.4)),
    "thyroid": Tissue(100, (1.6, 0.4), (1.4, 0.3)),
    "myocardium": Tissue(45, (1.6, 0.2), (6.5, 0.75)),
    "liver": Tissue(55, (5.35, 0.14), (2.0, 0.21)),
    "gall bladder": Tissue(8, (2.5, 0.6), (1.0, 0.3)),
    "spleen": Tissue(48, (4.7, 0.38), (1.7, 0.2)),
    "pancreas": Tissue(38, (1.9, 0.25), (1.4, 0.2)),
    "adrenal": Tissue(15, (3.0, 0.3), (1.4, 0.2)),
    "ganglion": Tissue(35, (3.6, 0.3), (0.8, 0.2)),
    "kidney": Tissue(32, (23.0, 0.22), (2.6, 0.25)),
    "renal pelvis": Tissue(5, (14.0, 0.5), (7.0, 0.7)),
    "ureter": Tissue(10, (14.0, 0.6), (8.0, 0.7)),
    "urine": Tissue(5, (18.0, 0.8), (14.0, 0.7)),
    "bladder wall": Tissue(35, (0.8, 0.2), (0.9, 0.2)),
    "stomach": Tissue(40, (2.2, 0.35), (2.0, 0.3)),
    "stomach contents": Tissue(15, (0.7, 0.3), (0.8, 0.3)),
    "duodenum": Tissue(30, (12.5, 0.4), (1.8, 0.3)),
    "jejunum": Tissue(28, (5.5, 0.4), (1.7, 0.35)),
    "ileum": Tissue(25, (1.8, 0.4), (1.5, 0.35)),
    "colon": Tissue(35, (1.7, 0.5), (2.0, 0.5)),
    "colon contents": Tissue(-250, (0.5, 0.3), (0.7, 0.3)),
    "rectum": Tissue(30, (1.3, 0.3), (1.6, 0.4)),
    "prostate": Tissue(40, (2.8, 0.3), (1.6, 0.25)),
}

# Where PSMA-1007 differs from the column PSMA.
PSMA_1007: dict[str, tuple[float, float]] = {
    "liver": (12.6, 0.27),
    "spleen": (13.3, 0.36),
    "parotid gland": (25.3, 0.26),
    "submandibular gland": (25.0, 0.26),
    "kidney": (15.3, 0.25),
    "gall bladder": (45.0, 0.6),
    "renal pelvis": (6.0, 0.5),
    "ureter": (2.0, 0.6),
    "urine": (2.5, 0.8),
}
TRACERS = ("psma", "fdg", "psma-1007")

# Published means of SUVmean over an organ's outline, with the SD between patients: what a reader measures.
MEASURED_SUV: dict[str, dict[str, tuple[float, float]]] = {
    "psma": {
        "kidney": (19.75, 4.6),
        "parotid gland": (9.05, 2.05),
        "submandibular gland": (9.5, 2.25),
        "lacrimal gland": (6.5, 1.8),
        "liver": (5.0, 0.7),
        "spleen": (4.0, 1.5),
    },
    "psma-1007": {
        "kidney": (13.1, 3.4),
        "liver": (11.8, 3.3),
        "parotid gland": (18.6, 5.0),
        "spleen": (11.3, 4.3),
    },
    "fdg": {"liver": (1.88, 0.41), "cerebellum": (8.0, 2.2)},
}


def draw_suv(rng: np.random.Generator, tracer: str) -> dict[str, float]:
    """One patient's SUV per tissue: log-normal with the table's mean and coefficient of variation."""
    suv = {}
    for (
        name,
        tissue,
    ) in TISSUES.items():  # one draw per tissue, used or not, so that the draws do not depend on the tracer
        mean, variation = tissue.fdg if tracer == "fdg" else tissue.psma
        if tracer == "psma-1007":
            mean, variation = PSMA_1007.get(name, (mean, variation))
        sigma = np.sqrt(np.log1p(variation**2))
        suv[name] = float(mean * np.exp(sigma * rng.standard_normal() - sigma**2 / 2))
    suv["urine"] = min(suv["urine"], 80.0)
    return suv
