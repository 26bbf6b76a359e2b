"""The only floor that writes HDF5: one write primitive, checkpoints with a manifest, metrics, the run directory."""
