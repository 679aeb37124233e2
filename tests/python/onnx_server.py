#!/usr/bin/env python3
"""Runs a bundle's graphs on ONNX Runtime for a test: requests on stdin, answers on stdout.

    onnx_server.py BUNDLE

A request is a line of JSON {"graph": FILE, "input": NAME, "shape": […], "outputs": [NAME, …]} and the input's f32 values; an answer is a
line of JSON with the outputs' shapes and their values one after the other.
"""
import json
import pathlib
import sys

import numpy as np
import onnxruntime


def main():
    root = pathlib.Path(sys.argv[1])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    sessions = {}
    source, target = sys.stdin.buffer, sys.stdout.buffer
    while line := source.readline():
        request = json.loads(line)
        name = request["graph"]
        if name not in sessions:
            sessions[name] = onnxruntime.InferenceSession(root / name, options, providers=["CPUExecutionProvider"])
        count = int(np.prod(request["shape"]))
        values = np.frombuffer(source.read(4 * count), "<f4").reshape(request["shape"])
        outputs = sessions[name].run(request["outputs"], {request["input"]: values})
        target.write(json.dumps([list(o.shape) for o in outputs]).encode() + b"\n")
        for output in outputs:
            target.write(np.ascontiguousarray(output, "<f4").tobytes())
        target.flush()


if __name__ == "__main__":
    main()
