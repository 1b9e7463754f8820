"""PET/CT phantoms of whole patients with known lesions, drawn from a seed.

Modules in reading order: `tissues` (HU and SUV with sources), `skeleton` and `organs` (anatomy in mm), `lesions`,
`scanners` and `physics` (imaging), `outlines` (labels), `simulate` (one case), `cohort` (a folder of cases).
"""
