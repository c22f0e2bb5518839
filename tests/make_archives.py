"""Writes data/archives/*.pt: what torch.save makes of small tensors whose values test_tensors.py knows.

python -m venv peer && peer/bin/pip install torch numpy && peer/bin/python tests/make_archives.py
"""

import collections
import pathlib

import numpy as np
import torch

FOLDER = pathlib.Path(__file__).parent / "data" / "archives"
KINDS = ["float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "uint16", "uint32", "uint64"]


def main():
    FOLDER.mkdir(exist_ok=True)
    count = torch.arange(24.0).reshape(4, 6)
    module = torch.nn.Sequential(collections.OrderedDict(inner=torch.nn.BatchNorm1d(2)))  # its state_dict has _metadata
    kinds = {kind: torch.arange(6).reshape(2, 3).to(getattr(torch, kind)) for kind in KINDS}
    views = {
        "whole": count,
        "transposed": count.T,
        "columns": count[1:, 1::2],
        "row": count[2],
        "number": count[3, 5],
        "repeated": count[0, :1].expand(3, 4),
        "empty": count[4:],
    }
    files = {
        "kinds": kinds | {"bool": torch.tensor([True, False])},
        "views": views,
        "parameter": {"weight": torch.nn.Parameter(torch.arange(3.0))},
        "nested": {
            "state_dict": module.state_dict(),
            "epoch": 3,
            "best": np.float64(0.5),
            "size": torch.Size([2]),
            "kind": torch.half,
        },
        "several": {"model": {"w": torch.zeros(1)}, "optimizer": {"state": {0: [torch.ones(1), None]}}},
        "ema": {"ema": {"w": torch.ones(1)}},
        "float8": {"first": torch.zeros(1), "scale": torch.ones(2, dtype=torch.float8_e4m3fn)},
        "complex": {"phase": torch.ones(2, dtype=torch.complex64)},
        "module": module,
        "bare": torch.ones(2),
    }
    for name, value in files.items():
        torch.save(value, FOLDER / f"{name}.pt")
    torch.save({"w": torch.ones(1)}, FOLDER / "protocol4.pt", pickle_protocol=4)
    torch.save({"w": torch.ones(1)}, FOLDER / "legacy.pt", _use_new_zipfile_serialization=False)
    print(sum(path.stat().st_size for path in FOLDER.iterdir()), "bytes, torch", torch.__version__)


if __name__ == "__main__":
    main()
