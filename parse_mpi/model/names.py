"""Names of a network's parts, shared with the slice tables; imports nothing, so that light commands may use it."""

from __future__ import annotations


def module_key(modality: str) -> str:
    """The key of a modality in a network's ModuleDicts, where plain names such as `values` or `type` are taken."""
    return f"m_{modality}"
