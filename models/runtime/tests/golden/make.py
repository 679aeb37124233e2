"""A bundle of a small torchvision KeypointRCNN with random weights, and what torchvision itself detects with it on a picture.

    python models/runtime/tests/golden/make.py models/runtime/tests/golden/torchvision [WIDTH]

WIDTH (default 8) scales the channels. The manifest is written without hashes: tests/torchvision.rs seals a copy. torch 2.13, torchvision 0.28, onnx 1.23.
"""
import json
import os
import sys
from collections import OrderedDict

import torch
import torch.nn as nn
from torchvision.io import encode_png
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

torch.manual_seed(3)
root, width = sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 8
names = ["nose", "left_hand", "right_hand", "left_foot", "right_foot"]


class Body(nn.Module):
    def __init__(self):
        super().__init__()
        c = [3, width, width, 2 * width, 3 * width, 4 * width]
        self.layers = nn.ModuleList(nn.Conv2d(c[i], c[i + 1], 3, 2, 1) for i in range(5))
        self.fpn = FeaturePyramidNetwork(c[2:], 2 * width, LastLevelMaxPool())
        self.out_channels = 2 * width

    def forward(self, x):
        maps = OrderedDict()
        for i, layer in enumerate(self.layers):
            x = torch.relu(layer(x))
            if i:
                maps[str(i - 1)] = x
        return self.fpn(maps)


sizes = (12, 24, 48, 96, 192)
ratios = (0.5, 1.0, 2.0)
model = KeypointRCNN(
    Body(), min_size=128, max_size=256, size_divisible=64,
    rpn_anchor_generator=AnchorGenerator(tuple((s,) for s in sizes), (ratios,) * 5),
    rpn_pre_nms_top_n_test=200, rpn_post_nms_top_n_test=60,
    box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2, canonical_scale=128, canonical_level=4),
    keypoint_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2, canonical_scale=128, canonical_level=4),
    box_head=TwoMLPHead(2 * width * 49, 4 * width), box_predictor=FastRCNNPredictor(4 * width, 2),
    keypoint_head=KeypointRCNNHeads(2 * width, (2 * width,) * 2),
    keypoint_predictor=KeypointRCNNPredictor(2 * width, len(names)),
    box_score_thresh=0.05, box_detections_per_img=12,
).eval()
# Random weights say little: make them speak up, so that scores, boxes and peaks differ.
with torch.no_grad():
    for p in model.parameters():
        if p.dim() > 1:
            nn.init.kaiming_normal_(p, nonlinearity="relu")
    model.rpn.head.bbox_pred.weight.mul_(0.01)
    model.roi_heads.box_predictor.bbox_pred.weight.mul_(0.01)
    model.roi_heads.box_predictor.cls_score.weight.mul_(0.3)


class Part(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = model


class Backbone(Part):
    def forward(self, image):
        maps = list(model.backbone(image).values())
        objectness, deltas = model.rpn.head(maps)
        return tuple(maps) + tuple(objectness) + tuple(deltas)


class BoxHead(Part):
    def forward(self, rois):
        return model.roi_heads.box_predictor(model.roi_heads.box_head(rois))


class KeypointHead(Part):
    def forward(self, rois):
        return model.roi_heads.keypoint_predictor(model.roi_heads.keypoint_head(rois))


os.makedirs(root, exist_ok=True)


def export(module, name, example, inputs, outputs, axes):
    torch.onnx.export(module.eval(), (example,), f"{root}/{name}.onnx", input_names=[inputs], output_names=outputs, dynamo=False,
                      opset_version=17, dynamic_axes={inputs: axes, **{o: {0: axes[0]} for o in outputs}})


each = lambda name: [f"{name}_{i}" for i in range(5)]
export(Backbone(), "backbone", torch.zeros(1, 3, 128, 192), "image", each("features") + each("objectness") + each("deltas"),
       {0: "n", 2: "h", 3: "w"})
export(BoxHead(), "box_head", torch.zeros(2, 2 * width, 7, 7), "rois", ["class_logits", "box_deltas"], {0: "r"})
export(KeypointHead(), "keypoint_head", torch.zeros(2, 2 * width, 14, 14), "rois", ["heatmaps"], {0: "r"})

y, x = torch.meshgrid(torch.arange(150.0), torch.arange(210.0), indexing="ij")
picture = torch.stack([127 + 120 * torch.sin(x / 13 + y / 29), 127 + 120 * torch.sin(y / 11 - x / 41), 127 + 120 * torch.cos(x * y / 900)])
picture[:, 40:110, 60:100] = torch.tensor([230.0, 30.0, 60.0])[:, None, None]
picture = picture.round().to(torch.uint8)
with open(f"{root}/picture.png", "wb") as f:
    f.write(bytes(encode_png(picture).tolist()))
with torch.no_grad():
    found = model([picture.float() / 255])[0]
roi = lambda resolution: {"resolution": resolution, "sampling_ratio": 2, "aligned": False}
manifest = {
    "format": 1, "name": "random", "architecture": "torchvision",
    "skeleton": {"keypoints": names, "edges": [], "flip": [0, 2, 1, 4, 3], "sigmas": [0.05] * 5},
    "input": {"short_side": 128, "max_long_side": 256, "size_divisor": 64, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
    "network": {
        "levels": [{"stride": 4 << i, "anchor_size": s} for i, s in enumerate(sizes)], "roi_levels": 4, "canonical_size": 128,
        "canonical_level": 2, "aspect_ratios": ratios,
        "rpn": {"pre_nms_top_n": 200, "post_nms_top_n": 60, "nms_iou": 0.7, "min_size": 1e-3, "score_threshold": 0},
        "box_roi": roi(7), "keypoint_roi": roi(14), "box_coder": [10, 10, 5, 5], "score_threshold": 0.05, "nms_iou": 0.5,
        "max_detections": 12, "heatmap_side": 56},
    "thresholds": {"instance": 0.5, "keypoint": 0.1, "floor": 0.05}, "files": {},
}
json.dump(manifest, open(f"{root}/manifest.json", "w"), indent=1)
numbers = lambda t: [float(f"{v:.9g}") for v in t.flatten().tolist()]
json.dump({"boxes": numbers(found["boxes"]), "scores": numbers(found["scores"]), "keypoints": numbers(found["keypoints"][:, :, :2]),
           "keypoints_scores": numbers(found["keypoints_scores"])}, open(f"{root}/detections.json", "w"))
print(len(found["scores"]), "detections, scores", found["scores"].tolist())
