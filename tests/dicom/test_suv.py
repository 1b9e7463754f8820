"""The SUV factor against values worked out by hand: `pet_header` is 70 kg, 200 MBq, one half-life before the scan."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from sammed3d_ft.dicom.folder import choose_series, scan_folder
from sammed3d_ft.dicom.series import order_slices
from sammed3d_ft.dicom.suv import suv_scale
from sammed3d_ft.errors import InputError
from tests.support.synthetic_dicom import pet_header, write_series

START = 70_000 / 1e8  # g per Bq left after one half-life
ADMIN = 70_000 / 2e8
DATE_TIME, TIME = "RadiopharmaceuticalStartDateTime", "RadiopharmaceuticalStartTime"
AT_0050 = {"SeriesTime": "005000", "AcquisitionTime": "005000"}


def with_private(header: Dataset, group: int, creator: str, element: int, vr: str, value: object) -> Dataset:
    header.private_block(group, creator, create=True).add_new(element, vr, value)
    return header


def philips(header: Dataset, suv: float | None = None, bqml: float | None = None) -> Dataset:
    header.Units = "CNTS"
    for element, value in ((0x00, suv), (0x09, bqml)):
        if value is not None:
            with_private(header, 0x7053, "Philips PET Private Group", element, "DS", value)
    return header


@pytest.mark.parametrize(
    ("header", "factor"),
    [
        (pet_header(), START),
        (pet_header(DecayCorrection="ADMIN"), ADMIN),
        # No time is needed where values and dose belong to the injection.
        (pet_header(DecayCorrection="ADMIN", SeriesTime=None, RadiopharmaceuticalStartTime=None), ADMIN),
        (pet_header(Units="GML"), 1.0),
        (pet_header(Units="GML", SUVType="BW", PatientWeight=None, CorrectedImage=None), 1.0),
        (philips(pet_header(PatientWeight=None), suv=0.00031), 0.00031),
        (philips(pet_header(), suv=0.00031, bqml=5), 0.00031),
        (philips(pet_header(), bqml=5), 5 * START),
        (philips(pet_header(), suv=0, bqml=5), 5 * START),
        (philips(pet_header(DecayCorrection="ADMIN"), bqml=5), 5 * ADMIN),
    ],
)
def test_units_and_decay_correction(header: Dataset, factor: float) -> None:
    scale = suv_scale([header, header])
    assert scale.factor == pytest.approx(factor, rel=1e-12)
    assert scale.facts["units"] == header.Units


@pytest.mark.parametrize(
    ("changes", "decay_s"),
    [
        ({}, 6600),
        ({"SeriesTime": "115000.250", "AcquisitionTime": "115001"}, 6600.25),
        # Injected at 23:00 on the day before a scan at 00:50, stated as a time or with the date.
        (AT_0050 | {"RadiopharmaceuticalStartTime": "230000"}, 6600),
        (AT_0050 | {DATE_TIME: "20200101230000.00", TIME: None}, 6600),
        ({DATE_TIME: "20200102105000", TIME: "105000.5"}, 3600),
        ({DATE_TIME: "20200102"}, 6600),  # a date without a time is not usable
        # 09:50 UTC is 10:50 on a scanner at +0100.
        ({DATE_TIME: "20200102095000+0000", TIME: "105000", "TimezoneOffsetFromUTC": "+0100"}, 3600),
        # Zr-89 after five days.
        ({DATE_TIME: "20191228115000", TIME: "115000", "RadionuclideHalfLife": 282240}, 5 * 86400),
        # The series was made later than the scan: the first acquisition counts.
        ({"SeriesTime": "180000"}, 6600),
        ({"SeriesDate": "20200103", "SeriesTime": "010000"}, 6600),
        # A Siemens mCT writes the acquisition some microseconds before the series.
        ({"SeriesTime": "115000.000000", "AcquisitionTime": "114959.999985"}, 6600),
    ],
)
def test_time_of_decay(changes: dict, decay_s: float) -> None:
    header = pet_header(**changes)
    scale = suv_scale([header])
    assert scale.facts["decay_s"] == pytest.approx(decay_s)
    half_life_s = changes.get("RadionuclideHalfLife", 6600)
    assert scale.factor == pytest.approx(70_000 / (2e8 * 2 ** (-decay_s / half_life_s)), rel=1e-12)


def test_series_time_counts_unless_it_is_after_the_first_of_all_acquisitions() -> None:
    beds = [pet_header(AcquisitionTime=time) for time in ("120000", "115500", "115000")]
    assert suv_scale(beds).facts["scan_start_from"] == "series date and time"
    assert suv_scale(beds).factor == pytest.approx(START)
    later = [pet_header(SeriesTime="115200", AcquisitionTime=time) for time in ("120000", "115500", "115000")]
    assert suv_scale(later).facts["scan_start_from"] == "first acquisition"
    assert suv_scale(later).factor == pytest.approx(START)


def test_scan_time_of_a_series_made_later() -> None:
    """From a frame: over one half-life the mean rate is log2(2 ln 2) half-lives in. GE counts to the frame's start."""
    header = pet_header(SeriesTime="180000", AcquisitionTime="120000", ActualFrameDuration=6_600_000)
    header.FrameReferenceTime = 1000 * (600 + 6600 * math.log2(2 * math.log(2)))
    scale = suv_scale([header])
    assert scale.facts["scan_start_from"] == "acquisition and frame reference time"
    assert scale.factor == pytest.approx(START, rel=1e-9)
    ge = pet_header(SeriesTime="180000", AcquisitionTime="120000", Manufacturer="GE MEDICAL SYSTEMS")
    ge.FrameReferenceTime = 600_000
    assert suv_scale([ge]).factor == pytest.approx(START, rel=1e-9)
    # Beds that do not agree on the start, as after de-identification of their times: the first acquisition counts.
    beds = [pet_header(SeriesTime="180000", Manufacturer="GE", FrameReferenceTime=ms) for ms in (1_215_000, 243_000, 0)]
    assert suv_scale(beds).facts["scan_start_from"] == "first acquisition"
    assert suv_scale(beds).factor == pytest.approx(START)


GE, SIEMENS = (0x0009, "GEMS_PETD_01"), (0x0071, "SIEMENS MED PT")


@pytest.mark.parametrize(
    ("creator", "element", "vr", "value", "decay_s", "source"),
    [
        (GE, 0x0D, "DT", "20200102110000.00", 3600, "GE private scan date and time"),
        (GE, 0x0D, "UN", b"20200102110000.00 ", 3600, "GE private scan date and time"),
        (SIEMENS, 0x22, "DT", "20200102110000.000000", 3600, "Siemens private decay correction date and time"),
        (SIEMENS, 0x22, "UN", b"20200102110000.000000 ", 3600, "Siemens private decay correction date and time"),
    ],
)
@pytest.mark.parametrize("series_time", ["105000", "115000", "180000"])  # made before the scan, at its start, and later
def test_the_moment_that_the_scanner_states_goes_first(
    creator: tuple, element: int, vr: str, value: object, decay_s: float, source: str, series_time: str
) -> None:
    header = with_private(pet_header(SeriesTime=series_time), *creator, element, vr, value)
    scale = suv_scale([header, header])
    assert (scale.facts["decay_s"], scale.facts["scan_start_from"], scale.warnings) == (decay_s, source, ())
    assert scale.factor == pytest.approx(70_000 / (2e8 * 2 ** (-decay_s / 6600)), rel=1e-12)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("element", "attributes", "factor"),
    [
        ((*GE, 0x0D, "DT", "20200102110000.00"), {}, 70_000 / (2e8 * 2 ** (-3600 / 6600))),
        ((*SIEMENS, 0x22, "DT", "20200102110000.00"), {}, 70_000 / (2e8 * 2 ** (-3600 / 6600))),
        ((0x7053, "Philips PET Private Group", 0x00, "DS", "0.00031"), {"Units": "CNTS"}, 0.00031),
        ((0x7053, "Philips PET Private Group", 0x09, "DS", "5"), {"Units": "CNTS"}, 5 * START),
        ((0x0065, "Image Private Header", 0x04, "LO", "anything"), {"Manufacturer": "UIH"}, START),
        ((*GE, 0x01, "LO", "anything"), {"SeriesDate": "", "AcquisitionDate": ""}, START),
    ],
)
def test_private_elements_are_read_from_files(
    element: tuple, attributes: dict, factor: float, syntax: str, tmp_path: Path
) -> None:
    """In implicit VR, a private element has no type in the file."""

    def edit(number: int, one: Dataset) -> None:
        with_private(one, *element)
        one.file_meta.TransferSyntaxUID = syntax

    write_series(tmp_path, change=edit, **attributes)
    series = order_slices(choose_series(scan_folder(tmp_path), "PT"))
    assert {header.file_meta.TransferSyntaxUID for header in series.headers} == {syntax}
    assert suv_scale(series.headers).factor == pytest.approx(factor, rel=1e-12)


def test_decay_correction_date_time_of_the_standard_goes_first() -> None:
    scale = suv_scale([pet_header(DecayCorrectionDateTime="20200102110000")])
    assert (scale.facts["decay_s"], scale.facts["scan_start_from"]) == (3600, "Decay Correction DateTime")


def test_a_private_moment_on_another_day_gives_its_time_of_day() -> None:
    """De-identification shifts the standard dates but not the private ones."""
    header = with_private(pet_header(SeriesTime="180000"), *SIEMENS, 0x22, "DT", "20191015110000")
    scale = suv_scale([header], "PET series X")
    assert (scale.facts["decay_s"], scale.facts["scan_start"]) == (3600, "2020-01-02T11:00:00")
    assert scale.warnings == (
        "PET series X: Siemens private decay correction date and time 2019-10-15 11:00:00 is on another day than the "
        "acquisition; only its time is used",
    )


def test_ge_private_injection_stands_in_for_a_missing_one() -> None:
    header = with_private(pet_header(RadiopharmaceuticalStartTime=None), *GE, 0x3B, "DT", "20200102100000.00")
    assert suv_scale([header]).factor == pytest.approx(START, rel=1e-12)
    assert suv_scale([header]).facts["injection_from"] == "GE private administration date and time"
    # It also gives the date that a long half-life needs.
    zirconium = with_private(pet_header(RadionuclideHalfLife=282240), *GE, 0x3B, "DT", "20191228115000")
    assert suv_scale([zirconium]).facts["decay_s"] == 5 * 86400


UNITED = {
    "Manufacturer": "UIH", "SeriesTime": "115000.000", "AcquisitionTime": "115000.000",
    DATE_TIME: "20200102100000.000", TIME: "100000.000",
    "CorrectedImage": ["NORM", "RAN", "DTIM", "ATTN", "SCAT", "DECY"],
}  # fmt: skip


def test_united_needs_nothing_private() -> None:
    later = UNITED | {"AcquisitionTime": "115400.000"}
    scale = suv_scale([pet_header(**UNITED), pet_header(**later)])
    assert (scale.factor, scale.facts["scan_start_from"]) == (pytest.approx(START), "series date and time")


NO_DATES = {"SeriesDate": "", "AcquisitionDate": ""}


@pytest.mark.parametrize(
    ("changes", "decay_s", "said"),
    [
        # The injection's date was shifted differently from the scan's, or not at all, in either direction.
        (
            {DATE_TIME: "20150714100000", TIME: "100000"},
            6600,
            r"starts 141\d{6} s after the injection \(2015-07-14T10:00",
        ),
        ({DATE_TIME: "20250714100000", TIME: None}, 6600, "starts -174"),
        ({DATE_TIME: "20200102100000", "SeriesDate": "20150101"}, 6600, "starts -157"),
        (AT_0050 | {DATE_TIME: "20150714230000", TIME: None}, 6600, "the day before the scan"),
        # Dates are blanked or gone.
        (NO_DATES, 6600, "Series Date is missing"),
        ({"SeriesDate": None, "AcquisitionDate": None}, 6600, "Series Date is missing"),
        ({"AcquisitionDate": ""}, 6600, "Acquisition Date is missing"),
        (NO_DATES | AT_0050 | {TIME: "230000"}, 6600, "the day before the scan"),
        # The scan itself spans midnight: the acquisition at 00:10 is after the series at 23:50.
        (NO_DATES | {"SeriesTime": "235000", "AcquisitionTime": "001000", TIME: "220000"}, 6600, "series time"),
        (NO_DATES | {"SeriesTime": "001000", "AcquisitionTime": "235000", TIME: "220000"}, 6600, "first acquisition"),
    ],
)
def test_times_alone_serve_where_dates_are_shifted_or_gone(changes: dict, decay_s: float, said: str) -> None:
    scale = suv_scale([pet_header(**changes)], "PET series X")
    assert scale.facts["decay_s"] == decay_s
    assert scale.factor == pytest.approx(70_000 / (2e8 * 2 ** (-decay_s / 6600)), rel=1e-12)
    (warning,) = scale.warnings
    assert re.search(said, warning)
    assert "so dates are not used: by the times alone the scan (" in warning
    assert "\n" not in warning
    assert "T" not in scale.facts["scan_start"] + scale.facts["injection"]  # no date is invented


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (pet_header(RadiopharmaceuticalInformationSequence=None), "has no radiopharmaceutical information"),
        (pet_header(RadiopharmaceuticalInformationSequence=[]), "has no radiopharmaceutical information"),
        (pet_header(RadiopharmaceuticalInformationSequence=[Dataset(), Dataset()]), "names 2 radiopharmaceuticals"),
        (pet_header(PatientWeight=None), "Patient's Weight is missing"),
        (pet_header(PatientWeight=0), "Patient's Weight is missing"),
        (pet_header(PatientWeight=70000), "not a plausible weight in kg"),
        (pet_header(RadionuclideTotalDose=None), "Radionuclide Total Dose is missing"),
        (pet_header(RadionuclideTotalDose=200), "is it in kBq or MBq"),
        (pet_header(RadionuclideHalfLife=None), "Radionuclide Half Life is missing"),
        (pet_header(RadionuclideHalfLife=110), "half-life is wrong"),  # minutes
        (pet_header(RadiopharmaceuticalStartTime=None), "time of injection is missing"),
        (
            pet_header(**{DATE_TIME: "20200102120000", TIME: None}),
            r"starts -600 s .* alone .* starts 85800 s .* is wrong",
        ),
        (pet_header(**{DATE_TIME: "20150102113000"}), "20150102113000 and Start Time 100000 contradict .* by 5400 s"),
        # Scanned 13 h after the injection, by the times: as likely a wrong time.
        (pet_header(**{DATE_TIME: "20150101225000", TIME: None}), "times alone .* starts 46800 s .* is wrong"),
        (pet_header(**NO_DATES, RadionuclideHalfLife=45720), "Series Date is missing.* not determine"),  # Cu-64
        (pet_header(RadionuclideHalfLife=282240), "Start DateTime is needed"),
        (pet_header(SeriesTime=None), "Series Time is missing"),
        (pet_header(AcquisitionTime=None), "Acquisition Time is missing"),
        (pet_header(DecayCorrection="NONE"), "Decay Correction is NONE"),
        (pet_header(DecayCorrection=None), "Decay Correction is missing"),
        (pet_header(CorrectedImage=["DECY"]), "not corrected for attenuation"),
        (pet_header(CorrectedImage=["ATTN"]), "must name ATTN and DECY"),
        (pet_header(CorrectedImage=None), "must name ATTN and DECY"),
        (pet_header(Units="GML", SUVType="LBM"), "SUV of type LBM"),
        (pet_header(Units="GML", CorrectedImage=["DECY"]), "not corrected for attenuation"),
        (pet_header(Units="PROPCNTS"), "values are in PROPCNTS"),
        (pet_header(Units=None), "no stated units"),
        (philips(pet_header(CorrectedImage=["ATTN"]), suv=0.00031), "not corrected for decay"),
        (philips(pet_header()), "without Philips' factors"),
    ],
)
def test_refusals_are_one_line_that_names_the_series(header: Dataset, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        suv_scale([header], "PET series X")
    assert str(caught.value).startswith("PET series X: ")


@pytest.mark.filterwarnings("ignore:Invalid value for VR TM")  # pydicom's own
def test_a_time_that_is_none_is_refused() -> None:
    header = pet_header(RadiopharmaceuticalStartTime="noon")
    with pytest.raises(InputError, match="Radiopharmaceutical Start Time 'noon' cannot be read as a date or time"):
        suv_scale([header])


def test_slices_that_differ_are_refused() -> None:
    for changes in ({"Units": "GML"}, {"PatientWeight": 71}, {"SeriesTime": "115001"}, {"RadionuclideTotalDose": 3e8}):
        with pytest.raises(InputError, match="slices differ in"):
            suv_scale([pet_header(), pet_header(**changes)])
