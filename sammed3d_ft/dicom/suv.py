"""The factor that converts PET values to SUV by body weight, from the headers of a series.

The definition is the vendor-neutral pseudo-code of QIBA (RSNA Quantitative Imaging Biomarkers Alliance, FDG-PET/CT).
For decay correction to the start of the scan (START), with dose, half-life and weight from the header, it is

    SUVbw = C [Bq/ml] * weight [g] / (dose [Bq] * 2^(-(scan - injection) / half-life))

- Units BQML: as above. With decay correction to the injection (ADMIN) the power is 1, since values and dose refer to
  the same moment (PS3.3 C.8.9.1.1.5), and no time is needed.
- CNTS (Philips): private (7053,1000) is SUVbw per rescaled value. If it is absent, (7053,1009) is Bq/ml per rescaled
  value, and the rest is as for BQML.
- GML: already SUV, factor 1; refused if SUV Type says lean body mass or surface area.

"scan" is Series Date and Time, unless that is later than some slice's Acquisition Date and Time. In that case the
series was created later, and the scan time is the first available of: GE's private scan time (0009,xx0D); the time
computed back from one frame (acquisition - frame reference time + the moment in the frame at which the rate is
average); the first acquisition.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from sammed3d_ft.errors import InputError

# After ten half-lives a thousandth of the activity is left, so a later scan means a wrong time, date or half-life.
_MAX_HALF_LIVES = 10.0
# Longer-lived tracers may be scanned days later, so an injection time without a date is ambiguous.
_LONGEST_HALF_LIFE_WITHOUT_DATE_S = 86400.0
# Every patient dose is above 1 MBq; a smaller number means that the dose was written in kBq or MBq.
_SMALLEST_DOSE_BQ = 1e6
_WEIGHTS_KG = (0.3, 500.0)


@dataclass(frozen=True)
class SuvScale:
    """`factor` times a rescaled value is SUVbw (g/ml); `how` (words) and `facts` (numbers) say how it was computed."""

    factor: float
    how: str
    facts: dict[str, Any]


def suv_scale(headers: Sequence[Dataset], where: str = "PET series") -> SuvScale:
    """The SUVbw factor of a PET series; see the module docstring for the definition.

    Args:
        headers: of all slices, in any order.
        where: name of the series, for messages.

    Raises:
        InputError: a required value is missing, implausible, or differs between slices; unsupported units or decay
            correction; values not corrected for attenuation or decay.
    """
    if not headers:
        raise ValueError("no headers")
    units = _same(headers, lambda header: _text(header, "Units"), "Units", where)
    corrections = _corrections(headers[0])
    if corrections and "ATTN" not in corrections:
        raise InputError(f"{where}: is not corrected for attenuation, as SUV requires; choose another series")
    facts: dict[str, Any] = {"units": units}
    if units == "GML":
        kind = _same(headers, lambda header: _text(header, "SUVType"), "SUV Type", where)
        if kind not in ("", "BW"):
            raise InputError(f"{where}: contains SUV of type {kind}, expected BW (body weight)")
        return SuvScale(1.0, "values are already SUV (GML), used unchanged", facts | {"suv_type": kind or "BW"})
    if units == "CNTS":
        factor = _same(headers, lambda header: _philips(header, 0x00), "Philips SUV factor (7053,1000)", where)
        if factor:
            facts["philips_suv_factor"] = factor
            return SuvScale(factor, "Philips private SUV factor (7053,1000)", facts)
        bqml = _same(headers, lambda header: _philips(header, 0x09), "Philips factor (7053,1009)", where)
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
    moment = _same(headers, lambda header: _text(header, "DecayCorrection"), "Decay Correction", where)
    if moment not in ("START", "ADMIN"):
        raise InputError(
            f"{where}: Decay Correction is {moment or 'missing'}, expected START or ADMIN; SUV cannot be computed"
        )
    weight_kg = _same(headers, lambda header: _number(header, "PatientWeight"), "Patient's Weight", where)
    if weight_kg is None or weight_kg <= 0:
        raise InputError(f"{where}: Patient's Weight is missing, so SUV cannot be computed")
    if not _WEIGHTS_KG[0] <= weight_kg <= _WEIGHTS_KG[1]:
        raise InputError(f"{where}: Patient's Weight {weight_kg:g} is not a plausible weight in kg")
    tracers = headers[0].get("RadiopharmaceuticalInformationSequence") or []
    if len(tracers) != 1:
        found = f"names {len(tracers)} radiopharmaceuticals" if tracers else "has no radiopharmaceutical information"
        raise InputError(f"{where}: {found}, so SUV cannot be computed; export it with one dose, time and half-life")
    dose_bq = _same(headers, lambda header: _number(_tracer(header), "RadionuclideTotalDose"), "dose", where)
    if not dose_bq or dose_bq < 0:
        raise InputError(f"{where}: Radionuclide Total Dose is missing, so SUV cannot be computed")
    if dose_bq < _SMALLEST_DOSE_BQ:
        raise InputError(f"{where}: Radionuclide Total Dose {dose_bq:g} is too small for Bq; is it in kBq or MBq?")
    facts |= {"decay_correction": moment, "weight_kg": weight_kg, "dose_bq": dose_bq}
    if moment == "ADMIN":
        how += "weight / dose; values are decay-corrected to the injection (ADMIN)"
        return SuvScale(to_bqml * weight_kg * 1000 / dose_bq, how, facts)
    half_life_s = _same(headers, lambda header: _number(_tracer(header), "RadionuclideHalfLife"), "half-life", where)
    if not half_life_s or half_life_s < 0:
        raise InputError(f"{where}: Radionuclide Half Life is missing, so SUV cannot be computed")
    scan, scan_from = _scan_start(headers, half_life_s, where)
    injection, injection_from = _injection(headers[0], scan, half_life_s, where)
    decay_s = (scan - injection).total_seconds()
    if not 0 <= decay_s <= _MAX_HALF_LIVES * half_life_s:
        raise InputError(
            f"{where}: the scan ({scan}, {scan_from}) starts {decay_s:.0f} s after the injection ({injection}, "
            f"{injection_from}), with a half-life of {half_life_s:g} s; a time, date or the half-life is wrong"
        )
    facts |= {
        "half_life_s": half_life_s,
        "scan_start": scan.isoformat(),
        "scan_start_from": scan_from,
        "injection": injection.isoformat(),
        "injection_from": injection_from,
        "decay_s": decay_s,
    }
    decayed_bq = dose_bq * 2 ** (-decay_s / half_life_s)
    how += "weight / dose decayed to the start of the scan (START)"
    return SuvScale(to_bqml * weight_kg * 1000 / decayed_bq, how, facts)


def _scan_start(headers: Sequence[Dataset], half_life_s: float, where: str) -> tuple[datetime, str]:
    """The time that START refers to, and where it comes from."""
    series = _same(headers, lambda header: _date_time(header, "Series", where), "Series Date and Time", where)
    acquisitions = [_date_time(header, "Acquisition", where) for header in headers]
    first = min(range(len(headers)), key=lambda i: acquisitions[i])
    if series <= acquisitions[first]:
        return series, "series date and time"
    header = headers[first]
    ge = _ge_scan_start(header, where)
    if ge is not None:
        return ge, "GE private scan date and time"
    reference_ms, duration_ms = _number(header, "FrameReferenceTime"), _number(header, "ActualFrameDuration")
    if reference_ms and duration_ms and reference_ms > 0 and duration_ms > 0:
        # Activity falls as exp(-x) over the frame; it equals its mean where exp(-x) = (1 - exp(-total)) / total.
        rate = math.log(2) / half_life_s
        total = rate * duration_ms / 1000
        average_s = math.log(total / -math.expm1(-total)) / rate
        start = acquisitions[first] - timedelta(seconds=reference_ms / 1000 - average_s)
        return start, "acquisition and frame reference time"
    return acquisitions[first], "first acquisition"


def _ge_scan_start(header: Dataset, where: str) -> datetime | None:
    value = _private(header, 0x0009, "GEMS_PETD_01", 0x0D)
    return None if value is None else _parse_date_time(value, "GE scan date and time (0009,xx0D)", header, where)


def _injection(header: Dataset, scan: datetime, half_life_s: float, where: str) -> tuple[datetime, str]:
    tracer = _tracer(header)
    stated = _text(tracer, "RadiopharmaceuticalStartDateTime")
    if stated:
        name = "Radiopharmaceutical Start DateTime"
        return _parse_date_time(stated, name, header, where), "radiopharmaceutical start date and time"
    text = _text(tracer, "RadiopharmaceuticalStartTime")
    if not text:
        raise InputError(f"{where}: the time of injection is missing, so SUV cannot be computed")
    if half_life_s > _LONGEST_HALF_LIFE_WITHOUT_DATE_S:
        raise InputError(
            f"{where}: the injection has a time but no date, which is ambiguous with a half-life of "
            f"{half_life_s / 3600:.0f} h; Radiopharmaceutical Start DateTime is needed"
        )
    injection = datetime.combine(scan.date(), _parse(TM, text, "Radiopharmaceutical Start Time", where))
    if injection > scan:
        return injection - timedelta(days=1), "radiopharmaceutical start time, the day before the scan"
    return injection, "radiopharmaceutical start time, the day of the scan"


def _date_time(header: Dataset, which: str, where: str) -> datetime:
    date, time = _text(header, f"{which}Date"), _text(header, f"{which}Time")
    if not date or not time:
        raise InputError(f"{where}: {which} {'Time' if date else 'Date'} is missing, so SUV cannot be computed")
    return datetime.combine(_parse(DA, date, f"{which} Date", where), _parse(TM, time, f"{which} Time", where))


def _parse_date_time(text: str, name: str, header: Dataset, where: str) -> datetime:
    """A DT value as the scanner's local time, since DA and TM values have no time zone."""
    parsed: datetime = _parse(DT, text, name, where)
    zone = _text(header, "TimezoneOffsetFromUTC")
    if parsed.tzinfo is not None and zone:
        parsed = parsed.astimezone(_parse(DT, f"20000101000000{zone}", "Timezone Offset From UTC", where).tzinfo)
    return datetime(*parsed.timetuple()[:6], parsed.microsecond)


def _parse(kind: Any, text: str, name: str, where: str) -> Any:
    try:
        value = kind(text)
    except (TypeError, ValueError):
        value = None
    if value is None:
        raise InputError(f"{where}: {name} {text!r} cannot be read as a date or time")
    return value


def _tracer(header: Dataset) -> Dataset:
    return (header.get("RadiopharmaceuticalInformationSequence") or [Dataset()])[0]


def _corrections(header: Dataset) -> set[str]:
    value = header.get("CorrectedImage") or ()
    return {value} if isinstance(value, str) else set(value)  # pydicom returns a single value without a list


def _text(header: Dataset, keyword: str) -> str:
    value = header.get(keyword)
    return "" if value is None else str(value).strip()


def _number(header: Dataset, keyword: str) -> float | None:
    try:
        value = float(_text(header, keyword))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _private(header: Dataset, group: int, creator: str, element: int) -> str | None:
    """A private element as text; None when it is missing or empty."""
    try:
        value = header.private_block(group, creator)[element].value
    except KeyError:
        return None
    if isinstance(value, bytes):  # the VR is unknown if the file was rewritten by software that does not know it
        value = value.decode("ascii", "replace")
    return str(value).strip(" \0") or None


def _philips(header: Dataset, element: int) -> float | None:
    value = _private(header, 0x7053, "Philips PET Private Group", element)
    try:
        number = float(value or 0)
    except ValueError:
        return None
    return number if math.isfinite(number) and number > 0 else None


def _same(headers: Sequence[Dataset], read: Callable[[Dataset], Any], name: str, where: str) -> Any:
    values = {read(header) for header in headers}
    if len(values) > 1:
        raise InputError(f"{where}: slices differ in {name} ({', '.join(sorted(str(value) for value in values)[:3])})")
    return values.pop()
