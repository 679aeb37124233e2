#!/usr/bin/env python3
"""The ONNX Runtime side of tests/bench: the exported graphs on the CPU provider, as somebody who has them and no PyTorch would run them.

What lies between the graphs runs on ONNX Runtime's own operators where it has one (Resize, RoiAlign, NonMaxSuppression, in small graphs
made here) and on numpy otherwise. Of the views whose boxes are known, only the path to the feature maps is run.
"""
import json
import math
import os
import pathlib
import struct
import zlib

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from protocol import serve

CLIP = math.log(1000 / 16)


def pixels(path):
    """[h, w, 3] of an 8-bit RGB PNG without interlacing."""
    data, at, parts, size = path.read_bytes(), 8, [], None
    while at < len(data):
        length, kind = struct.unpack(">I4s", data[at : at + 8])
        body = data[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            size = struct.unpack(">IIBBBBB", body)
        elif kind == b"IDAT":
            parts.append(body)
        at += 12 + length
    width, height, depth, colour, _, _, interlace = size
    assert (depth, colour, interlace) == (8, 2, 0), f"{path}: expected 8-bit RGB, found {size}"
    rows = np.frombuffer(zlib.decompress(b"".join(parts)), np.uint8).reshape(height, 1 + 3 * width)
    out = np.zeros((height, 3 * width), np.uint8)
    for y, row in enumerate(rows):
        kind, line, above = row[0], row[1:].astype(int), out[y - 1].astype(int) if y else np.zeros(3 * width, int)
        if kind == 1:
            line = np.cumsum(line.reshape(-1, 3), 0).reshape(-1)
        elif kind == 2:
            line = line + above
        elif kind in (3, 4):
            for x in range(len(line)):
                a, b, c = (line[x - 3] if x > 2 else 0), above[x], (above[x - 3] if x > 2 else 0)
                if kind == 3:
                    line[x] = (line[x] + (a + b) // 2) & 255
                else:
                    p = a + b - c
                    near = min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]
                    line[x] = (line[x] + near) & 255
        out[y] = line & 255
    return out.reshape(height, width, 3)


class Runtime:
    def __init__(self, threads):
        # Each session has workers of its own, which would spin in the way of the next session's.
        self.options = onnxruntime.SessionOptions()
        self.options.intra_op_num_threads = threads
        self.options.inter_op_num_threads = 1
        spinning = os.environ.get("OMNILABEL_ORT_SPINNING", "0")
        self.options.add_session_config_entry("session.intra_op.allow_spinning", spinning)
        self.part = onnxruntime.RunOptions()
        self.part.only_execute_path_to_fetches = True

    def load(self, model):
        model = model if isinstance(model, str) else model.SerializeToString()
        return onnxruntime.InferenceSession(model, self.options, providers=["CPUExecutionProvider"])

    def graph(self, nodes, inputs, outputs, constants=()):
        value = lambda name, kind, rank: helper.make_tensor_value_info(name, kind, [4] if name == "sizes" else [None] * rank)
        graph = helper.make_graph(nodes, "part", [value(*i) for i in inputs], [value(*o) for o in outputs], constants)
        return self.load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def decode(boxes, deltas, weights):
    """torchvision's BoxCoder."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + 0.5 * size
    d = deltas / np.float32(weights)
    centre = d[:, :2] * size + centre
    half = 0.5 * np.exp(np.minimum(d[:, 2:], np.float32(CLIP))) * size
    return np.concatenate([centre - half, centre + half], 1)


def clip(boxes, size):
    h, w = size
    return np.clip(boxes, 0, np.float32([w, h, w, h]))


class Detect:
    def __init__(self, task):
        folder = pathlib.Path(task["folder"])
        bundle = folder / "bundle"
        manifest = json.loads((bundle / "manifest.json").read_text())
        self.net, self.input, self.flips = manifest["network"], manifest["input"], manifest["skeleton"]["flip"]
        self.frame = pixels(sorted((folder / "frames").iterdir())[0])
        self.base, self.scales, self.flip, self.boxes = task["base"], task["scales"], task["flip"], task.get("boxes")
        self.runtime = runtime = Runtime(task["threads"])
        self.backbone, self.box_head, self.keypoint_head = (
            runtime.load(str(bundle / f"{name}.onnx")) for name in ("backbone", "box_head", "keypoint_head"))
        floats, ints = TensorProto.FLOAT, TensorProto.INT64
        mean, std = (np.float32(self.input[k]).reshape(1, 3, 1, 1) for k in ("mean", "std"))
        constant = lambda name, value: helper.make_tensor(name, floats, value.shape, value.flatten())
        resize = lambda mode, source: helper.make_node(
            "Resize", [source, "", "", "sizes"], ["out"], mode=mode, coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.75)
        self.transform = runtime.graph(
            [
                helper.make_node("Transpose", ["frame"], ["chw"], perm=[0, 3, 1, 2]),
                helper.make_node("Cast", ["chw"], ["float"], to=floats),
                helper.make_node("Sub", ["float", "mean"], ["centred"]),
                helper.make_node("Mul", ["centred", "factor"], ["normal"]),
                resize("linear", "normal"),
            ],
            [("frame", TensorProto.UINT8, 4), ("sizes", ints, 1)], [("out", floats, 4)],
            [constant("mean", mean * 255), constant("factor", 1 / (std * 255))])
        self.enlarge = runtime.graph([resize("cubic", "maps")], [("maps", floats, 4), ("sizes", ints, 1)], [("out", floats, 4)])
        self.suppress = runtime.graph(
            [helper.make_node("NonMaxSuppression", ["boxes", "scores", "most", "iou"], ["out"])],
            [("boxes", floats, 3), ("scores", floats, 3), ("most", ints, 1), ("iou", floats, 1)], [("out", ints, 2)])
        self.align = {}
        for kind in ("box_roi", "keypoint_roi"):
            spec = self.net[kind]
            mode = "half_pixel" if spec["aligned"] else "output_half_pixel"
            for level in range(self.net["roi_levels"]):
                side = spec["resolution"]
                node = helper.make_node(
                    "RoiAlign", ["x", "rois", "image"], ["out"], mode="avg", output_height=side, output_width=side,
                    sampling_ratio=spec["sampling_ratio"], spatial_scale=1 / self.net["levels"][level]["stride"],
                    coordinate_transformation_mode=mode)
                self.align[kind, level] = runtime.graph([node], [("x", floats, 4), ("rois", floats, 2), ("image", ints, 1)], [("out", floats, 4)])

    def size(self, side):
        h, w = self.frame.shape[:2]
        scale = min(side / min(h, w), self.input["max_long_side"] / max(h, w))
        return math.floor(h * scale), math.floor(w * scale)

    def image(self, side, mirrored):
        h, w = self.size(side)
        (x,) = self.transform.run(None, {"frame": self.frame[None], "sizes": np.int64([1, 3, h, w])})
        up = lambda v: -(-v // self.input["size_divisor"]) * self.input["size_divisor"]
        batch = np.zeros((2 if mirrored else 1, 3, up(h), up(w)), np.float32)
        batch[0, :, :h, :w] = x[0]
        if mirrored:
            batch[1, :, :h, :w] = x[0, :, :, ::-1]
        return batch

    def features(self, batch, rpn=False):
        names = [f"features_{i}" for i in range(self.net["roi_levels"])]
        if rpn:
            levels = range(len(self.net["levels"]))
            names += [f"objectness_{i}" for i in levels] + [f"deltas_{i}" for i in levels]
        found = self.backbone.run(names, {"image": batch}, self.runtime.part)
        n, l = self.net["roi_levels"], len(self.net["levels"])
        return (found[:n], found[n : n + l], found[n + l :]) if rpn else found

    def nms(self, boxes, scores, iou, most):
        if not len(boxes):
            return np.zeros(0, int)
        inputs = {"boxes": boxes[None], "scores": scores[None, None], "most": np.int64([most]), "iou": np.float32([iou])}
        return self.suppress.run(None, inputs)[0][:, 2]

    def anchors(self, level, rows, columns, padded):
        spec = self.net["levels"][level]
        ratios = np.float32(self.net["aspect_ratios"])
        h = np.sqrt(ratios) * np.float32(spec["anchor_size"])
        w = 1 / np.sqrt(ratios) * np.float32(spec["anchor_size"])
        cell = np.stack([-w, -h, w, h], 1) / 2
        rule = self.net.get("anchor_rule", "torchvision")
        if rule != "exact":
            cell = np.round(cell)
        sy, sx = (padded[0] // rows, padded[1] // columns) if rule == "torchvision" else (spec["stride"],) * 2
        y, x = np.meshgrid(np.arange(rows) * sy, np.arange(columns) * sx, indexing="ij")
        shift = np.stack([x, y, x, y], -1).reshape(-1, 1, 4).astype(np.float32)
        return (shift + cell[None].astype(np.float32)).reshape(-1, 4)

    def proposals(self, objectness, deltas, size, padded):
        rpn, boxes, scores = self.net["rpn"], [], []
        for level, (o, d) in enumerate(zip(objectness, deltas)):
            _, a, rows, columns = o.shape
            o = o[0].transpose(1, 2, 0).reshape(-1)
            d = d[0].reshape(a, 4, rows, columns).transpose(2, 3, 0, 1).reshape(-1, 4)
            most = min(rpn["pre_nms_top_n"], len(o))
            top = np.argpartition(-o, most - 1)[:most]
            top = top[np.argsort(-o[top], kind="stable")]
            found = clip(decode(self.anchors(level, rows, columns, padded)[top], d[top], [1, 1, 1, 1]), size)
            keep = ((found[:, 2:] - found[:, :2]) >= rpn["min_size"]).all(1)
            found, score = found[keep], o[top][keep]
            keep = self.nms(found, score, rpn["nms_iou"], rpn["post_nms_top_n"])
            boxes.append(found[keep])
            scores.append(score[keep])
        boxes, scores = np.concatenate(boxes), np.concatenate(scores)
        return boxes[np.argsort(-scores, kind="stable")[: rpn["post_nms_top_n"]]]

    def pool(self, features, rois, images, kind):
        net = self.net
        area = (rois[:, 2] - rois[:, 0]) * (rois[:, 3] - rois[:, 1])
        level = np.floor(net["canonical_level"] + np.log2(np.sqrt(area) / net["canonical_size"]) + 1e-6)
        level = np.clip(level, 0, net["roi_levels"] - 1).astype(int)
        side = net[kind]["resolution"]
        out = np.zeros((len(rois), features[0].shape[1], side, side), np.float32)
        for l in np.unique(level):
            at = np.where(level == l)[0]
            (out[at],) = self.align[kind, l].run(None, {"x": features[l], "rois": rois[at], "image": images[at]})
        return out

    def find(self, features, objectness, deltas, size, padded):
        rois = self.proposals(objectness, deltas, size, padded)
        pooled = self.pool(features, rois, np.zeros(len(rois), np.int64), "box_roi")
        logits, deltas = self.box_head.run(["class_logits", "box_deltas"], {"rois": pooled})
        e = np.exp(logits - logits.max(1, keepdims=True))
        scores = (e / e.sum(1, keepdims=True))[:, 1]
        boxes = clip(decode(rois, deltas[:, 4:8], self.net["box_coder"]), size)
        keep = (scores > self.net["score_threshold"]) & ((boxes[:, 2:] - boxes[:, :2]) >= 1e-2).all(1)
        boxes, scores = boxes[keep], scores[keep]
        keep = self.nms(boxes, scores, self.net["nms_iou"], self.net["max_detections"])
        return boxes[keep], scores[keep]

    def run(self):
        height, width = self.frame.shape[:2]
        size = self.size(self.base)
        to_base = np.float32([size[1] / width, size[0] / height] * 2)
        known = {}
        if self.boxes is None:
            batch = self.image(self.base, self.flip)
            features, objectness, deltas = self.features(batch[:1], True)
            boxes, scores = self.find(features, objectness, deltas, size, batch.shape[2:])
            if self.flip:
                mirrored = self.features(batch[1:])
                features = [np.concatenate(pair) for pair in zip(features, mirrored)]
            known[self.base] = features
        else:
            given = np.float32(self.boxes)
            boxes, scores = given[:, :4] * to_base, given[:, 4]
        if not len(boxes):
            return boxes, scores, np.zeros((0, len(self.flips), 2)), np.zeros((0, len(self.flips)))
        total, views = 0, 0
        for side in self.scales:
            h, w = self.size(side)
            features = known.get(side) or self.features(self.image(side, self.flip))
            rois = boxes * np.float32([w / size[1], h / size[0]] * 2)
            images = np.zeros(len(rois), np.int64)
            if self.flip:
                mirrored = np.stack([w - rois[:, 2], rois[:, 1], w - rois[:, 0], rois[:, 3]], 1)
                rois, images = np.concatenate([rois, mirrored]), np.concatenate([images, images + 1])
            pooled = self.pool(features, rois.astype(np.float32), images, "keypoint_roi")
            (maps,) = self.keypoint_head.run(["heatmaps"], {"rois": pooled})
            total = total + maps[: len(boxes)]
            if self.flip:
                total = total + maps[len(boxes) :][:, self.flips, :, ::-1]
            views += 2 if self.flip else 1
        maps, points, logits = total / np.float32(views), [], []
        for box, own in zip(boxes, maps):
            w, h = (max(v, np.float32(1)) for v in (box[2] - box[0], box[3] - box[1]))
            columns, rows = math.ceil(w), math.ceil(h)
            (large,) = self.enlarge.run(None, {"maps": own[None], "sizes": np.int64([1, len(own), rows, columns])})
            flat = large[0].reshape(len(own), -1)
            at = flat.argmax(1)
            x, y = (at % columns + 0.5) * (w / columns) + box[0], (at // columns + 0.5) * (h / rows) + box[1]
            points.append(np.stack([x, y], 1) / to_base[:2])
            logits.append(flat.max(1))
        return boxes / to_base, scores, np.array(points), np.array(logits)

    def check(self):
        people = zip(*(v.tolist() for v in self.run()))
        return {"people": [{"box": b, "score": s, "points": p, "logits": l} for b, s, p, l in people]}


if __name__ == "__main__":
    serve(Detect)
