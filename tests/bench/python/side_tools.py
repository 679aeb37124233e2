#!/usr/bin/env python3
"""The side of tests/bench that is other people's tools: pycocotools for the score, cbor2 for the wire."""
import contextlib
import io
import json
import pathlib

import cbor2

from protocol import serve

NAMES = ["AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L"]


class Score:
    def __init__(self, task):
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        self.coco, self.evaluation, self.folder = COCO, COCOeval, pathlib.Path(task["folder"])

    def run(self):
        with contextlib.redirect_stdout(io.StringIO()):
            truth = self.coco(str(self.folder / "annotations.json"))
            evaluation = self.evaluation(truth, truth.loadRes(str(self.folder / "results.json")), "keypoints")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        return evaluation.stats

    def check(self):
        return {"scores": dict(zip(NAMES, map(float, self.run())))}


class Wire:
    def __init__(self, task):
        folder = pathlib.Path(task["folder"])
        self.labels = json.loads((folder / "labels.json").read_text())
        # The product's own bytes.
        data, at = (folder / "labels.cbor").read_bytes(), 0
        self.bytes = []
        for length in json.loads((folder / "lengths.json").read_text()):
            self.bytes.append(data[at : at + length])
            at += length
        self.decode = task["kind"] == "decode"

    def run(self):
        if self.decode:
            for data in self.bytes:
                cbor2.loads(data)
        else:
            for label in self.labels:
                cbor2.dumps(label)

    def check(self):
        total = 0
        if [cbor2.loads(data) for data in self.bytes] != self.labels or [cbor2.dumps(label) for label in self.labels] != self.bytes:
            raise ValueError("the product's bytes are not these labels in CBOR")
        for data in self.bytes:
            for person in cbor2.loads(data)["i"]:
                total += person["s"] + sum(person["b"]) + sum(sum(keypoint) for keypoint in person["p"])
        return {"labels": len(self.labels), "sum": total, "bytes": sum(map(len, self.bytes))}


if __name__ == "__main__":
    serve(lambda task: {"score": Score, "encode": Wire, "decode": Wire}[task["kind"]](task))
