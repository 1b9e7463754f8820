"""Automatic models: the U-Net family, which segments whole scans without clicks."""
