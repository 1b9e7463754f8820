"""PET/CT phantoms of whole patients with known truth, drawn from a seed.

The parts, in reading order: `tissues` (HU and SUV with their sources), `skeleton` and `organs` (the anatomy,
in mm), `lesions` (what is to be found), `scanners` and `physics` (how it is seen), `outlines` (how it is labelled),
`simulate` (one case), `cohort` (a folder of cases).
"""
