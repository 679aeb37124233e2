#!/usr/bin/env python3
"""Checks a bundle with the tools the world uses: onnx.checker on its graphs, onnxruntime on given inputs.

    check_bundle.py BUNDLE [CASES]

CASES is a folder with cases.json, a list of
    {"graph": "backbone.onnx",
     "input": {"file": "0.f32", "shape": [1, 3, 128, 96]},
     "outputs": {"features_0": {"file": "1.f32", "shape": [1, 32, 32, 24]}, ...},
     "tolerance": 1e-4}
whose files hold little-endian f32 values, row-major. An output may differ by `tolerance` times its largest absolute value.
Prints one JSON line per case with the worst relative difference; exits with 1 and says why when a check fails.
"""
import json
import pathlib
import sys

import numpy
import onnx
import onnxruntime

GRAPHS = {
    "backbone.onnx": ("image", ("features_", "objectness_", "deltas_")),
    "box_head.onnx": ("rois", ("class_logits", "box_deltas")),
    "keypoint_head.onnx": ("rois", ("heatmaps",)),
}


def fail(message):
    print(f"check_bundle: {message}", file=sys.stderr)
    sys.exit(1)


def check_graph(path, expected_input, expected_outputs):
    onnx.checker.check_model(str(path), full_check=True)
    model = onnx.load(str(path), load_external_data=False)
    inputs = [value.name for value in model.graph.input]
    outputs = [value.name for value in model.graph.output]
    if inputs != [expected_input]:
        fail(f"{path.name}: inputs {inputs}, expected [{expected_input!r}]")
    for prefix in expected_outputs:
        if not any(name.startswith(prefix) for name in outputs):
            fail(f"{path.name}: no output {prefix}… among {outputs}")
    for tensor in model.graph.initializer:
        # The two matrices of the bilinear enlargement are structure: the same for every set of weights.
        if tensor.name in ("heatmaps.rows", "heatmaps.columns"):
            continue
        large = tensor.data_type == onnx.TensorProto.FLOAT and numpy.prod(tensor.dims) > 64
        if large and tensor.data_location != onnx.TensorProto.EXTERNAL:
            fail(f"{path.name}: weight {tensor.name} lies inside the graph")


def read(folder, entry):
    return numpy.fromfile(folder / entry["file"], dtype="<f4").reshape(entry["shape"])


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    bundle = pathlib.Path(sys.argv[1])
    for name, (expected_input, outputs) in GRAPHS.items():
        check_graph(bundle / name, expected_input, outputs)
    sessions = {name: onnxruntime.InferenceSession(str(bundle / name), providers=["CPUExecutionProvider"]) for name in GRAPHS}
    if len(sys.argv) == 2:
        return
    folder = pathlib.Path(sys.argv[2])
    cases = json.loads((folder / "cases.json").read_text())
    if not cases:
        fail("cases.json is empty")
    for case in cases:
        session = sessions[case["graph"]]
        names = list(case["outputs"])
        found = session.run(names, {session.get_inputs()[0].name: read(folder, case["input"])})
        worst = 0.0
        for name, value in zip(names, found):
            expected = read(folder, case["outputs"][name])
            if value.shape != expected.shape:
                fail(f"{case['graph']}: {name} is {value.shape}, expected {expected.shape}")
            difference = float(numpy.abs(value - expected).max() / max(float(numpy.abs(expected).max()), 1e-30))
            if not difference <= case["tolerance"]:
                fail(f"{case['graph']}: {name} differs by {difference:.2e} of its largest value, allowed {case['tolerance']:.0e}")
            worst = max(worst, difference)
        print(json.dumps({"graph": case["graph"], "input": case["input"]["shape"], "worst": worst}))


if __name__ == "__main__":
    main()
