"""Golden values of PyTorch, torchvision and pycocotools for tests/golden.rs.

    python models/keypoints/tests/golden/make.py > models/keypoints/tests/golden/values.json

Made with torch 2.13.0, torchvision 0.28.0, pycocotools 2.0.11. The maps are not stored: both sides make them from `seed`.
"""
import json
import math
import sys

import numpy as np
import torch
from torchvision.models.detection.roi_heads import heatmaps_to_keypoints
from torchvision.models.detection.transform import GeneralizedRCNNTransform


class Lcg:
    """Numerical Recipes' generator; values are exact in float32."""

    def __init__(self, seed):
        self.state = seed

    def unit(self):
        self.state = (self.state * 1664525 + 1013904223) % 2**32
        return (self.state >> 16) / 65536


def make_map(seed, side, smooth):
    r = Lcg(seed)
    cx, cy = r.unit() * side, r.unit() * side
    rows = []
    for y in range(side):
        for x in range(side):
            noise = r.unit()
            d2 = (x + 0.5 - cx) ** 2 + (y + 0.5 - cy) ** 2
            rows.append(8.0 / (1.0 + d2 / 6.0) + 0.25 * noise if smooth else 8.0 * noise - 4.0)
    return np.array(rows, np.float32).reshape(side, side)


def maps():
    cases = []
    boxes = [(3.25, 7.5, 60.75, 120.25), (0, 0, 56, 56), (10, 20, 10.5, 20.25), (5, 5, 5, 5), (-4.5, 2, 30.1, 13.9),
             (100.5, 50.25, 613.75, 99.5), (0.3, 0.7, 1203.9, 811.2), (1, 2, 29, 30)]
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        for side in (56, 28, 14) if number < 6 else (56,):
            for smooth in (True, False):
                seed = 1000 * number + 10 * side + smooth
                m = torch.from_numpy(make_map(seed, side, smooth))[None, None]
                roi = torch.tensor([[x1, y1, x2, y2]], dtype=torch.float32)
                xy, score = heatmaps_to_keypoints(m, roi)
                w, h = max(math.ceil(max(x2 - x1, 1)), 1), max(math.ceil(max(y2 - y1, 1)), 1)
                peak = torch.nn.functional.interpolate(m, size=(h, w), mode="bicubic", align_corners=False).max().item()
                assert peak == score.item()
                # Detectron's normalisation: the exponent of the resized peak over the sum on the RoI's own grid.
                probability = math.exp(peak) / torch.exp(m.double()).sum().item()
                cases.append(dict(seed=seed, side=side, smooth=smooth, rect=[x1, y1, x2, y2], x=xy[0, 0, 0].item(),
                                  y=xy[0, 0, 1].item(), peak=peak, probability=min(probability, 1.0)))
    return cases


def views():
    cases = []
    r = Lcg(7)
    for number in range(60):
        w, h = 1 + int(r.unit() * 2000), 1 + int(r.unit() * 1500)
        if number < 4:
            w, h = [(640, 480), (480, 640), (1920, 1080), (97, 1999)][number]
        short, long = int(16 + r.unit() * 1200), int(64 + r.unit() * 2000)
        scale = min(short / min(w, h), long / max(w, h))
        if min(w, h) * scale < 1:
            continue
        transform = GeneralizedRCNNTransform(short, long, [0.0] * 3, [1.0] * 3, size_divisible=1)
        images, _ = transform([torch.zeros(3, h, w)])
        net_h, net_w = images.image_sizes[0]
        cases.append(dict(frame=[w, h], short=short, long=long, net=[net_w, net_h]))
    return cases


def oks():
    try:
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        sys.exit("pip install pycocotools")
    cases = []
    r = Lcg(11)
    for _ in range(12):
        k = 17
        truth = np.array([[r.unit() * 200, r.unit() * 200, int(r.unit() * 3)] for _ in range(k)])
        truth[0, 2] = 2
        guess = truth[:, :2] + np.array([[r.unit() * 30 - 15, r.unit() * 30 - 15] for _ in range(k)])
        truth[:, :2], guess = np.float32(truth[:, :2]), np.float32(guess)
        area = 100 + r.unit() * 20000
        e = COCOeval(iouType="keypoints")
        e._gts[1, 1] = [dict(keypoints=truth.ravel().tolist(), area=area, bbox=[0, 0, 200, 200])]
        e._dts[1, 1] = [dict(keypoints=np.c_[guess, np.ones(k)].ravel().tolist(), score=1.0)]
        e.params.imgIds, e.params.catIds = [1], [1]
        cases.append(dict(truth=truth.tolist(), guess=guess.tolist(), area=area, oks=float(e.computeOks(1, 1)[0, 0])))
    return cases


def lines(cases):
    return "[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]"


print('{"maps": ' + lines(maps()) + ',\n"views": ' + lines(views()) + ',\n"oks": ' + lines(oks()) + "}")
