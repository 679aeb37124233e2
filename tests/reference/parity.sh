#!/usr/bin/env bash
# parity.sh TRAIN_DIR RUN_DIR: one training step of the trainer against the same step in torchvision: losses and all gradients.
# PYTHON names an interpreter with torch and torchvision.
set -euo pipefail
data=${1:?usage: parity.sh TRAIN_DIR RUN_DIR} run=${2:?usage: parity.sh TRAIN_DIR RUN_DIR}
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
# The first images as PNG: JPEG decoders differ by a few levels.
"$python" - "$data" "$run" <<'P'
import json, pathlib, sys
from PIL import Image
data, out = map(pathlib.Path, sys.argv[1:])
d = json.loads((data / "annotations.json").read_text())
images = sorted(d["images"], key=lambda i: i["id"])[:4]
ids = {i["id"] for i in images}
(out / "data/images").mkdir(parents=True, exist_ok=True)
for i in images:
    name = pathlib.Path(i["file_name"]).stem + ".png"
    Image.open(data / "images" / i["file_name"]).convert("RGB").save(out / "data/images" / name)
    i["file_name"] = name
d.update(images=images, annotations=[a for a in d["annotations"] if a["image_id"] in ids])
(out / "data/annotations.json").write_text(json.dumps(d))
P
data=$run/data
# The workspace's build: one package alone would be built anew, with other features of its dependencies.
cargo build --quiet --release --workspace --example train_folder
train() { "${CARGO_TARGET_DIR:-$here/../../target}/release/examples/train_folder" "$data" --ordered --out "$run" "$@"; }
plain='"augment":{"flip":false,"scale":0,"rotation":0,"shift":0,"colour":0}'
# A first run for the configuration of the preset.
train --options "{\"steps\":1,\"batch\":4,\"seed\":1,$plain}" > /dev/null
# Samplers that take every candidate, and no proposals beside the ground-truth boxes: the order of a fresh RPN's proposals hangs on the
# last bits of its logits.
"$python" - "$run/config.json" <<'P'
import json, sys
c = json.load(open(sys.argv[1]))
c.update(rpn_batch=1000000, roi_batch=1000000, roi_positive=1.0, keypoint_rois=None)
c["rpn_train"].update(post_nms_top_n=0)
json.dump(c, open(sys.argv[1].replace("config", "all"), "w"))
P
train --config "$run/all.json" \
    --options "{\"steps\":1,\"batch\":4,\"seed\":1,\"optimizer\":\"sgd\",\"lr\":1.0,\"warmup\":0,\"weight_decay\":0,\"clip\":null,$plain}"
"$python" "$here/nano_torch.py" step "$run" "$data" --images 4
