"""Evaluation of predicted masks: voxel, surface, detection and PET metrics, cohort statistics, tables."""

from sammed3d_ft.evaluation.case import evaluate_case

__all__ = ["evaluate_case"]
