"""Run by the Python beside litert-torch, with nothing else of ours: from programs of torch.export to one .tflite file.

    python -P litert_converter.py FOLDER FILE

FOLDER holds b1.pt2, b8.pt2, ...: the program for each size of batch, with its example inputs by name. Each becomes the
signature that its file is named after; equal weights are stored once.
"""

from __future__ import annotations

import sys
from pathlib import Path

import litert_torch
import torch

_WIDE = (torch.int64, torch.float64, torch.complex128)


def convert(folder: Path, file: Path) -> None:
    """Write the file."""
    converter, wide = litert_torch.Converter(), False
    for archive in sorted(folder.glob("*.pt2")):
        program = torch.export.load(archive)
        inputs = program.example_inputs[1]
        module = program.module()
        tensors = (*inputs.values(), *module(**inputs).values())
        wide = wide or any(tensor.dtype in _WIDE for tensor in tensors)
        converter.signature(archive.stem, module, sample_kwargs=inputs)
    # Without it, 64-bit inputs and outputs become 32-bit ones, and clients of the original would be refused.
    converter.convert(enable_x64=wide).export(str(file))


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except Exception as error:  # torch's, and whatever the converter raises; its starter reads the last line
        sys.exit(f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}")
