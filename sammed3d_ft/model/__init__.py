"""SAM-Med3D: architecture, variants, weights, adapters."""
