"""The same keypoint R-CNN, configuration and steps in PyTorch, from torchvision's own parts: the yardstick of the trainer.

  nano_torch.py train RUN_DIR TRAIN_DIR --val VAL_DIR --out OUT_DIR [--first 0.3]
      RUN_DIR is what `train_folder` (models/rcnn/examples) wrote: config.json, options.json, init.safetensors. Trains from the same
      first weights, prints losses, writes OUT_DIR/results.json and prints the AP of a single view.
  nano_torch.py step RUN_DIR TRAIN_DIR --images N
      One forward and backward pass on the first N images without augmentation; compares losses with RUN_DIR/losses.csv and every
      gradient with the weights after one step of plain SGD (see tests/reference/README.md for how to make such a run).
  nano_torch.py score VAL_DIR RESULTS
      AP of a results file by pycocotools.
"""

import argparse
import csv
import io
import contextlib
import json
import math
import pathlib
import time

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss, keypointrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool


class Affine(nn.Module):
    """Batch-norm with fixed statistics; weight and bias train."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x):
        scale = self.weight * (self.running_var + 1e-5).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale[:, None, None] + shift[:, None, None]


class Block(nn.Module):
    """Basic or bottleneck residual block, stride on the 3x3."""

    def __init__(self, kind, cin, width, cout, stride, groups):
        super().__init__()
        if kind == "basic":
            self.conv1 = nn.Conv2d(cin, width, 3, stride, 1, groups=groups, bias=False)
            self.conv2 = nn.Conv2d(width, cout, 3, 1, 1, groups=groups, bias=False)
            self.bn1, self.bn2 = Affine(width), Affine(cout)
        else:
            self.conv1 = nn.Conv2d(cin, width, 1, bias=False)
            self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
            self.conv3 = nn.Conv2d(width, cout, 1, bias=False)
            self.bn1, self.bn2, self.bn3 = Affine(width), Affine(width), Affine(cout)
        self.kind = kind
        self.downsample = None
        if stride != 1 or cin != cout:
            self.downsample = nn.Sequential(nn.Conv2d(cin, cout, 1, stride, bias=False), Affine(cout))

    def forward(self, x):
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.kind != "basic":
            y = self.bn3(self.conv3(F.relu(y)))
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.conv1 = nn.Conv2d(3, c["stem_channels"], c["stem_kernel"], 2, c["stem_kernel"] // 2, bias=False)
        self.bn1 = Affine(c["stem_channels"])
        self.pool = c["stem_pool"]
        cin = c["stem_channels"]
        for i, (n, width, cout) in enumerate(zip(c["blocks"], c["widths"], c["channels"])):
            stride = 2 if i or not self.pool else 1
            blocks = [Block(c["block"], cin if j == 0 else cout, width, cout, stride if j == 0 else 1, c["groups"]) for j in range(n)]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            cin = cout
        self.stages = len(c["blocks"])

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        if self.pool:
            x = F.max_pool2d(x, 3, 2, 1)
        out = {}
        for i in range(self.stages):
            x = getattr(self, f"layer{i + 1}")(x)
            out[str(i)] = x
        return out


class Backbone(nn.Module):
    def __init__(self, c):
        super().__init__()
        from torchvision.ops import FeaturePyramidNetwork

        self.body = Body(c)
        extra = LastLevelMaxPool() if len(c["network"]["levels"]) > len(c["blocks"]) else None
        self.fpn = FeaturePyramidNetwork(c["channels"], c["fpn_channels"], extra)

    def forward(self, x):
        return self.fpn(self.body(x))


class Anchors(AnchorGenerator):
    """With the levels' own strides: torchvision divides the padded image by the map, which is off where that does not divide (P6)."""

    strides = ()

    def forward(self, images, maps):
        self.cell_anchors = [anchors.to(maps[0].device) for anchors in self.cell_anchors]
        grids = self.grid_anchors([m.shape[-2:] for m in maps], [[torch.tensor(s)] * 2 for s in self.strides])
        # Rounded to f32, then in the type of the maps: box targets of f64 training are else computed from them in f32.
        return [torch.cat(grids).to(maps[0].dtype)] * len(images.image_sizes)


class Heads(RoIHeads):
    """RoIHeads with a limit on the foreground RoIs whose keypoints are trained, per image."""

    limit = None

    def losses(self, features, proposals, sizes, targets):
        proposals, matched, labels, regression = self.select_training_samples(proposals, targets)
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, proposals, sizes)))
        classifier, box_reg = fastrcnn_loss(logits, deltas, labels, regression)
        rois, indices = [], []
        for i, (p, m, l) in enumerate(zip(proposals, matched, labels)):
            pos = torch.where(l > 0)[0]
            k = targets[i]["keypoints"][m[pos]] if len(pos) else p.new_zeros(0, 1, 3)
            r = p[pos][:, None]
            inside = ((k[..., 2] > 0) & (k[..., 0] >= r[..., 0]) & (k[..., 0] <= r[..., 2]) & (k[..., 1] >= r[..., 1]) & (k[..., 1] <= r[..., 3])).any(1)
            pos = pos[inside]
            if self.limit is not None and len(pos) > self.limit:
                pos = pos[torch.randperm(len(pos))[: self.limit]]
            rois.append(p[pos])
            indices.append(m[pos])
        keypoint = classifier * 0
        if sum(map(len, rois)):
            maps = self.keypoint_predictor(self.keypoint_head(self.keypoint_roi_pool(features, rois, sizes)))
            keypoint = keypointrcnn_loss(maps, rois, [t["keypoints"] for t in targets], indices)
        return classifier, box_reg, keypoint


class Net(nn.Module):
    def __init__(self, c):
        super().__init__()
        n = c["network"]
        self.config = c
        self.backbone = Backbone(c)
        anchors = Anchors(
            tuple((l["anchor_size"],) for l in n["levels"]), (tuple(n["aspect_ratios"]),) * len(n["levels"])
        )
        anchors.strides = [l["stride"] for l in n["levels"]]
        train, test = c["rpn_train"], n["rpn"]
        self.rpn = RegionProposalNetwork(
            anchors, RPNHead(c["fpn_channels"], len(n["aspect_ratios"])), 0.7, 0.3, c["rpn_batch"], 0.5,
            dict(training=train["pre_nms_top_n"], testing=test["pre_nms_top_n"]),
            dict(training=train["post_nms_top_n"], testing=test["post_nms_top_n"]),
            train["nms_iou"], test["score_threshold"],
        )
        self.rpn.min_size = test["min_size"]
        names = [str(i) for i in range(n["roi_levels"])]
        finest = int(math.log2(n["levels"][0]["stride"]))

        def pool(spec):
            assert not spec["aligned"]
            return MultiScaleRoIAlign(names, spec["resolution"], spec["sampling_ratio"],
                                      canonical_scale=n["canonical_size"], canonical_level=finest + n["canonical_level"])

        self.roi_heads = Heads(
            pool(n["box_roi"]), TwoMLPHead(c["fpn_channels"] * n["box_roi"]["resolution"] ** 2, c["box_hidden"]),
            FastRCNNPredictor(c["box_hidden"], 2), 0.5, 0.5, c["roi_batch"], c["roi_positive"], tuple(n["box_coder"]),
            n["score_threshold"], n["nms_iou"], n["max_detections"],
            keypoint_roi_pool=pool(n["keypoint_roi"]),
            keypoint_head=KeypointRCNNHeads(c["fpn_channels"], (c["keypoint_channels"],) * c["keypoint_convs"]),
            keypoint_predictor=KeypointRCNNPredictor(c["keypoint_channels"], c["keypoints"]),
        )
        self.roi_heads.limit = c["keypoint_rois"]

    def losses(self, images, targets):
        features = self.backbone(images.tensors)
        proposals, rpn = self.rpn(images, features, targets)
        classifier, box_reg, keypoint = self.roi_heads.losses(features, proposals, images.image_sizes, targets)
        return dict(objectness=rpn["loss_objectness"], rpn_box=rpn["loss_rpn_box_reg"], classifier=classifier, box_reg=box_reg, keypoint=keypoint)

    @torch.no_grad()
    def detect(self, images):
        features = self.backbone(images.tensors)
        proposals, _ = self.rpn(images, features)
        return self.roi_heads(features, proposals, images.image_sizes)[0]


class Folder:
    def __init__(self, root, first=1.0):
        root = pathlib.Path(root)
        d = json.loads((root / "annotations.json").read_text())
        self.category = next(c for c in d["categories"] if c.get("keypoints"))
        names = self.category["keypoints"]
        swap = lambda s: s.replace("left", "\0").replace("right", "left").replace("\0", "right")
        self.flip = [names.index(swap(s)) for s in names]
        images = sorted(d["images"], key=lambda i: i["id"])
        images = images[: int(len(images) * first)]
        by = {}
        for a in d["annotations"]:
            by.setdefault(a["image_id"], []).append(a)
        self.items = []
        for i in images:
            boxes, points = [], []
            for a in by.get(i["id"], []):
                k = np.array(a["keypoints"], np.float32).reshape(-1, 3)
                if a.get("iscrowd") or not (k[:, 2] > 0).any():
                    continue
                k[:, :2] += 0.5
                x, y, w, h = a["bbox"]
                boxes.append([x, y, x + w, y + h])
                points.append(k)
            self.items.append((i["id"], root / "images" / i["file_name"], np.array(boxes, np.float32).reshape(-1, 4), points))
        self.pixels = {}

    def image(self, item):
        if item[0] not in self.pixels:
            self.pixels[item[0]] = np.asarray(Image.open(item[1]).convert("RGB"))
        return torch.from_numpy(self.pixels[item[0]].copy()).permute(2, 0, 1).float() / 255


def net_size(h, w, spec):
    scale = min(spec["short_side"] / min(h, w), spec["max_long_side"] / max(h, w))
    return math.floor(h * scale), math.floor(w * scale)


def batch_of(folder, items, c, augment, rng):
    """Warps each image to the canvas by one bilinear sampling; the same distribution as models/rcnn/src/augment.rs."""
    spec = c["input"]
    mean, std = (torch.tensor(spec[k])[:, None, None] for k in ("mean", "std"))
    images, sizes, targets = [], [], []
    for item in items:
        image = folder.image(item)
        H, W = image.shape[1:]
        h, w = net_size(H, W, spec)
        m = np.diag([w / W, h / H, 1.0])
        flip = False
        if augment:
            u = lambda s: s * rng.uniform(-1, 1)
            s, t = 1 + u(augment["scale"]), math.radians(u(augment["rotation"]))
            dx, dy = u(augment["shift"]) * w, u(augment["shift"]) * h
            to = lambda x, y: np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])
            r = np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0], [0, 0, 1]]) * [[s], [s], [1]]
            m = to(w / 2 + dx, h / 2 + dy) @ r @ to(-w / 2, -h / 2) @ m
            flip = augment["flip"] and rng.random() < 0.5
            if flip:
                m = np.array([[-1, 0, w], [0, 1, 0], [0, 0, 1.0]]) @ m
            b, k = 1 + u(augment["colour"]), 1 + u(augment["colour"])
            gain = torch.tensor([1 + 0.5 * u(augment["colour"]) for _ in range(3)], dtype=torch.float32)[:, None, None]
            image = (((image - 0.5) * k + 0.5) * b * gain).clamp(0, 1)
        # grid_sample's coordinates: -1 and 1 are the outer edges (align_corners = false).
        out_to_net = np.array([[w / 2, 0, w / 2], [0, h / 2, h / 2], [0, 0, 1]])
        frame_to_in = np.array([[2 / W, 0, -1], [0, 2 / H, -1], [0, 0, 1]])
        theta = torch.from_numpy((frame_to_in @ np.linalg.inv(m) @ out_to_net)[:2]).float()
        grid = F.affine_grid(theta[None], (1, 3, h, w), align_corners=False)
        warped = F.grid_sample(((image - mean) / std)[None], grid, padding_mode="border", align_corners=False)[0]
        inside = ((grid[0].abs() <= 1 + 1e-5).all(-1)).float()
        images.append(warped * inside)
        sizes.append((h, w))
        boxes, points = [], []
        L = m[:2, :2]
        for box, k in zip(item[2], item[3]):
            cx, cy = (m @ [(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, 1])[:2]
            p, q = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
            hw, hh = math.hypot(L[0, 0] * p, L[0, 1] * q), math.hypot(L[1, 0] * p, L[1, 1] * q)
            xy = k[:, :2] @ L.T + m[:2, 2]
            own = (k[:, 2] > 0) & (k[:, 0] >= box[0]) & (k[:, 0] <= box[2]) & (k[:, 1] >= box[1]) & (k[:, 1] <= box[3])
            ext = xy[own]
            whole = [min([cx - hw, *ext[:, 0]]), min([cy - hh, *ext[:, 1]]), max([cx + hw, *ext[:, 0]]), max([cy + hh, *ext[:, 1]])]
            clip = [max(whole[0], 0), max(whole[1], 0), min(whole[2], w), min(whole[3], h)]
            bw, bh = clip[2] - clip[0], clip[3] - clip[1]
            if bw < 1 or bh < 1 or bw * bh < 0.25 * (whole[2] - whole[0]) * (whole[3] - whole[1]):
                continue
            v = (k[:, 2] > 0) & (xy[:, 0] >= 0) & (xy[:, 0] <= w) & (xy[:, 1] >= 0) & (xy[:, 1] <= h)
            full = np.concatenate([xy, v[:, None]], 1)
            boxes.append(clip)
            points.append(full[folder.flip] if flip else full)
        n = len(boxes)
        targets.append(dict(
            boxes=torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            labels=torch.ones(n, dtype=torch.int64),
            keypoints=torch.tensor(np.array(points).reshape(n, c["keypoints"], 3), dtype=torch.float32),
        ))
    d = spec["size_divisor"]
    up = lambda x: math.ceil(x / d) * d
    data = torch.zeros(len(images), 3, up(max(s[0] for s in sizes)), up(max(s[1] for s in sizes)))
    for slot, image in zip(data, images):
        slot[:, : image.shape[1], : image.shape[2]] = image
    return ImageList(data, sizes), targets


def rate_of(o, step):
    if o["schedule"] == "cosine":
        rate = o["lr"] * 0.5 * (1 + math.cos(math.pi * min(step / o["steps"], 1)))
    else:
        rate = o["lr"] * 0.1 ** sum(step >= m * o["steps"] for m in o["milestones"])
    return rate * (1 / 3 + 2 / 3 * step / o["warmup"]) if step < o["warmup"] else rate


def load(run):
    run = pathlib.Path(run)
    c = json.loads((run / "config.json").read_text())
    o = json.loads((run / "options.json").read_text())
    net = Net(c)
    weights = load_file(run / "init.safetensors")
    wanted = net.state_dict()
    missing = [k for k in wanted if k not in weights and "running" not in k]
    extra = [k for k in weights if k not in wanted]
    assert not missing and not extra, f"missing {missing}, unexpected {extra}"
    net.load_state_dict(weights, strict=False)
    return c, o, net


def optimiser(o, net):
    matrices = [p for p in net.parameters() if p.dim() >= 2]
    vectors = [p for p in net.parameters() if p.dim() < 2]
    groups = [dict(params=matrices, weight_decay=o["weight_decay"]), dict(params=vectors, weight_decay=0.0)]
    return torch.optim.AdamW(groups, lr=o["lr"]) if o["optimizer"] == "adam_w" else torch.optim.SGD(groups, lr=o["lr"], momentum=0.9)


def predict(c, net, folder, path):
    net.eval()
    results = []
    for i in range(0, len(folder.items), 16):
        items = folder.items[i : i + 16]
        images, _ = batch_of(folder, items, c, None, None)
        for item, size, d in zip(items, images.image_sizes, net.detect(images)):
            H, W = folder.pixels[item[0]].shape[:2]
            sx, sy = W / size[1], H / size[0]
            for box, score, k in list(zip(d["boxes"], d["scores"], d["keypoints"]))[:20]:
                k = k.clone()
                k[:, 0] = k[:, 0] * sx - 0.5
                k[:, 1] = k[:, 1] * sy - 0.5
                results.append(dict(image_id=item[0], category_id=1, keypoints=[float(x) for x in k.flatten()], score=float(score)))
    path.write_text(json.dumps(results))


def score(val, results):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO(str(pathlib.Path(val) / "annotations.json"))
        e = COCOeval(gt, gt.loadRes(str(results)), "keypoints")
        sigmas = gt.dataset["categories"][0].get("sigmas")
        if sigmas:
            e.params.kpt_oks_sigmas = np.array(sigmas)
        e.evaluate(), e.accumulate(), e.summarize()
    print("AP {:.4f}  AP50 {:.4f}  AP75 {:.4f}  AP_M {:.4f}  AP_L {:.4f}  AR {:.4f}".format(*e.stats[:6]))
    return e.stats[0]


def train(a):
    c, o, net = load(a.run)
    out = pathlib.Path(a.out)
    out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(o["seed"])
    rng = np.random.default_rng(o["seed"])
    folder = Folder(a.data, a.first)
    net.train()
    opt = optimiser(o, net)
    order, sums, started = [], {}, time.time()
    log = open(out / "losses.csv", "w")
    for step in range(o["steps"]):
        items = []
        while len(items) < o["batch"]:
            order = order or list(rng.permutation(len(folder.items)))
            items.append(folder.items[order.pop()])
        for g in opt.param_groups:
            g["lr"] = rate_of(o, step)
        losses = net.losses(*batch_of(folder, items, c, o["augment"], rng))
        opt.zero_grad()
        sum(losses.values()).backward()
        if o["clip"]:
            torch.nn.utils.clip_grad_norm_(net.parameters(), o["clip"])
        opt.step()
        print(step, *(float(v.detach()) for v in losses.values()), sep=",", file=log)
        for k, v in losses.items():
            sums[k] = sums.get(k, 0) + float(v.detach()) / 50
        if (step + 1) % 50 == 0:
            rate = o["batch"] * (step + 1) / (time.time() - started)
            print(f"step {step + 1:5}", *(f"{k} {v:.4f}" for k, v in sums.items()), f"{rate:.1f} images/s", flush=True)
            sums = {}
    if a.val:
        predict(c, net, Folder(a.val), out / "results.json")
        score(a.val, out / "results.json")


def step(a):
    c, o, net = load(a.run)
    folder = Folder(a.data)
    net.train()
    losses = net.losses(*batch_of(folder, folder.items[: a.images], c, None, None))
    sum(losses.values()).backward()
    ours = next(csv.DictReader(open(pathlib.Path(a.run) / "losses.csv")))
    worst = 0.0
    for k, v in losses.items():
        v = float(v.detach())
        apart = abs(v - float(ours[k])) / abs(v)
        worst = max(worst, apart)
        print(f"{k:12} torch {v:.6f}  ours {float(ours[k]):.6f}  relative {apart:.2e}")
    after = load_file(pathlib.Path(a.run) / "weights.safetensors")
    rate = rate_of(o, 0)
    worst_grad = 0.0
    for name, p in net.named_parameters():
        ours = (p.detach() - after[name]) / rate
        g = p.grad if p.grad is not None else torch.zeros_like(p)
        apart = float((ours - g).norm() / (g.norm() + 1e-12))
        worst_grad = max(worst_grad, apart if g.norm() > 1e-6 else 0.0)
        if apart > 1e-2 and g.norm() > 1e-6:
            print(f"gradient of {name}: relative {apart:.2e}, norm {float(g.norm()):.3e}")
    print(f"losses: worst {worst:.2e}; gradients: worst {worst_grad:.2e}")
    # f32 with other orders of summation; gradients come from a difference of weights, which costs them digits.
    raise SystemExit(0 if worst < 1e-5 and worst_grad < 1e-2 else 1)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = p.add_subparsers(required=True)
    t = sub.add_parser("train")
    t.add_argument("run"), t.add_argument("data"), t.add_argument("--val"), t.add_argument("--out", required=True)
    t.add_argument("--first", type=float, default=1.0)
    t.set_defaults(f=train)
    t = sub.add_parser("step")
    t.add_argument("run"), t.add_argument("data"), t.add_argument("--images", type=int, default=4)
    t.set_defaults(f=step)
    t = sub.add_parser("score")
    t.add_argument("val"), t.add_argument("results")
    t.set_defaults(f=lambda a: score(a.val, a.results))
    a = p.parse_args()
    torch.set_num_threads(2)
    a.f(a)


if __name__ == "__main__":
    main()
