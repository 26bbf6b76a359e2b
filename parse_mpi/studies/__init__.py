"""Reads run directories: reports, and later comparisons and scaling studies."""
