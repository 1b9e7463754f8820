"""DICOM in and out: PET and CT series to arrays with an affine, SUV, and regions of RTSTRUCT and SEG.

Arrays are (column, row, slice), with slices in order of position; `Series.affine` maps such an index to world mm
(RAS+). Coordinates in DICOM files are LPS; only `Series.affine` converts them. Import the modules directly: this
package loads nothing.
"""
