"""parse_mpi: decentralised multimodal learning with PARSE on MPI ranks (arXiv 2601.10012)."""

__version__ = "0.1.0"
