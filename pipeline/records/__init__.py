"""What travels between stages and where it lies: cases, paths, manifests, rasters and the run-length codec."""
