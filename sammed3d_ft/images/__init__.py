"""Images and their geometry: reading, writing, resampling, crops and intensities."""
