"""stainseg: from the raw download of a histology competition to a scored and submittable segmentation."""

__version__ = "0.1.0"
