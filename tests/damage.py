"""Files damaged on purpose: bits flipped, and manifests changed by someone who knows how their digest is made."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from parse_mpi.storage.manifest import MANIFEST_NAME, canonical_json


def flip(path: Path, position: int, bit: int = 0) -> None:
    """Flip one bit of a file. position: of its byte; a negative one counts from the end."""
    with open(path, "r+b", buffering=0) as file:
        file.seek(position, os.SEEK_SET if position >= 0 else os.SEEK_END)
        (byte,) = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1 << bit]))


def flipped(path: Path, bits: Iterable[int]) -> Iterator[None]:
    """Have these bits of every byte of a file flipped in turn; the file is whole again in the end."""
    content = path.read_bytes()
    with open(path, "r+b", buffering=0) as file:
        for position, byte in enumerate(content):
            for bit in bits:
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), position)
                yield
            os.pwrite(file.fileno(), bytes([byte]), position)


def forge(directory: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest of a checkpoint and give it the digest that it then must have."""
    path = directory / MANIFEST_NAME
    body = json.loads(path.read_text())
    del body["manifest_sha256"]
    change(body)
    body["manifest_sha256"] = hashlib.sha256(canonical_json(body).encode()).hexdigest()
    path.write_text(json.dumps(body))
