"""Slurm batch scripts for jobs and studies."""
