#!/usr/bin/env python3
"""A small torchvision keypoint R-CNN: its weights, an input and what each part makes of it, as safetensors files.

    torchvision_rcnn.py OUT    writes OUT/weights.safetensors and OUT/values.safetensors

resnet18 body with frozen batch-norms that do something, FPN of 256, small heads, five keypoints; needs torch and torchvision.
"""
import json
import pathlib
import struct
import sys

import torch
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor


def write(path, tensors):
    header, blobs, offset = {}, [], 0
    for name, tensor in sorted(tensors.items()):
        blob = tensor.detach().contiguous().float().numpy().astype("<f4").tobytes()
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [offset, offset + len(blob)]}
        blobs.append(blob)
        offset += len(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def main():
    out = pathlib.Path(sys.argv[1])
    torch.manual_seed(1)
    model = KeypointRCNN(
        resnet_fpn_backbone(backbone_name="resnet18", weights=None),
        box_head=TwoMLPHead(256 * 7 * 7, 32),
        box_predictor=FastRCNNPredictor(32, 2),
        keypoint_head=KeypointRCNNHeads(256, (32, 32)),
        keypoint_predictor=KeypointRCNNPredictor(32, 5),
    ).eval()
    state = model.state_dict()
    for name, value in state.items():
        if "bn" in name or "downsample.1" in name:
            value.copy_(torch.rand_like(value) * 0.5 + (0.1 if name.endswith(("bias", "mean")) else 0.75))
    write(out / "weights.safetensors", state)

    values = {"image": torch.randn(2, 3, 64, 96), "boxes": torch.tensor([[3.0, 5, 40, 60], [0, 0, 96, 64], [50, 10, 58, 30]])}
    with torch.no_grad():
        features = model.backbone(values["image"])
        objectness, deltas = model.rpn.head(list(features.values()))
        for level, feature in enumerate(features.values()):
            values[f"features_{level}"] = feature
            values[f"objectness_{level}"] = objectness[level]
            values[f"deltas_{level}"] = deltas[level]
        heads, boxes, sizes = model.roi_heads, [values["boxes"]] * 2, [(64, 96)] * 2
        pooled = heads.box_roi_pool(features, boxes, sizes)
        values["box_rois"] = pooled
        values["class_logits"], values["box_deltas"] = heads.box_predictor(heads.box_head(pooled))
        pooled = heads.keypoint_roi_pool(features, boxes, sizes)
        values["keypoint_rois"] = pooled
        values["heatmaps"] = heads.keypoint_predictor(heads.keypoint_head(pooled))
    write(out / "values.safetensors", values)


if __name__ == "__main__":
    main()
