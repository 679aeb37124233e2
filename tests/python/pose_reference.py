#!/usr/bin/env python3
"""Published pose inference in numpy around onnxruntime: what a wrapped model's keypoints should be.

    pose_reference.py CASES.json

Each case names an ONNX file, a picture (raw RGB bytes, width, height) and how the model is used; the answer is printed as one JSON list per
case: people with `box`, `score` and `keypoints` [[x, y, score], ...] in COCO's pixel indices. Written after the published code and not
after Omnilabel's: warp matrices and decoding of mmpose 1.3 (`get_warp_matrix`, `get_udp_warp_matrix`, `get_heatmap_maximum`,
`refine_keypoints`, `refine_keypoints_dark`, `refine_keypoints_dark_udp`, `get_simcc_maximum`, flip test), letterbox, NMS and `scale_boxes` of
Ultralytics 8.3. Resampling is bilinear in float, where OpenCV rounds to bytes.
"""
import json
import pathlib
import sys

import numpy as np
import onnxruntime


def three_points(source, target):
    """cv2.getAffineTransform."""
    a = np.hstack([np.array(source, float), np.ones((3, 1))])
    return np.linalg.solve(a, np.array(target, float)).T


def warp_matrix(center, scale, size, udp):
    w, h = size
    if udp:
        sx, sy = (w - 1) / scale[0], (h - 1) / scale[1]
        return np.array([[sx, 0, sx * (-center[0] + 0.5 * scale[0])], [0, sy, sy * (-center[1] + 0.5 * scale[1])]])
    third = lambda a, b: b + np.array([-(a - b)[1], (a - b)[0]])
    src0, src1 = np.array(center), np.array(center) + [0, -0.5 * scale[0]]
    dst0, dst1 = np.array([w * 0.5, h * 0.5]), np.array([w * 0.5, h * 0.5]) + [0, -0.5 * w]
    return three_points([src0, src1, third(src0, src1)], [dst0, dst1, third(dst0, dst1)])


def sample(image, x, y):
    """Bilinear, zero outside (BORDER_CONSTANT)."""
    h, w = image.shape[:2]
    x0, y0 = np.floor(x).astype(int), np.floor(y).astype(int)
    out = np.zeros(x.shape + (3,))
    for dy in (0, 1):
        for dx in (0, 1):
            xi, yi = x0 + dx, y0 + dy
            weight = np.abs(1 - dx - (x - x0)) * np.abs(1 - dy - (y - y0))
            inside = (xi >= 0) & (xi < w) & (yi >= 0) & (yi < h)
            out += np.where(inside, weight, 0)[..., None] * image[np.clip(yi, 0, h - 1), np.clip(xi, 0, w - 1)]
    return out


def warp(image, matrix, size):
    w, h = size
    inverse = np.linalg.inv(np.vstack([matrix, [0, 0, 1]]))
    xs, ys = np.meshgrid(np.arange(w), np.arange(h))
    points = inverse @ np.stack([xs.ravel(), ys.ravel(), np.ones(w * h)])
    return sample(image, points[0].reshape(h, w), points[1].reshape(h, w))


def gaussian_blur(heatmap, kernel):
    border = (kernel - 1) // 2
    sigma = 0.3 * ((kernel - 1) * 0.5 - 1) + 0.8
    taps = np.exp(-((np.arange(kernel) - border) ** 2) / (2 * sigma * sigma))
    taps /= taps.sum()
    highest = heatmap.max()
    padded = np.pad(heatmap, border)
    for axis in (0, 1):
        padded = np.apply_along_axis(lambda v: np.convolve(v, taps, mode="same"), axis, padded)
    blurred = padded[border:-border, border:-border]
    return blurred * highest / blurred.max()


def refine(heatmap, x, y, how, udp, blur):
    h, w = heatmap.shape
    if how == "quarter":
        if 1 < x < w - 1 and 1 < y < h - 1:
            step = np.sign([heatmap[y, x + 1] - heatmap[y, x - 1], heatmap[y + 1, x] - heatmap[y - 1, x]]) * 0.25
            return np.array([x, y]) + step
        return np.array([x, y], float)
    if how == "dark" and not udp:
        m = np.log(np.maximum(gaussian_blur(heatmap, blur), 1e-10))
        if not (1 < x < w - 2 and 1 < y < h - 2):
            return np.array([x, y], float)
        dx, dy = 0.5 * (m[y][x + 1] - m[y][x - 1]), 0.5 * (m[y + 1][x] - m[y - 1][x])
        dxx = 0.25 * (m[y][x + 2] - 2 * m[y][x] + m[y][x - 2])
        dxy = 0.25 * (m[y + 1][x + 1] - m[y - 1][x + 1] - m[y + 1][x - 1] + m[y - 1][x - 1])
        dyy = 0.25 * (m[y + 2][x] - 2 * m[y][x] + m[y - 2][x])
        if dxx * dyy - dxy**2 == 0:
            return np.array([x, y], float)
        return np.array([x, y]) - np.linalg.inv([[dxx, dxy], [dxy, dyy]]) @ [dx, dy]
    if how == "dark":
        m = np.pad(np.log(np.clip(gaussian_blur(heatmap, blur), 1e-3, 50)), 1, mode="edge")
        px, py = x + 1, y + 1
        at = lambda dx, dy: m[py + dy, px + dx]
        dx, dy = 0.5 * (at(1, 0) - at(-1, 0)), 0.5 * (at(0, 1) - at(0, -1))
        dxx, dyy = at(1, 0) - 2 * at(0, 0) + at(-1, 0), at(0, 1) - 2 * at(0, 0) + at(0, -1)
        dxy = 0.5 * (at(1, 1) - at(1, 0) - at(0, 1) + 2 * at(0, 0) - at(-1, 0) - at(0, -1) + at(-1, -1))
        hessian = np.array([[dxx, dxy], [dxy, dyy]]) + np.finfo(np.float32).eps * np.eye(2)
        return np.array([x, y]) - np.linalg.inv(hessian) @ [dx, dy]
    return np.array([x, y], float)


def run(session, case, crop):
    x = (crop[..., ::-1] if case["bgr"] else crop) - np.array(case["mean"])
    x = (x / np.array(case["std"])).transpose(2, 0, 1)[None].astype(np.float32)
    return session.run(case["outputs"], {session.get_inputs()[0].name: x})


def top_down(session, case, image):
    size = (case["width"], case["height"])
    people = []
    for x1, y1, x2, y2 in case["boxes"]:
        center = np.array([(x1 + x2) * 0.5, (y1 + y2) * 0.5])
        scale = np.array([x2 - x1, y2 - y1]) * case["padding"]
        aspect = size[0] / size[1]
        scale = np.array([scale[0], scale[0] / aspect]) if scale[0] > scale[1] * aspect else np.array([scale[1] * aspect, scale[1]])
        crop = warp(image, warp_matrix(center, scale, size, case["udp"]), size)
        outputs = run(session, case, crop)
        if case["flip"]:
            mirrored = run(session, case, crop[:, ::-1])
            for i, (own, other) in enumerate(zip(outputs, mirrored)):
                other = other[:, case["flip_indices"]]
                if not (case["kind"] == "simcc" and i == 1):
                    other = other[..., ::-1].copy()
                if case["shift"]:
                    other[..., 1:] = other[..., :-1].copy()
                outputs[i] = (own + other) * 0.5
        keypoints = []
        if case["kind"] == "heatmap":
            for heatmap in outputs[0][0].astype(float):
                y, x = np.unravel_index(heatmap.argmax(), heatmap.shape)
                at = refine(heatmap, int(x), int(y), case["refine"], case["udp"], case["blur"])
                cells = np.array(heatmap.shape[::-1], float)
                at = at / (cells - 1) * size if case["udp"] else at * (np.array(size) / cells)
                keypoints.append((at, heatmap.max()))
        else:
            for row, column in zip(outputs[0][0], outputs[1][0]):
                at = np.array([row.argmax(), column.argmax()]) / case["split_ratio"]
                keypoints.append((at, min(row.max(), column.max())))
            if case["udp"]:
                keypoints = [(at / (np.array(size) - 1) * size, score) for at, score in keypoints]
        rescale = lambda at: at / size * scale + center - 0.5 * scale
        people.append({"box": [x1, y1, x2, y2], "score": 1.0, "keypoints": [[*rescale(at), float(s)] for at, s in keypoints]})
    return people


def iou(a, b):
    side = lambda i: max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i]))
    area = lambda r: (r[2] - r[0]) * (r[3] - r[1])
    both = side(0) * side(1)
    return both / (area(a) + area(b) - both)


def one_stage(session, case, image):
    h0, w0 = image.shape[:2]
    h, w = case["height"], case["width"]
    gain = min(h / h0, w / w0)
    new_w, new_h = round(w0 * gain), round(h0 * gain)
    left, top = round((w - new_w) / 2 - 0.1), round((h - new_h) / 2 - 0.1)
    # cv2.resize, INTER_LINEAR.
    xs = np.clip((np.arange(new_w) + 0.5) * w0 / new_w - 0.5, 0, w0 - 1)
    ys = np.clip((np.arange(new_h) + 0.5) * h0 / new_h - 0.5, 0, h0 - 1)
    boxed = np.full((h, w, 3), 114.0)
    boxed[top : top + new_h, left : left + new_w] = sample(image, *np.meshgrid(xs, ys))
    output = run(session, case, boxed)[0][0].astype(float).T
    output = output[output[:, 4] > case["threshold"]]
    output = output[np.argsort(-output[:, 4], kind="stable")]
    people = []
    for row in output:
        cx, cy, bw, bh = row[:4]
        box = np.array([cx - bw / 2, cy - bh / 2, cx + bw / 2, cy + bh / 2])
        if any(iou(box, other) > case["iou"] for other, _ in people):
            continue
        people.append((box, row))
    pad = np.array([(w - round(w0 * gain)) / 2 - 0.1, (h - round(h0 * gain)) / 2 - 0.1]).round()
    result = []
    for box, row in people:
        box = (box - [*pad, *pad]) / gain
        box = np.clip(box, 0, [w0, h0, w0, h0])
        points = row[5:].reshape(-1, 3)
        keypoints = [[*((p[:2] - pad) / gain), p[2]] for p in points]
        result.append({"box": box.tolist(), "score": float(row[4]), "keypoints": keypoints})
    return result


def main():
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    for case in json.loads(pathlib.Path(sys.argv[1]).read_text()):
        image = np.fromfile(case["picture"], np.uint8).reshape(case["picture_height"], case["picture_width"], 3).astype(float)
        session = onnxruntime.InferenceSession(case["onnx"], providers=["CPUExecutionProvider"])
        people = one_stage(session, case, image) if case["kind"] == "one-stage" else top_down(session, case, image)
        as_floats = lambda v: [as_floats(x) for x in v] if isinstance(v, (list, tuple)) else float(v)
        print(json.dumps([{key: as_floats(value) for key, value in person.items()} for person in people]))


if __name__ == "__main__":
    main()
