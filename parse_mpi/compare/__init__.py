"""Many launches for one question: a study file, its cells, their launches, and study.h5."""
