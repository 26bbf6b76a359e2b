"""The only place that imports mpi4py: the world and its checks, neighbourhood exchange, mixing."""
