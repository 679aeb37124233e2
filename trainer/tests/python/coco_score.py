"""The ten keypoint numbers of pycocotools as JSON: coco_score.py GT.json RESULTS.json

Sigmas come from categories[0].sigmas where the file has them. An empty result list, on which loadRes fails, is scored as no detection.
"""
import contextlib, copy, json, sys
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

NAMES = ["AP", "AP50", "AP75", "AP_M", "AP_L", "AR", "AR50", "AR75", "AR_M", "AR_L"]


def score(gt_path, results_path):
    with contextlib.redirect_stdout(sys.stderr):
        gt = COCO(gt_path)
        results = json.load(open(results_path))
        if results:
            dt = gt.loadRes(copy.deepcopy(results))
        else:
            dt = COCO()
            dt.dataset = {"images": gt.dataset["images"], "categories": gt.dataset["categories"], "annotations": []}
            dt.createIndex()
        ev = COCOeval(gt, dt, "keypoints")
        sigmas = gt.dataset["categories"][0].get("sigmas")
        if sigmas is not None:
            ev.params.kpt_oks_sigmas = np.array(sigmas)
        ev.evaluate()
        ev.accumulate()
        ev.summarize()
    return dict(zip(NAMES, map(float, ev.stats)))


# Further pairs are scored in the same process: one line of JSON each.
for i in range(1, len(sys.argv), 2):
    print(json.dumps(score(sys.argv[i], sys.argv[i + 1])))
