"""Runs a job: the trainer, its evaluation, its checkpoints and what a person sees meanwhile."""
