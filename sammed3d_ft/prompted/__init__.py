"""Prompted models: SAM-Med3D, trained with simulated clicks and used with a user's clicks."""
