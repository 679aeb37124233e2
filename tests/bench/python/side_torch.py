#!/usr/bin/env python3
"""The PyTorch side of tests/bench: the same networks from torchvision's own parts, on the CPU or an NVIDIA GPU.

Training is torchvision's own step: transform, losses, backward, clipping, optimiser. Inference of one view is torchvision's own
`eval` pass. Labelling by many views is what somebody who knows torchvision would write: boxes once from the base view; for each
further scale the picture is resized once, it and its mirror image run as a batch of two through body and FPN without the RPN, the
known boxes are pooled, the heatmaps' mirror images undone, the logits averaged and decoded by torchvision.
"""
import contextlib
import json
import pathlib
import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.ops import box_iou

from protocol import serve

root = pathlib.Path(__file__).resolve().parents[3]
sys.path += [str(root / "tests/python"), str(root / "tests/reference")]
import nano_torch  # noqa: E402
import parity  # noqa: E402


def network(folder, weights=True):
    config = json.loads((folder / "config.json").read_text())
    model = parity.build(config["name"], config)
    if weights:
        found = load_file(folder / "weights.safetensors")
        result = model.load_state_dict(found, strict=False)
        missing = [name for name in result.missing_keys if "running" not in name]
        assert not missing and not result.unexpected_keys, f"missing {missing}, unexpected {result.unexpected_keys}"
    body = model.backbone.body
    frozen = [[body.conv1, body.bn1], [body.layer1], [body.layer2], [body.layer3], [body.layer4]][: config["frozen_stages"]]
    for module in sum(frozen, []):
        module.requires_grad_(False)
    return config, model


def pixels(path):
    return torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy())


def picture(frame, device="cpu"):
    """[3, h, w] in 0…1 on the device of a camera's bytes [h, w, 3]."""
    return frame.to(device).permute(2, 0, 1).float() / 255


def frames(folder):
    return [pixels(path) for path in sorted((folder / "frames").iterdir())]


class Train:
    def __init__(self, task):
        self.folder, self.device = pathlib.Path(task["folder"]), task["device"]
        # bf16 where PyTorch's own rules allow it; weights and losses stay f32.
        self.bf16 = task["precision"] == "bf16"
        self.config, self.model = network(self.folder)
        self.model.to(self.device)
        self.frames = frames(self.folder)
        self.truth = [
            {
                "boxes": torch.tensor(t["boxes"], device=self.device).reshape(-1, 4),
                "labels": torch.ones(len(t["boxes"]), dtype=torch.int64, device=self.device),
                "keypoints": torch.tensor(t["keypoints"], device=self.device).reshape(-1, self.config["keypoints"], 3),
            }
            for t in json.loads((self.folder / "truth.json").read_text())
        ]
        self.options = json.loads((self.folder / "options.json").read_text())
        self.optimiser = nano_torch.optimiser(self.options, self.model)
        self.model.train()

    def check(self):
        pictures = [picture(f, self.device) for f in self.frames]
        found = parity.train(self.model, pictures, self.config["keypoints"], torch.float32, self.truth)
        self.model.zero_grad()
        path = self.folder / "check.safetensors"
        save_file({k: v.detach().cpu().contiguous() for k, v in found.items()}, path)
        return {"losses": {k[5:]: v.item() for k, v in found.items() if k.startswith("loss.")}, "tensors": str(path)}

    def run(self):
        pictures = [picture(f, self.device) for f in self.frames]
        images, targets = self.model.transform(pictures, [dict(t) for t in self.truth])
        with torch.autocast(self.device, torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            if self.config["name"] == "nano":
                losses = self.model.losses(images, targets)
            else:
                features = self.model.backbone(images.tensors)
                proposals, rpn = self.model.rpn(images, features, targets)
                losses = self.model.roi_heads(features, proposals, images.image_sizes, targets)[1] | rpn
        self.optimiser.zero_grad()
        sum(losses.values()).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options["clip"])
        self.optimiser.step()
        assert all(np.isfinite(v.item()) for v in losses.values()), losses


class Detect:
    """One frame; every view of `scales`, mirrored too with `flip`."""

    def __init__(self, task):
        folder, self.device = pathlib.Path(task["folder"]), task["device"]
        self.config, self.model = network(folder)
        self.model.eval().to(self.device)
        if self.device == "cpu":
            # The layout that oneDNN's convolutions run faster in; torchvision's keypoint loss takes no maps in it.
            self.model.to(memory_format=torch.channels_last)
        self.frame = frames(folder)[0]
        self.base, self.scales, self.flip = task["base"], task["scales"], task["flip"]
        self.single = self.scales == [self.base] and not self.flip
        names = json.loads((folder / "bundle/manifest.json").read_text())["skeleton"]["flip"]
        self.swap = self.tensor(names)
        self.boxes = task.get("boxes")

    def tensor(self, values):
        return torch.tensor(values, device=self.device)

    def resized(self, image, side):
        """The padded batch of a picture at one scale, and its mirror image where that is asked for."""
        transform = self.model.transform
        transform.min_size = (side,)
        x, _ = transform.resize(image, None)
        return transform.batch_images([x, x.flip(-1)] if self.flip else [x], transform.size_divisible), x.shape[-2:]

    @torch.inference_mode()
    def run(self):
        return {name: value.cpu() for name, value in self.label().items()}

    def label(self):
        model, (height, width) = self.model, self.frame.shape[:2]
        model.transform.min_size = (self.base,)
        if self.single and self.boxes is None:
            image = picture(self.frame, self.device)
            images, _ = model.transform([image])
            features = model.backbone(images.tensors)
            proposals, _ = model.rpn(images, features)
            found, _ = model.roi_heads(features, proposals, images.image_sizes)
            return model.transform.postprocess(found, images.image_sizes, [(height, width)])[0]
        image = model.transform.normalize(picture(self.frame, self.device))
        known = {}
        heads = model.roi_heads
        if self.boxes is None:
            # The base view with the RPN, once.
            batch, size = self.resized(image, self.base)
            features = model.backbone(batch)
            first = {k: v[:1] for k, v in features.items()}
            images = parity.ImageList(batch[:1], [tuple(size)])
            proposals, _ = model.rpn(images, first)
            shape = heads.box_roi_pool(first, proposals, [tuple(size)])
            logits, deltas = heads.box_predictor(heads.box_head(shape))
            boxes, scores, _ = heads.postprocess_detections(logits, deltas, proposals, [tuple(size)])
            boxes, scores, base = boxes[0], scores[0], size
            known[self.base] = (features, size)
        else:
            model.transform.min_size = (self.base,)
            base = model.transform.resize(image, None)[0].shape[-2:]
            boxes = self.tensor([b[:4] for b in self.boxes]) * self.tensor([base[1] / width, base[0] / height] * 2)
            scores = self.tensor([b[4] for b in self.boxes])
        if not len(boxes):
            return {"boxes": boxes, "scores": scores, "keypoints": boxes.new_zeros(0, len(self.swap), 3), "keypoints_scores": boxes.new_zeros(0, len(self.swap))}
        total, views = 0, 0
        for side in self.scales:
            if side in known:
                features, size = known.pop(side)
            else:
                batch, size = self.resized(image, side)
                features = model.backbone(batch)
            h, w = size
            rois = [boxes * self.tensor([w / base[1], h / base[0]] * 2)]
            if self.flip:
                x1, y1, x2, y2 = rois[0].unbind(1)
                rois.append(torch.stack([w - x2, y1, w - x1, y2], 1))
            pooled = heads.keypoint_roi_pool(features, rois, [tuple(size)] * len(rois))
            maps = heads.keypoint_predictor(heads.keypoint_head(pooled))
            total = total + maps[: len(boxes)]
            if self.flip:
                total = total + maps[len(boxes) :].flip(-1)[:, self.swap]
            views += len(rois)
        keypoints, scores_of = heatmaps_to_keypoints(total / views, boxes)
        ratio = self.tensor([width / base[1], height / base[0]])
        keypoints[..., :2] *= ratio
        return {"boxes": boxes * ratio.repeat(2), "scores": scores, "keypoints": keypoints, "keypoints_scores": scores_of}

    def check(self):
        found = {k: v.tolist() for k, v in self.run().items()}
        people = zip(found["boxes"], found["scores"], found["keypoints"], found["keypoints_scores"])
        return {"people": [{"box": b, "score": s, "points": [p[:2] for p in k], "logits": l} for b, s, k, l in people]}


def weights(request):
    """Random weights whose outputs are loud enough to detect people, and people to learn from: around the boxes that the network
    proposes most often, so that as many RoIs are foreground as a trained detector has."""
    folder = pathlib.Path(request["folder"])
    torch.manual_seed(3)
    config, model = network(folder, weights=False)
    parity.randomise(model)
    model.eval()
    pictures = [picture(f) for f in frames(folder)]
    images, _ = model.transform([p.clone() for p in pictures])
    parity.louder(model, images)
    torch.save(model.state_dict(), folder / "weights.pth")
    generator = torch.Generator().manual_seed(9)
    truth = []
    with torch.no_grad():
        features = model.backbone(images.tensors)
        proposals, _ = model.rpn(images, features)
    for found, (h, w) in zip(proposals, images.image_sizes):
        sides = torch.minimum(found[:, 2] - found[:, 0], found[:, 3] - found[:, 1])
        near = box_iou(found, found) >= 0.5
        near[:, sides < 0.1 * min(h, w)] = False
        boxes = []
        for _ in range(request["people"]):
            best = near.sum(0).argmax()
            boxes.append(found[best])
            near[:, box_iou(found, found[best][None])[:, 0] > 0.2] = False
        boxes = torch.stack(boxes)
        k = config["keypoints"]
        xy = boxes[:, None, :2] + torch.rand(len(boxes), k, 2, generator=generator) * (boxes[:, None, 2:] - boxes[:, None, :2])
        keypoints = torch.cat([xy, torch.full((len(boxes), k, 1), 2.0)], 2)
        truth.append({"boxes": boxes.tolist(), "keypoints": keypoints.tolist()})
    (folder / "truth.json").write_text(json.dumps(truth))


def ceiling(_request):
    """What the GPU gives at most: products of 8192 x 8192 matrices in each arithmetic, and a copy, counting bytes read and written."""
    def seconds(work, repeat=10):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(3):
            work()
        begin.record()
        for _ in range(repeat):
            work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeat

    n = 8192
    products = {}
    for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = (torch.randn(n, n, device="cuda", dtype=dtype) for _ in range(2))
        products[name] = 2 * n**3 / seconds(lambda: a @ b)
    source = torch.empty(1 << 30, dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    copied = 2 * source.nbytes / seconds(lambda: target.copy_(source))
    return {"device": torch.cuda.get_device_name(), "flops": products, "bytes": copied}


def prepare(task):
    global work
    torch.set_num_threads(task["threads"])
    # The same sizes come again and again.
    torch.backends.cudnn.benchmark = True
    work = {"train": Train, "detect": Detect}[task["kind"]](task)
    return work


def flops(_request):
    """Operations of one repetition, a product and its sum as two, backward passes included."""
    with FlopCounterMode(display=False) as counter:
        work.run()
    return {"flops": counter.get_total_flops()}


if __name__ == "__main__":
    serve(prepare, {"weights": weights, "ceiling": ceiling, "flops": flops})
