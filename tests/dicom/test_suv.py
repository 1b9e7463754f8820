"""The SUV factor against values worked out by hand: `pet_header` is 70 kg, 200 MBq, one half-life before the scan."""

from __future__ import annotations

import math

import pytest
from pydicom.dataset import Dataset

from sammed3d_ft.dicom.suv import suv_scale
from sammed3d_ft.errors import InputError
from tests.support.synthetic_dicom import pet_header

START = 70_000 / 1e8  # g per Bq left after one half-life
ADMIN = 70_000 / 2e8
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
        # Injected at 23:00 the day before a scan at 00:50, told by a time alone or by the full date.
        (AT_0050 | {"RadiopharmaceuticalStartTime": "230000"}, 6600),
        (AT_0050 | {"RadiopharmaceuticalStartDateTime": "20200101230000.00"}, 6600),
        # The date goes before the time alone, which here is wrong.
        ({"RadiopharmaceuticalStartDateTime": "20200102105000", "RadiopharmaceuticalStartTime": "010000"}, 3600),
        # 09:50 UTC is 10:50 on a scanner at +0100.
        ({"RadiopharmaceuticalStartDateTime": "20200102095000+0000", "TimezoneOffsetFromUTC": "+0100"}, 3600),
        # Zr-89 after five days.
        ({"RadiopharmaceuticalStartDateTime": "20191228115000", "RadionuclideHalfLife": 282240}, 5 * 86400),
        # The series was made later than the scan: the first acquisition counts.
        ({"SeriesTime": "180000"}, 6600),
        ({"SeriesDate": "20200103", "SeriesTime": "010000"}, 6600),
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
    """GE's private time, else from a frame: over one half-life the mean rate is log2(2 ln 2) half-lives in."""
    header = pet_header(SeriesTime="180000", AcquisitionTime="120000", ActualFrameDuration=6_600_000)
    header.FrameReferenceTime = 1000 * (600 + 6600 * math.log2(2 * math.log(2)))
    scale = suv_scale([header])
    assert scale.facts["scan_start_from"] == "acquisition and frame reference time"
    assert scale.factor == pytest.approx(START, rel=1e-9)
    for vr, value in (("DT", "20200102110000.00"), ("UN", b"20200102110000.00 ")):
        ge = with_private(pet_header(SeriesTime="180000"), 0x0009, "GEMS_PETD_01", 0x0D, vr, value)
        assert suv_scale([ge]).facts["decay_s"] == 3600
        assert suv_scale([ge]).facts["scan_start_from"] == "GE private scan date and time"


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
        (pet_header(RadiopharmaceuticalStartDateTime="20200102120000"), "time, date or the half-life is wrong"),
        (pet_header(RadiopharmaceuticalStartDateTime="20150102100000"), "time, date or the half-life is wrong"),
        (pet_header(RadionuclideHalfLife=282240), "Start DateTime is needed"),
        (pet_header(SeriesTime=None), "Series Time is missing"),
        (pet_header(AcquisitionDate=None), "Acquisition Date is missing"),
        (pet_header(DecayCorrection="NONE"), "Decay Correction is NONE"),
        (pet_header(DecayCorrection=None), "Decay Correction is missing"),
        (pet_header(CorrectedImage=["DECY"]), "not corrected for attenuation"),
        (pet_header(CorrectedImage=["ATTN"]), "must name ATTN and DECY"),
        (pet_header(CorrectedImage=None), "must name ATTN and DECY"),
        (pet_header(Units="GML", SUVType="LBM"), "SUV of type LBM"),
        (pet_header(Units="GML", CorrectedImage=["DECY"]), "not corrected for attenuation"),
        (pet_header(Units="PROPCNTS"), "values are in PROPCNTS"),
        (pet_header(Units=None), "no stated units"),
        (philips(pet_header()), "without Philips' factors"),
    ],
)
def test_refusals_are_one_line_that_names_the_series(header: Dataset, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        suv_scale([header], "PET series X")
    assert str(caught.value).startswith("PET series X: ")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:Invalid value for VR TM")  # pydicom's own
def test_a_time_that_is_none_is_refused() -> None:
    header = pet_header(RadiopharmaceuticalStartTime="noon")
    with pytest.raises(InputError, match="Radiopharmaceutical Start Time 'noon' cannot be read as a date or time"):
        suv_scale([header])


def test_slices_that_differ_are_refused() -> None:
    for changes in ({"Units": "GML"}, {"PatientWeight": 71}, {"SeriesTime": "115001"}, {"RadionuclideTotalDose": 3e8}):
        with pytest.raises(InputError, match="slices differ in"):
            suv_scale([pet_header(), pet_header(**changes)])
