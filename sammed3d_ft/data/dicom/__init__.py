"""DICOM in and out: PET and CT series to arrays with their place, SUV, regions of RTSTRUCT and SEG.

Arrays are (column, row, slice), slices in order of position; `Series.affine` takes such an index to world mm (RAS+).
Coordinates inside DICOM files are LPS; only `Series.affine` turns them. Import the modules: this one loads nothing.
"""
