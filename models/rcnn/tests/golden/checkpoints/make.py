"""Small checkpoints in every format that is read, written by the libraries themselves: torch 2.13, numpy 2.4, Python's pickle.

    .venv-torch/bin/python models/rcnn/tests/golden/checkpoints/make.py

Every file holds the same tensors; `expected.json` says what they are. `python2.pkl` is written by hand as Python 2's cPickle writes it, for
there is no Python 2 to ask.
"""
import collections
import json
import pathlib
import pickle
import struct

import numpy as np
import torch

here = pathlib.Path(__file__).parent
torch.manual_seed(1)
base = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 7 - 1
state = collections.OrderedDict(
    [
        ("plain", torch.randn(2, 3)),
        ("parameter", torch.nn.Parameter(torch.randn(3))),
        ("transposed", base.t()),
        ("window", base[1:3, 2:5]),
        ("half", torch.randn(5).half()),
        ("brain", torch.randn(5).bfloat16()),
        ("double", torch.randn(2, 2).double()),
        ("scalar", torch.tensor(2.5)),
        ("empty", torch.zeros(0, 3)),
        ("bn.num_batches_tracked", torch.tensor(7)),
    ]
)
state._metadata = {"": {"version": 1}}
torch.save(state, here / "zip.pth")
torch.save(state, here / "legacy.pth", _use_new_zipfile_serialization=False)
wrapped = {"epoch": 3, "model": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"state": {}, "param_groups": [{"lr": 0.1}]}}
torch.save(wrapped, here / "wrapped.pth")
expected = {k: {"shape": list(v.shape), "values": v.detach().float().flatten().tolist()} for k, v in state.items() if v.is_floating_point()}
(here / "expected.json").write_text(json.dumps(expected))

# numpy has no bfloat16; Detectron2's files hold arrays under "model" beside texts.
arrays = {k: v.detach().numpy() for k, v in state.items() if v.dtype != torch.bfloat16}
arrays["brain"] = state["brain"].float().numpy()
arrays["transposed"] = np.asfortranarray(arrays["transposed"])
arrays["double"] = arrays["double"].astype(">f8")
for protocol in (2, 4, 5):
    (here / f"numpy{protocol}.pkl").write_bytes(pickle.dumps({"model": arrays, "__author__": "test", "matching_heuristics": True}, protocol))


def text(value):
    return b"U" + bytes([len(value)]) + value.encode() if len(value) < 256 else b"T" + struct.pack("<I", len(value)) + value.encode()


def tuple_of(*items):
    return b"(" + b"".join(items) + b"t"


def number(value):
    return b"J" + struct.pack("<i", value)


out = b"\x80\x02}q\x01" + text("blobs") + b"}q\x02("
for name, array in arrays.items():
    if array.dtype.kind != "f":
        continue
    order = array.dtype.str[0].replace("=", "<")
    data = array.tobytes("F" if array.flags.f_contiguous and not array.flags.c_contiguous else "C")
    fortran = b"\x88" if array.flags.f_contiguous and not array.flags.c_contiguous else b"\x89"
    dtype = b"cnumpy\ndtype\n" + tuple_of(text(array.dtype.str[1:]), number(0), number(1)) + b"R"
    dtype += tuple_of(number(3), text(order), b"N", b"N", b"N", number(-1), number(-1), number(0)) + b"b"
    shape = tuple_of(*[number(side) for side in array.shape])
    blob = b"T" + struct.pack("<I", len(data)) + data
    out += text(name) + b"cnumpy.core.multiarray\n_reconstruct\n" + tuple_of(b"cnumpy\nndarray\n", tuple_of(number(0)), text("b")) + b"R"
    out += tuple_of(number(1), shape, dtype, fortran, blob) + b"b"
out += b"us."
(here / "python2.pkl").write_bytes(out)
read = pickle.loads(out, encoding="latin1")["blobs"]
assert all(np.array_equal(read[k], arrays[k]) for k in read) and len(read) == len(expected), "numpy reads it otherwise"
