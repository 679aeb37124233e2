"""Golden vectors of PyTorch 2.13 and torchvision 0.28 for tests/torchvision.rs.

    python models/detect/tests/golden/make.py > models/detect/tests/golden/torchvision.json
"""
import json
from collections import OrderedDict

import torch
from torchvision.models.detection._utils import BoxCoder
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, concat_box_prediction_layers
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign, nms, roi_align

torch.manual_seed(7)

def numbers(tensor):
    return [float(f"{v:.9g}") for v in tensor.detach().flatten().tolist()]

def boxes(n, width, height, low=1.0, high=30.0):
    xy = torch.rand(n, 2) * torch.tensor([width, height]) - 2
    return torch.cat([xy, xy + low + torch.rand(n, 2) * (high - low)], 1)

out = {}

# Anchors of a padded 64 x 48 (w x h) image at strides 8 and 16.
ratios = (0.5, 1.0, 2.0)
generator = AnchorGenerator(((20,), (37,)), (ratios, ratios))
maps = [torch.zeros(1, 1, 6, 8), torch.zeros(1, 1, 3, 4)]
anchors = generator(ImageList(torch.zeros(1, 3, 48, 64), [(44, 60)]), maps)[0]
out["anchors"] = numbers(anchors)

# Box coder.
reference, target, deltas = boxes(8, 60, 44), boxes(8, 60, 44), torch.randn(8, 4) * 2
deltas[0, 2] = 40.0

coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
out["coder"] = {
    "reference": numbers(reference), "target": numbers(target), "deltas": numbers(deltas),
    "encoded": numbers(coder.encode_single(target, reference)), "decoded": numbers(coder.decode_single(deltas, reference)),
}

# NMS, with equal boxes among them (distinct scores: torchvision leaves the order of ties open).
rects, scores = boxes(60, 40, 40, 5, 30), torch.rand(60)
rects[10], rects[20] = rects[0], rects[1]
out["nms"] = {"boxes": numbers(rects), "scores": numbers(scores), "kept": nms(rects, scores, 0.5).tolist()}

# Proposals: RegionProposalNetwork.forward from its decode on.
objectness = [torch.randn(1, 3, 6, 8) * 2, torch.randn(1, 3, 3, 4) * 2]
regression = [torch.randn(1, 12, 6, 8) * 0.4, torch.randn(1, 12, 3, 4) * 0.4]
rpn = RegionProposalNetwork(generator, torch.nn.Identity(), 0.7, 0.3, 256, 0.5, dict(training=60, testing=60),
                            dict(training=25, testing=25), 0.7, 0.2).eval()

flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, regression)
decoded = rpn.box_coder.decode(flat_deltas, [anchors]).view(1, -1, 4)
found, found_scores = rpn.filter_proposals(decoded, flat_objectness, [(44, 60)], [144, 36])
out["proposals"] = {
    "objectness": [numbers(t) for t in objectness], "deltas": [numbers(t) for t in regression],
    "boxes": numbers(found[0]), "scores": numbers(found_scores[0]),
}

# Detections.
heads = RoIHeads(None, None, None, 0.5, 0.5, 512, 0.25, None, 0.05, 0.5, 12)
logits, regression = torch.randn(40, 2) * 2, torch.randn(40, 8)
rois = boxes(40, 60, 44, 4)
found, found_scores, _ = heads.postprocess_detections(logits, regression, [rois], [(44, 60)])
out["detections"] = {
    "rois": numbers(rois), "logits": numbers(logits), "deltas": numbers(regression),
    "boxes": numbers(found[0]), "scores": numbers(found_scores[0]),
}

# RoIAlign, forward and backward.
data = torch.randn(1, 3, 10, 13)
rois = torch.tensor([[0, 0, 103, 79], [-20, -30, 40, 50], [60, 30, 61, 31], [90, 60, 130, 120], [10.5, 20.25, 47.75, 60.125],
                     [200, 200, 240, 240]]).float()
out["align"] = {"data": numbers(data), "rois": numbers(rois), "cases": []}
for aligned in (False, True):
    leaf = data.clone().requires_grad_()
    pooled = roi_align(leaf, [rois], 4, 0.125, 2, aligned)
    gradient = torch.randn_like(pooled)
    pooled.backward(gradient)
    out["align"]["cases"].append(
        {"aligned": aligned, "pooled": numbers(pooled), "gradient": numbers(gradient), "grad_data": numbers(leaf.grad)})

# The level of a RoI, and pooling from it: strides 4, 8, 16 of a 96 x 64 image.
pool = MultiScaleRoIAlign(["0", "1", "2"], 3, 2, canonical_scale=56, canonical_level=3)
levels = OrderedDict((str(i), torch.randn(1, 2, 64 // s, 96 // s)) for i, s in enumerate((4, 8, 16)))
rois = torch.cat([boxes(8, 80, 50, 5, 90), torch.tensor([[0, 0, 56, 56], [0, 0, 28, 28], [0, 0, 27.9, 28], [0, 0, 112, 112]]).float()])
pooled = pool(levels, [rois], [(64, 96)])
out["pool"] = {
    "maps": [numbers(t) for t in levels.values()], "rois": numbers(rois), "pooled": numbers(pooled),
    "levels": pool.map_levels([rois]).tolist(),
}

# The image transform.
out["transform"] = []
mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
for width, height, short, long, flip in [(11, 7, 12, 100, False), (31, 23, 9, 100, False), (31, 23, 9, 100, True), (40, 6, 12, 33, False),
                                         (16, 16, 16, 16, False), (1, 9, 5, 40, True)]:
    image = torch.randint(0, 256, (3, height, width), dtype=torch.uint8)
    source = image.flip(2) if flip else image
    transform = GeneralizedRCNNTransform(short, long, mean, std, size_divisible=8).eval()
    images, _ = transform([source.float() / 255])
    out["transform"].append({
        "width": width, "height": height, "short_side": short, "max_long_side": long, "flip": flip,
        "rgb": image.permute(1, 2, 0).flatten().tolist(), "net": [images.image_sizes[0][1], images.image_sizes[0][0]],
        "rows": images.tensors.shape[2], "columns": images.tensors.shape[3], "data": numbers(images.tensors),
    })

# What came later draws from its own generator, so that the vectors above stay what they were.
torch.manual_seed(8)

# Anchors where the stride does not divide the padded side: 96 x 160 (h x w) at stride 64 has maps of 2 x 3 cells, 48 and 53 px apart.
levels = AnchorGenerator(((16,), (64,)), (ratios, ratios))
out["anchors_divided"] = numbers(levels(ImageList(torch.zeros(1, 3, 96, 160), [(90, 150)]), [torch.zeros(1, 1, 24, 40), torch.zeros(1, 1, 2, 3)])[0])

# RoIAlign with as many samples as the RoI needs.
rois = torch.tensor([[0, 0, 103, 79], [-20, -30, 40, 50], [60, 30, 61, 31], [90, 60, 130, 120], [10.5, 20.25, 47.75, 60.125],
                     [0, 0, 96, 64], [200, 200, 240, 240], [50, 50, 50, 50]]).float()
out["adaptive"] = {"rois": numbers(rois), "cases": []}
for aligned in (False, True):
    leaf = data.clone().requires_grad_()
    pooled = roi_align(leaf, [rois], 4, 0.125, 0, aligned)
    gradient = torch.randn_like(pooled)
    pooled.backward(gradient)
    out["adaptive"]["cases"].append(
        {"aligned": aligned, "pooled": numbers(pooled), "gradient": numbers(gradient), "grad_data": numbers(leaf.grad)})

# NMS with ties: three distinct scores among 40 boxes, equal boxes, and an IoU of exactly the threshold, which does not suppress.
rects, scores = boxes(40, 30, 30, 5, 25).round(), torch.randint(1, 4, (40,)) / 4
rects[5], rects[30] = rects[1], rects[1]
rects[0], rects[39] = torch.tensor([100.0, 100, 110, 110]), torch.tensor([100.0, 100, 110, 105])
out["nms_ties"] = {"boxes": numbers(rects), "scores": numbers(scores), "kept": nms(rects, scores, 0.5).tolist()}

# The image transform, blue first.
image = torch.randint(0, 256, (3, 7, 11), dtype=torch.uint8)
mean, std = [0.406, 0.456, 0.485], [1 / 255] * 3
images, _ = GeneralizedRCNNTransform(12, 100, mean, std, size_divisible=8).eval()([image.flip(0).float() / 255])
out["transform_bgr"] = {"rgb": image.permute(1, 2, 0).flatten().tolist(), "data": numbers(images.tensors)}

print(json.dumps(out, separators=(",", ":")))
