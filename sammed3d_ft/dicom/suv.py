"""The factor that converts PET values to SUV by body weight, from the headers of a series.

The definition is the vendor-neutral pseudo-code of QIBA (RSNA Quantitative Imaging Biomarkers Alliance, FDG-PET/CT).
For decay correction to the start of the scan (START), with dose, half-life and weight from the header, it is

    SUVbw = C [Bq/ml] * weight [g] / (dose [Bq] * 2^(-(scan - injection) / half-life))

- Units BQML: as above. With decay correction to the injection (ADMIN) the power is 1, since values and dose refer to
  the same moment (PS3.3 C.8.9.1.1.5), and no time is needed.
- CNTS (Philips): private (7053,1000) is SUVbw per rescaled value. If it is absent, (7053,1009) is Bq/ml per rescaled
  value, and the rest is as for BQML.
- GML: already SUV, factor 1; refused if SUV Type says lean body mass or surface area.

The moments of "scan" and "injection" come from `decay_times`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydicom.dataset import Dataset
from pydicom.uid import EnhancedPETImageStorage

from sammed3d_ft.dicom.decay_times import decay_times
from sammed3d_ft.dicom.headers import number_of, private_text, reading, same_in_all, text_of, tracer_of
from sammed3d_ft.errors import InputError

# Every patient dose is above 1 MBq; a smaller number means that the dose was written in kBq or MBq.
_SMALLEST_DOSE_BQ = 1e6
# In an enhanced PET the dose is in MBq (PS3.3 C.8.22.4); a larger number means that it was written in Bq.
_LARGEST_DOSE_MBQ = 1e5
_WEIGHTS_KG = (0.3, 500.0)


@dataclass(frozen=True)
class SuvScale:
    """`factor` times a rescaled value is SUVbw (g/ml); `how` (words) and `facts` (numbers) say how it was computed.

    `warnings` name the attributes that contradict the others and were therefore not used.
    """

    factor: float
    how: str
    facts: dict[str, Any]
    warnings: tuple[str, ...] = ()


def suv_scale(headers: Sequence[Dataset], where: str = "PET series") -> SuvScale:
    """The SUVbw factor of a PET series; see the module docstring for the definition.

    Args:
        headers: headers of all slices, in any order.
        where: name of the series, for error messages.

    Raises:
        InputError: a required value is missing, implausible, or differs between slices; unsupported units or decay
            correction; values not corrected for attenuation or decay.
    """
    if not headers:
        raise ValueError("no headers")
    with reading(where):
        return _suv_scale(headers, where)


def _suv_scale(headers: Sequence[Dataset], where: str) -> SuvScale:
    units = same_in_all(headers, lambda header: text_of(header, "Units"), "Units", where)
    corrections = _corrections(headers[0])
    if corrections and "ATTN" not in corrections:
        raise InputError(f"{where}: is not corrected for attenuation, as SUV requires; choose another series")
    facts: dict[str, Any] = {"units": units}
    if units == "GML":
        kind = same_in_all(headers, lambda header: text_of(header, "SUVType"), "SUV Type", where)
        if kind not in ("", "BW"):
            raise InputError(f"{where}: contains SUV of type {kind}, expected BW (body weight)")
        return SuvScale(1.0, "values are already SUV (GML), used unchanged", facts | {"suv_type": kind or "BW"})
    if units == "CNTS":
        if corrections and "DECY" not in corrections:
            raise InputError(f"{where}: is not corrected for decay, as SUV requires; choose another series")
        factor = same_in_all(headers, lambda header: _philips(header, 0x00), "Philips SUV factor (7053,1000)", where)
        if factor:
            facts["philips_suv_factor"] = factor
            return SuvScale(factor, "Philips private SUV factor (7053,1000)", facts)
        bqml = same_in_all(headers, lambda header: _philips(header, 0x09), "Philips factor (7053,1009)", where)
        if not bqml:
            raise InputError(
                f"{where}: contains counts (CNTS) without Philips' factors (7053,1000) or (7053,1009), so SUV cannot "
                "be computed; keep private elements when exporting"
            )
        facts["philips_bqml_factor"] = bqml
        return _from_bqml(headers, where, facts, bqml, "Philips private factor (7053,1009) to Bq/ml, then ")
    if units == "BQML":
        return _from_bqml(headers, where, facts, 1.0, "")
    raise InputError(f"{where}: values are in {units or 'no stated units'}; SUV needs BQML, CNTS or GML")


def _from_bqml(headers: Sequence[Dataset], where: str, facts: dict[str, Any], to_bqml: float, how: str) -> SuvScale:
    corrections = _corrections(headers[0])
    if not {"ATTN", "DECY"} <= corrections:
        raise InputError(
            f"{where}: Corrected Image ({', '.join(sorted(corrections)) or 'missing'}) must name ATTN and DECY, "
            "attenuation and decay correction, for SUV; choose another series"
        )
    moment = same_in_all(headers, lambda header: text_of(header, "DecayCorrection"), "Decay Correction", where)
    if moment not in ("START", "ADMIN"):
        raise InputError(
            f"{where}: Decay Correction is {moment or 'missing'}, expected START or ADMIN; SUV cannot be computed"
        )
    weight_kg = same_in_all(headers, lambda header: number_of(header, "PatientWeight"), "Patient's Weight", where)
    if weight_kg is None or weight_kg <= 0:
        raise InputError(f"{where}: Patient's Weight is missing, so SUV cannot be computed")
    if not _WEIGHTS_KG[0] <= weight_kg <= _WEIGHTS_KG[1]:
        raise InputError(f"{where}: Patient's Weight {weight_kg:g} is not a plausible weight in kg")
    tracers = headers[0].get("RadiopharmaceuticalInformationSequence") or []
    if len(tracers) != 1:
        found = f"names {len(tracers)} radiopharmaceuticals" if tracers else "has no radiopharmaceutical information"
        raise InputError(f"{where}: {found}, so SUV cannot be computed; export it with one dose, time and half-life")
    dose_bq = same_in_all(headers, lambda header: number_of(tracer_of(header), "RadionuclideTotalDose"), "dose", where)
    if not dose_bq or dose_bq < 0:
        raise InputError(f"{where}: Radionuclide Total Dose is missing, so SUV cannot be computed")
    warnings: tuple[str, ...] = ()
    if text_of(headers[0], "SOPClassUID") == EnhancedPETImageStorage:
        if dose_bq < _LARGEST_DOSE_MBQ:
            dose_bq *= 1e6
        else:
            warnings = (f"{where}: Radionuclide Total Dose {dose_bq:g} is too large for MBq, so it is taken as Bq",)
    if dose_bq < _SMALLEST_DOSE_BQ:
        raise InputError(f"{where}: Radionuclide Total Dose {dose_bq:g} is too small for Bq; is it in kBq or MBq?")
    facts |= {"decay_correction": moment, "weight_kg": weight_kg, "dose_bq": dose_bq}
    if moment == "ADMIN":
        how += "weight / dose; values are decay-corrected to the injection (ADMIN)"
        return SuvScale(to_bqml * weight_kg * 1000 / dose_bq, how, facts, warnings)
    half_life_s = same_in_all(
        headers, lambda header: number_of(tracer_of(header), "RadionuclideHalfLife"), "half-life", where
    )
    if not half_life_s or half_life_s < 0:
        raise InputError(f"{where}: Radionuclide Half Life is missing, so SUV cannot be computed")
    times = decay_times(headers, half_life_s, where)
    facts |= {
        "half_life_s": half_life_s,
        "scan_start": times.shown(times.scan),
        "scan_start_from": times.scan_from,
        "injection": times.shown(times.injection),
        "injection_from": times.injection_from,
        "decay_s": times.decay_s,
    }
    decayed_bq = dose_bq * 2 ** (-times.decay_s / half_life_s)
    how += "weight / dose decayed to the start of the scan (START)"
    warnings += (times.warning,) if times.warning else ()
    return SuvScale(to_bqml * weight_kg * 1000 / decayed_bq, how, facts, warnings)


def _corrections(header: Dataset) -> set[str]:
    value = header.get("CorrectedImage") or ()
    return {value} if isinstance(value, str) else set(value)  # pydicom returns a single value without a list


def _philips(header: Dataset, element: int) -> float | None:
    value = private_text(header, 0x7053, "Philips PET Private Group", element)
    try:
        number = float(value or 0)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None
