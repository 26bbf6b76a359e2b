"""Multimodal data sets: where they come from, who gets which sample, and in which order each agent sees its own."""
