"""Times of injection and of decay correction of a series, from headers that may lack dates.

The moment of decay correction (START) is the first available of

1. the moment stated in the file: Decay Correction DateTime, or the private elements of Siemens (0071,xx22) and GE
   (0009,xx0D);
2. Series Date and Time, unless they are later than the first acquisition, as in a series created afterwards;
3. the time derived from the frames, if all slices agree: acquisition - frame reference time + the moment in the frame
   at which the count rate equals its mean. GE's frame reference time refers to the frame's start instead;
4. the first acquisition.

De-identification often removes dates or shifts them separately, and leaves the times of day. If dates are missing or
contradict each other, only the times of day are used, provided that they leave only one possible day.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from pydicom.dataset import Dataset
from pydicom.valuerep import DA, DT, TM

from sammed3d_ft.dicom.headers import number_of, private_text, same_in_all, text_of, tracer_of
from sammed3d_ft.errors import InputError

# After ten half-lives, a thousandth of the activity is left: a later scan means a wrong time, date or half-life.
_MAX_HALF_LIVES = 10.0
# Without dates, the scan must be within this many half-lives of the injection, and these must be less than 24 h,
# because times of day do not determine the day: F-18, Ga-68 and shorter-lived tracers.
_MAX_HALF_LIVES_BY_TIMES = 5.0
_DAY = timedelta(days=1)
# Longer-lived tracers may be scanned days later, so an injection time without a date is ambiguous.
_LONGEST_HALF_LIFE_WITHOUT_DATE_S = 86400.0
# Scanners store the same moment with different fractions of a second.
_SAME_MOMENT = timedelta(seconds=1)
_SAME_INJECTION = timedelta(minutes=1)
_ANY_DAY = date(2000, 1, 2)
_DECAY_MOMENTS = {
    "Siemens private decay correction date and time": (0x0071, "SIEMENS MED PT", 0x22),
    "GE private scan date and time": (0x0009, "GEMS_PETD_01", 0x0D),
}
_GE_INJECTION = (0x0009, "GEMS_PETD_01", 0x3B)


@dataclass(frozen=True)
class DecayTimes:
    """The moments of decay correction and injection, their sources, and a warning about unused dates (or "")."""

    scan: datetime
    scan_from: str
    injection: datetime
    injection_from: str
    dated: bool = True
    warning: str = ""

    @property
    def decay_s(self) -> float:
        """Seconds from injection to scan."""
        return (self.scan - self.injection).total_seconds()

    def shown(self, moment: datetime) -> str:
        """One of the moments in ISO form, without its date if that was not used."""
        return moment.isoformat() if self.dated else moment.time().isoformat()

    def __str__(self) -> str:
        return (
            f"the scan ({self.shown(self.scan)}, {self.scan_from}) starts {self.decay_s:.0f} s after the injection "
            f"({self.shown(self.injection)}, {self.injection_from})"
        )


def decay_times(headers: Sequence[Dataset], half_life_s: float, where: str) -> DecayTimes:
    """The times between which the dose decays, for a series corrected to START; see the module docstring.

    Args:
        headers: headers of all slices, in any order.
        half_life_s: half-life of the tracer in seconds.
        where: name of the series, for error messages.

    Raises:
        InputError: a missing or unreadable time; contradictory times; contradictory or missing dates with a half-life
            too long for times of day alone.
    """
    missing = [
        f"{which} Date" for which in ("Series", "Acquisition") for one in headers if not text_of(one, f"{which}Date")
    ]
    if missing:
        problem = f"{missing[0]} is missing"
    else:
        dated = _times(headers, half_life_s, where, dated=True)
        if 0 <= dated.decay_s <= _MAX_HALF_LIVES * half_life_s:
            return dated
        problem = str(dated)
    if _MAX_HALF_LIVES_BY_TIMES * half_life_s > _DAY.total_seconds():
        raise InputError(
            f"{where}: {problem}, with a half-life of {half_life_s:g} s; a time, date or the half-life is wrong, and "
            "with such a long half-life, times of day do not determine the day"
        )
    timed = _times(headers, half_life_s, where, dated=False)
    if timed.decay_s > _MAX_HALF_LIVES_BY_TIMES * half_life_s:
        raise InputError(
            f"{where}: {problem}; by the times alone {timed}, with a half-life of {half_life_s:g} s; a time, "
            "date or the half-life is wrong"
        )
    return DecayTimes(
        timed.scan, timed.scan_from, timed.injection, timed.injection_from, dated=False,
        warning=f"{where}: {problem}, so dates are not used: by the times alone {timed}",
    )  # fmt: skip


def _times(headers: Sequence[Dataset], half_life_s: float, where: str, dated: bool) -> DecayTimes:
    scan, scan_from, warning = _decay_moment(headers, half_life_s, where, dated)
    injection, injection_from = _injection(headers[0], scan, half_life_s, where, dated)
    return DecayTimes(scan, scan_from, injection, injection_from, dated, warning)


def _decay_moment(headers: Sequence[Dataset], half_life_s: float, where: str, dated: bool) -> tuple[datetime, str, str]:
    """The moment of decay correction to START, its source, and a warning."""
    series = same_in_all(headers, lambda one: _moment(one, "Series", where, dated), "Series Date and Time", where)
    acquisitions = [_moment(one, "Acquisition", where, dated) for one in headers]
    if not dated:
        acquisitions = [_nearest(one, series) for one in acquisitions]
    first = min(acquisitions)
    for name in ("Decay Correction DateTime", *_DECAY_MOMENTS):
        stated = same_in_all(headers, lambda one, name=name: _stated(one, name), name, where)  # type: ignore[misc]
        if stated:
            written = _date_time(stated, name, headers[0], where)
            moment = _nearest(written, first)
            # De-identification often leaves private elements unchanged: only their time of day is correct.
            away = dated and moment != written
            warning = f"{where}: {name} {written} is on another day than the acquisition; only its time is used"
            return moment, name, warning if away else ""
    if series <= first + _SAME_MOMENT:
        return series, "series date and time" if dated else "series time", ""
    starts = [_start_by_frame(one, at, half_life_s) for one, at in zip(headers, acquisitions, strict=True)]
    known = [start for start in starts if start is not None]
    if len(known) == len(headers) and max(known) - min(known) <= 2 * _SAME_MOMENT:
        return known[acquisitions.index(first)], "acquisition and frame reference time", ""
    return first, "first acquisition", ""


def _stated(header: Dataset, name: str) -> str:
    if name in _DECAY_MOMENTS:
        return private_text(header, *_DECAY_MOMENTS[name])
    return text_of(header, "DecayCorrectionDateTime")


def _nearest(moment: datetime, reference: datetime) -> datetime:
    """The same time of day, on the day on which it is nearest to the reference."""
    return moment + round((reference - moment) / _DAY) * _DAY


def _start_by_frame(header: Dataset, acquisition: datetime, half_life_s: float) -> datetime | None:
    reference_ms, duration_ms = number_of(header, "FrameReferenceTime"), number_of(header, "ActualFrameDuration")
    if reference_ms is None or reference_ms < 0:
        return None
    if text_of(header, "Manufacturer").upper().startswith("GE"):
        return acquisition - timedelta(milliseconds=reference_ms)
    if not reference_ms or not duration_ms or duration_ms < 0:
        return None
    # Activity falls as exp(-x) over the frame; it equals its mean where exp(-x) = (1 - exp(-total)) / total.
    rate = math.log(2) / half_life_s
    total = rate * duration_ms / 1000
    average_s = math.log(total / -math.expm1(-total)) / rate
    return acquisition - timedelta(seconds=reference_ms / 1000 - average_s)


def _injection(header: Dataset, scan: datetime, half_life_s: float, where: str, dated: bool) -> tuple[datetime, str]:
    tracer = tracer_of(header)
    name, source = "Radiopharmaceutical Start DateTime", "radiopharmaceutical start date and time"
    stated, text = text_of(tracer, "RadiopharmaceuticalStartDateTime"), text_of(tracer, "RadiopharmaceuticalStartTime")
    if len(stated.split("+")[0]) < len("YYYYMMDDHHMM"):
        stated = ""  # a date without a time
    time = _parse(TM, text, "Radiopharmaceutical Start Time", where) if text else None
    if stated and time is not None:
        moment = _date_time(stated, name, header, where)
        other = _nearest(datetime.combine(moment.date(), time), moment)
        if abs(other - moment) > _SAME_INJECTION:
            raise InputError(
                f"{where}: {name} {stated} and Start Time {text} contradict each other by "
                f"{abs(other - moment).total_seconds():.0f} s; correct one of them"
            )
    if not stated and (time is None or (dated and half_life_s > _LONGEST_HALF_LIFE_WITHOUT_DATE_S)):
        name, source = "GE administration date and time (0009,xx3B)", "GE private administration date and time"
        stated = private_text(header, *_GE_INJECTION)
    if stated and dated:
        return _date_time(stated, name, header, where), source
    if stated:
        time, source = _date_time(stated, name, header, where).time(), source.replace("date and ", "")
    elif time is None:
        raise InputError(f"{where}: the time of injection is missing, so SUV cannot be computed")
    elif dated and half_life_s > _LONGEST_HALF_LIFE_WITHOUT_DATE_S:
        raise InputError(
            f"{where}: the injection has a time but no date, which is ambiguous with a half-life of "
            f"{half_life_s / 3600:.0f} h; Radiopharmaceutical Start DateTime is needed"
        )
    else:
        source = "radiopharmaceutical start time"
    injection = datetime.combine(scan.date(), time)
    if injection > scan:
        return injection - _DAY, f"{source}, the day before the scan"
    return injection, f"{source}, the day of the scan"


def _moment(header: Dataset, which: str, where: str, dated: bool) -> datetime:
    text = text_of(header, f"{which}Time")
    if not text:
        raise InputError(f"{where}: {which} Time is missing, so SUV cannot be computed")
    day = _parse(DA, text_of(header, f"{which}Date"), f"{which} Date", where) if dated else _ANY_DAY
    return datetime.combine(day, _parse(TM, text, f"{which} Time", where))


def _date_time(text: str, name: str, header: Dataset, where: str) -> datetime:
    """A DT value as the scanner's local time, since DA and TM values have no time zone."""
    parsed: datetime = _parse(DT, text, name, where)
    zone = text_of(header, "TimezoneOffsetFromUTC")
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
