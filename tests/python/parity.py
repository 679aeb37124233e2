#!/usr/bin/env python3
"""What torchvision's keypoint R-CNN makes of given pictures: the reference of models/runtime/tests/parity.

    parity.py PRESET DIR [--f64] [--detectron2]

DIR holds request.json: {"config": the network's configuration, "detect": [{"side": short side, "pictures": [PNG, …]}, …], "train":
likewise}; the pictures of a case are one batch. Writes to DIR:

    weights.pth                    the state dictionary, by torch.save
    detect-SIDE-BATCH.safetensors  FPN maps, and per picture proposals, boxes (also in the network's pixels), scores, keypoints, keypoint scores
    train-SIDE-BATCH.safetensors   the input, ground truth, sampled anchors and RoIs, losses, and the gradient of every parameter

The weights are random and fixed, with outputs loud enough that there are detections. The four bodies are torchvision's own; `nano`,
which torchvision does not have, is assembled from torchvision's FPN, RPN and heads by tests/reference/nano_torch.py. With
`--detectron2` the network follows Detectron2's conventions (its documentation and configuration reference): blue first, stride on the
1x1, anchors not rounded, aligned RoIAlign with adaptive sampling, background as the last class; weights.pth then has its names.
"""
import argparse
import json
import pathlib
import re
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import fastrcnn_loss, keypointrcnn_loss
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.ops import box_iou, roi_align
from torchvision.ops.misc import FrozenBatchNorm2d

sys.path.append(str(pathlib.Path(__file__).parents[1] / "reference"))
import nano_torch  # noqa: E402

BODIES = {
    "resnet50": ([3, 4, 6, 3], 1, 64),
    "resnet101": ([3, 4, 23, 3], 1, 64),
    "resnext101_32x4d": ([3, 4, 23, 3], 32, 4),
    "resnext101_64x4d": ([3, 4, 23, 3], 64, 4),
}


def build(preset, config):
    if preset == "nano":
        model = nano_torch.Net(config)
    else:
        layers, groups, width = BODIES[preset]
        body = ResNet(Bottleneck, layers, groups=groups, width_per_group=width, norm_layer=FrozenBatchNorm2d)
        model = KeypointRCNN(
            _resnet_fpn_extractor(body, 5), num_classes=2, num_keypoints=config["keypoints"],
            box_detections_per_img=config["network"]["max_detections"], box_batch_size_per_image=config["roi_batch"])
    spec = config["input"]
    model.transform = GeneralizedRCNNTransform(
        spec["short_side"], spec["max_long_side"], spec["mean"], spec["std"], size_divisible=spec["size_divisor"])
    return model


class AlignedPool(torch.nn.Module):
    """Detectron2's ROIPooler with ROIAlignV2 and POOLER_SAMPLING_RATIO 0."""

    def __init__(self, side):
        super().__init__()
        self.side = side

    def forward(self, features, boxes, _sizes):
        rois = torch.cat([torch.cat([torch.full_like(b[:, :1], i), b], 1) for i, b in enumerate(boxes)])
        area = (rois[:, 3] - rois[:, 1]) * (rois[:, 4] - rois[:, 2])
        levels = torch.floor(4 + torch.log2(area.sqrt() / 224 + 1e-8)).clamp(2, 5).long() - 2
        out = torch.zeros(len(rois), 256, self.side, self.side, dtype=rois.dtype)
        for level in range(4):
            chosen = torch.where(levels == level)[0]
            out[chosen] = roi_align(features[str(level)], rois[chosen], self.side, 0.25 / 2**level, 0, True)
        return out


class CellAnchors(nano_torch.Anchors):
    """Detectron2's DefaultAnchorGenerator: not rounded, strides of the levels."""

    strides = (4, 8, 16, 32, 64)

    def generate_anchors(self, scales, aspect_ratios, dtype=torch.float32, device=None):
        (size,) = scales
        widths = [(size**2 / ratio) ** 0.5 for ratio in aspect_ratios]
        return torch.tensor([[-w / 2, -r * w / 2, w / 2, r * w / 2] for w, r in zip(widths, aspect_ratios)], dtype=dtype)


def as_detectron2(model):
    for name, module in model.backbone.body.named_modules():
        if isinstance(module, Bottleneck) and module.stride != 1:
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
    model.rpn.anchor_generator = CellAnchors(tuple((32 * 2**i,) for i in range(5)), ((0.5, 1.0, 2.0),) * 5)
    model.roi_heads.box_roi_pool, model.roi_heads.keypoint_roi_pool = AlignedPool(7), AlignedPool(14)


def detectron2_names(state):
    """Detectron2's name and tensor of each of torchvision's."""
    out = {}
    for name, tensor in state.items():
        name = name.replace("backbone.body.", "backbone.bottom_up.")
        name = re.sub(r"bottom_up\.conv1", "bottom_up.stem.conv1", name).replace("bottom_up.bn1", "bottom_up.stem.conv1.norm")
        name = re.sub(r"layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
        name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name).replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")
        name = re.sub(r"fpn\.inner_blocks\.(\d)\.0", lambda m: f"fpn_lateral{int(m[1]) + 2}", name)
        name = re.sub(r"fpn\.layer_blocks\.(\d)\.0", lambda m: f"fpn_output{int(m[1]) + 2}", name)
        name = name.replace("rpn.head.conv.0.0", "proposal_generator.rpn_head.conv")
        name = name.replace("rpn.head.cls_logits", "proposal_generator.rpn_head.objectness_logits")
        name = name.replace("rpn.head.bbox_pred", "proposal_generator.rpn_head.anchor_deltas")
        name = name.replace("box_head.fc6", "box_head.fc1").replace("box_head.fc7", "box_head.fc2")
        name = re.sub(r"keypoint_head\.(\d+)", lambda m: f"keypoint_head.conv_fcn{int(m[1]) // 2 + 1}", name)
        name = name.replace("keypoint_predictor.kps_score_lowres", "keypoint_head.score_lowres")
        if "cls_score" in name:
            tensor = tensor.flip(0)
        elif "box_predictor.bbox_pred" in name:
            tensor = tensor[4:]
        out[name] = tensor.clone()
    for i, size in enumerate((32, 64, 128, 256, 512)):
        out[f"proposal_generator.anchor_generator.cell_anchors.{i}"] = CellAnchors.generate_anchors(None, (size,), (0.5, 1.0, 2.0))
    return {"model": out, "__author__": "test"}


def randomise(model):
    """Batch-norms that do something and keep a deep body's activations bounded; see also `louder`."""
    generator = torch.Generator().manual_seed(5)
    state = model.state_dict()
    for name, value in state.items():
        if not any(part in name for part in (".bn", "downsample.1")):
            continue
        # The last of a block, whose output is added to the shortcut's.
        last = ".bn3." in name or (".bn2." in name and name.replace(".bn2.", ".bn3.") not in state)
        ranges = {"weight": (0.1, 0.4) if last else (0.7, 1.2), "bias": (-0.1, 0.1), "running_mean": (-0.1, 0.1), "running_var": (0.7, 1.3)}
        low, high = ranges[name.rsplit(".", 1)[1]]
        value.copy_(torch.rand(value.shape, generator=generator) * (high - low) + low)


@torch.no_grad()
def louder(model, images):
    """Scales the last layers so that their outputs differ from place to place as a trained network's do."""
    def scale(layer, output, std):
        layer.weight.mul_(std / output().std())

    features = model.backbone(images.tensors)
    heads = model.roi_heads
    maps = list(features.values())
    flat = lambda outputs: torch.cat([o.flatten() for o in outputs])
    scale(model.rpn.head.cls_logits, lambda: flat(model.rpn.head(maps)[0]), 2.0)
    scale(model.rpn.head.bbox_pred, lambda: flat(model.rpn.head(maps)[1]), 0.3)
    proposals = [p[:100] for p in model.rpn.eval()(images, features)[0]]
    hidden = lambda: heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes))
    scale(heads.box_predictor.cls_score, lambda: heads.box_predictor(hidden())[0], 2.0)
    scale(heads.box_predictor.bbox_pred, lambda: heads.box_predictor(hidden())[1], 1.0)
    pooled = heads.keypoint_roi_pool(features, [p[:4] for p in proposals], images.image_sizes)
    scale(heads.keypoint_predictor.kps_score_lowres, lambda: heads.keypoint_predictor(heads.keypoint_head(pooled)), 3.0)


def picture(path, bgr):
    pixels = np.asarray(Image.open(path).convert("RGB"))
    return torch.from_numpy((pixels[:, :, ::-1] if bgr else pixels).copy()).permute(2, 0, 1).float() / 255


@torch.no_grad()
def detect(model, pictures):
    model.eval()
    out = {}
    images, _ = model.transform([p.clone() for p in pictures])
    features = model.backbone(images.tensors)
    for level, feature in enumerate(features.values()):
        out[f"features_{level}"] = feature
    proposals, _ = model.rpn(images, features)
    found, _ = model.roi_heads(features, proposals, images.image_sizes)
    net_boxes = [result["boxes"] for result in found]
    found = model.transform.postprocess(found, images.image_sizes, [tuple(p.shape[-2:]) for p in pictures])
    for i, (boxes, result) in enumerate(zip(proposals, found)):
        out[f"proposals_{i}"], out[f"net_boxes_{i}"] = boxes, net_boxes[i]
        for name in ("boxes", "scores", "keypoints", "keypoints_scores"):
            out[f"{name}_{i}"] = result[name]
    return out


def truth(sizes, keypoints, generator):
    """Random people of several sizes, some keypoints unlabelled, some outside of their box."""
    targets = []
    for h, w in sizes:
        n = 3
        centre = torch.rand(n, 2, generator=generator) * torch.tensor([w, h])
        half = (0.1 + 0.35 * torch.rand(n, 2, generator=generator)) * torch.tensor([w, h])
        boxes = torch.cat([centre - half, centre + half], 1)
        boxes[:, 0::2] = boxes[:, 0::2].clamp(0, w)
        boxes[:, 1::2] = boxes[:, 1::2].clamp(0, h)
        xy = boxes[:, None, :2] + (torch.rand(n, keypoints, 2, generator=generator) * 1.1 - 0.05) * (boxes[:, None, 2:] - boxes[:, None, :2])
        v = (torch.rand(n, keypoints, 1, generator=generator) < 0.8).float() * 2
        targets.append({"boxes": boxes, "labels": torch.ones(n, dtype=torch.int64), "keypoints": torch.cat([xy, v], 2)})
    return targets


def train(model, pictures, keypoints, dtype, targets=None):
    """The losses of torchvision's own training pass, with what was sampled on the way, on random people or on `targets`. Inputs, ground
    truth and RoIs are rounded to f32, so that either side starts from the same numbers whichever type it computes in."""
    model.train()
    generator = torch.Generator().manual_seed(9)
    torch.manual_seed(9)
    images, targets = model.transform([p.clone() for p in pictures], targets)
    data = images.tensors.float()
    targets = targets or truth(images.image_sizes, keypoints, generator)
    out = {"images": data, "sizes": torch.tensor(images.image_sizes, dtype=torch.float32)}
    for i, target in enumerate(targets):
        out[f"truth_boxes_{i}"], out[f"truth_keypoints_{i}"] = target["boxes"], target["keypoints"]
    cast = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in t.items()} for t in targets]
    images = ImageList(data.to(dtype), images.image_sizes)

    features = model.backbone(images.tensors)
    rpn, heads = model.rpn, model.roi_heads
    sampler = rpn.fg_bg_sampler
    picks = []

    def record(labels):
        picks.append(sampler(labels))
        return picks[-1]

    object.__setattr__(rpn, "fg_bg_sampler", record)
    proposals, rpn_losses = rpn(images, features, cast)
    object.__setattr__(rpn, "fg_bg_sampler", sampler)
    anchors = rpn.anchor_generator(images, list(features.values()))
    for i, (positive, negative) in enumerate(zip(*picks[0])):
        matched = rpn.proposal_matcher(box_iou(cast[i]["boxes"], anchors[i].to(dtype)))
        positive, negative = torch.where(positive)[0], torch.where(negative)[0]
        out[f"anchors_positive_{i}"] = torch.stack([positive, matched[positive]], 1).int()
        out[f"anchors_negative_{i}"] = negative.int()

    with torch.no_grad():
        proposals, matched, labels, _ = heads.select_training_samples(proposals, cast)
    proposals = [p.float().to(dtype) for p in proposals]
    regression = heads.box_coder.encode([t["boxes"][m] for t, m in zip(cast, matched)], proposals)
    logits, deltas = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes)))
    classifier, box_reg = fastrcnn_loss(logits, deltas, labels, regression)
    positive = [torch.where(l > 0)[0] for l in labels]
    people = [p[k] for p, k in zip(proposals, positive)]
    pooled = heads.keypoint_roi_pool(features, people, images.image_sizes)
    maps = heads.keypoint_predictor(heads.keypoint_head(pooled))
    # Cells of keypoints in f64: by f32's rounding a keypoint at a border between two is now in the one, now in the other.
    keypoint = keypointrcnn_loss(
        maps, [p.double() for p in people], [t["keypoints"].double() for t in cast], [m[k] for m, k in zip(matched, positive)])
    for i, (rois, m, l) in enumerate(zip(proposals, matched, labels)):
        out[f"rois_{i}"] = rois.float()
        out[f"rois_matched_{i}"] = torch.where(l > 0, m, -1).int()

    losses = {
        "objectness": rpn_losses["loss_objectness"], "rpn_box": rpn_losses["loss_rpn_box_reg"],
        "classifier": classifier, "box_reg": box_reg, "keypoint": keypoint,
    }
    model.zero_grad()
    sum(losses.values()).backward()
    for name, value in losses.items():
        out[f"loss.{name}"] = value.reshape(1)
    for name, parameter in model.named_parameters():
        out[f"grad.{name}"] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    return out


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("preset")
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--f64", action="store_true")
    parser.add_argument("--detectron2", action="store_true")
    arguments = parser.parse_args()
    request = json.loads((arguments.dir / "request.json").read_text())
    config = request["config"]
    torch.manual_seed(3)
    torch.set_num_threads(2)
    model = build(arguments.preset, config)
    if arguments.detectron2:
        as_detectron2(model)
    randomise(model)
    model.eval()

    def cases(kind):
        for case in request[kind]:
            model.transform.min_size = (case["side"],)
            pictures = [picture(arguments.dir / name, arguments.detectron2) for name in case["pictures"]]
            yield f"{kind}-{case['side']}-{len(pictures)}", pictures

    def write(name, tensors):
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, arguments.dir / f"{name}.safetensors")

    _, pictures = next(cases("detect"))
    louder(model, model.transform([p.clone() for p in pictures])[0])
    state = model.state_dict()
    torch.save(detectron2_names(state) if arguments.detectron2 else state, arguments.dir / "weights.pth")
    print("parameters", sum(p.numel() for p in model.parameters()))
    for name, pictures in cases("detect"):
        write(name, detect(model, pictures))
    dtype = torch.float64 if arguments.f64 else torch.float32
    model.to(dtype)
    for name, pictures in cases("train"):
        write(name, train(model, pictures, config["keypoints"], dtype))


if __name__ == "__main__":
    main()
