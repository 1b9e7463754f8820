"""Write a PET in SUV as a classic DICOM series in Bq/ml, to practise importing a hospital's DICOM folder.

sammed3d-ft phantom --out phantoms --cases 1 --val 0 --test 0 --seed 5
python scripts/phantom_dicom.py phantoms/imagesTr/phantom_psma_5_0000_0001.nii.gz dicom

Each slice is one file with its own rescale slope, as written by scanners. The fictitious patient weighs 70 kg and
received 250 MBq of fluorine-18 one hour before the scan; the PET is decay-corrected to the start of the scan.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, PositronEmissionTomographyImageStorage, generate_uid

from sammed3d_ft.images.grids import Volume
from sammed3d_ft.images.images import read_image

_WEIGHT_KG, _DOSE_BQ, _HALF_LIFE_S, _WAIT_S = 70.0, 2.5e8, 6586.2, 3600.0


def pet_series(pet: Volume) -> list[Dataset]:
    """One dataset per axial slice. In DICOM order, rows run to posterior and columns to the patient's left."""
    decayed_bq = _DOSE_BQ * math.exp(-math.log(2) * _WAIT_S / _HALF_LIFE_S)
    # Canonical axes point to right, anterior and superior; LPS needs the first two reversed.
    activity = pet.array[::-1, ::-1].astype(np.float64) * decayed_bq / (_WEIGHT_KG * 1000)
    step_mm = pet.spacing_mm
    if not np.allclose(pet.affine[:3, :3], np.diag(step_mm)):
        raise SystemExit("error: the image is oblique; phantoms are not")
    first = pet.to_mm(np.array(activity.shape) - 1) * [-1, -1, 1]  # position of column 0, row 0, in LPS
    bottom = float(pet.affine[2, 3])
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    slices = []
    for number in range(activity.shape[2]):
        one = _header(study, series, frame)
        one.SOPInstanceUID, one.InstanceNumber = generate_uid(), number + 1
        one.ImagePositionPatient = [float(first[0]), float(first[1]), bottom + number * float(step_mm[2])]
        one.PixelSpacing, one.SliceThickness = [float(step_mm[1]), float(step_mm[0])], float(step_mm[2])
        pixels = activity[:, :, number].T
        slope = max(float(pixels.max()) / 32767, 1e-6)
        one.RescaleSlope, one.RescaleIntercept = f"{slope:.10g}"[:16], 0
        stored = np.clip(np.rint(pixels / float(one.RescaleSlope)), 0, 32767).astype("<i2")
        one.Rows, one.Columns = stored.shape
        one.PixelData = stored.tobytes()
        one.NumberOfSlices = activity.shape[2]
        slices.append(one)
    return slices


def _header(study: str, series: str, frame: str) -> Dataset:
    one, tracer = Dataset(), Dataset()
    one.file_meta = FileMetaDataset()
    one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one.SOPClassUID, one.Modality = PositronEmissionTomographyImageStorage, "PT"
    one.StudyInstanceUID, one.SeriesInstanceUID, one.FrameOfReferenceUID = study, series, frame
    one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Phantom", "phantom", "", "O"
    one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20200102", "110000", "1", ""
    one.ReferringPhysicianName, one.SeriesNumber, one.Manufacturer = "", 1, "phantom"
    one.SeriesDate = one.AcquisitionDate = "20200102"
    one.SeriesTime = one.AcquisitionTime = "110000"
    one.SeriesDescription = "phantom, PET"
    tracer.RadionuclideTotalDose, tracer.RadionuclideHalfLife = _DOSE_BQ, _HALF_LIFE_S
    tracer.RadiopharmaceuticalStartTime = "100000"  # `_WAIT_S` before the scan
    one.RadiopharmaceuticalInformationSequence = [tracer]
    one.PatientWeight, one.Units, one.DecayCorrection = _WEIGHT_KG, "BQML", "START"
    one.CorrectedImage = ["DECY", "ATTN", "SCAT"]
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 16, 15, 1
    return one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pet", type=Path, help="NIfTI in SUV")
    parser.add_argument("out", type=Path, help="output folder")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    slices = pet_series(read_image(given.pet))
    for one in slices:
        one.save_as(given.out / f"PT{one.InstanceNumber:04d}.dcm", enforce_file_format=True)
    print(f"{given.out}: {len(slices)} slices")


if __name__ == "__main__":
    main()
