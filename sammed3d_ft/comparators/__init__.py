"""Methods to compare with that are not trained here: threshold rules, and the 2D SAM slice by slice."""
