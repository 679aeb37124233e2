//! One pass of one view: the backbone, and what its heads find on the pyramid.

use crate::enlarge::Enlargement;
use crate::graphs::FeatureLevel;
use crate::rcnn::Rcnn;
use crate::{BackboneOutput, RuntimeError};
use omnilabel_bundle::{GRAPHS, RoiSpec};
use omnilabel_detect::frame::{Frame, NetImage, transform};
use omnilabel_detect::proposals::{LevelOutput, detections, proposals};
use omnilabel_detect::roi::{FeatureMap, level, pool, reach};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::view::{View, ViewGeometry};
use std::ops::Range;

/// The most RoIs that are pooled and run through the box head at a time: its first layer's weights are read once for them.
const BOX_BATCH: usize = 256;

/// The feature maps of one view.
pub(crate) struct Pyramid {
    pub(crate) view: View,
    pub(crate) geometry: ViewGeometry,
    features: Vec<FeatureLevel>,
}

/// The backbone's outputs of one view.
pub(crate) struct Pass {
    pub(crate) pyramid: Pyramid,
    objectness: Vec<(Vec<f32>, usize, usize)>,
    deltas: Vec<Vec<f32>>,
}

impl Pass {
    pub(crate) fn run(rcnn: &Rcnn, frame: &Frame, view: View) -> Result<Self, RuntimeError> {
        let image = rcnn.workers.install(|| transform(frame, &rcnn.input, view));
        let output = rcnn.graphs.backbone(&image.data, image.rows, image.columns)?;
        check(rcnn, &output)?;
        let BackboneOutput { features, objectness, deltas } = output;
        Ok(Self { pyramid: Pyramid { view, geometry: image.geometry, features }, objectness, deltas })
    }

    /// People in this view's net pixels, by falling score; with `nms` at most `max_detections`.
    pub(crate) fn boxes(&self, rcnn: &Rcnn, nms: bool) -> Result<Vec<(Rect, f32)>, RuntimeError> {
        let network = &rcnn.network;
        let net = self.pyramid.geometry.net();
        let maps = self.objectness.iter().zip(&self.deltas);
        let levels: Vec<_> =
            maps.map(|((objectness, rows, columns), deltas)| LevelOutput { objectness, deltas, rows: *rows, columns: *columns }).collect();
        let rois: Vec<Rect> = proposals(network, &network.rpn, &levels, net).into_iter().map(|(rect, _)| rect).collect();
        let (mut logits, mut deltas) = (Vec::new(), Vec::new());
        for rois in rois.chunks(BOX_BATCH) {
            let (l, d) = rcnn.graphs.box_head(self.pyramid.pooled(rcnn, rois, network.box_roi), rois.len())?;
            expect(GRAPHS[1], "class_logits", l.len(), 2 * rois.len())?;
            expect(GRAPHS[1], "box_deltas", d.len(), 8 * rois.len())?;
            finite(GRAPHS[1], "class_logits", &l)?;
            finite(GRAPHS[1], "box_deltas", &d)?;
            logits.extend(l);
            deltas.extend(d);
        }
        Ok(detections(network, &rois, &logits, &deltas, net, nms))
    }
}

impl Pyramid {
    /// The features of views of one scale as far as the keypoints of `in_frame`, boxes in frame pixels, need them: neither RPN nor maps
    /// around nobody.
    pub(crate) fn around(rcnn: &Rcnn, frame: &Frame, views: &[View], in_frame: &[Rect]) -> Result<Vec<Self>, RuntimeError> {
        let (network, spec) = (&rcnn.network, rcnn.network.keypoint_roi);
        let mut images: Vec<NetImage> = Vec::with_capacity(views.len());
        for (i, view) in views.iter().enumerate() {
            // A view's mirror image is resized only once.
            let twin = views[..i].iter().position(|other| *other == View { flip: !view.flip, ..*view });
            images.push(match twin {
                Some(twin) => images[twin].mirrored(),
                None => rcnn.workers.install(|| transform(frame, &rcnn.input, *view)),
            });
        }
        let Some(first) = images.first() else { return Ok(Vec::new()) };
        let to_net = |image: &NetImage| in_frame.iter().map(|&rect| image.geometry.net_from_frame_rect(rect)).collect();
        let rois: Vec<Vec<Rect>> = images.iter().map(to_net).collect();
        let needed = |image: usize, index: usize, rows: usize, columns: usize| {
            let scale = network.levels.get(index).map_or(1.0, |level| 1.0 / level.stride as f32);
            let own = rois[image].iter().filter(|roi| level(network, **roi) == index);
            let join = |a: Range<usize>, b: Range<usize>| match (a.is_empty(), b.is_empty()) {
                (true, _) => b,
                (_, true) => a,
                _ => a.start.min(b.start)..a.end.max(b.end),
            };
            let reached = own.map(|roi| reach(rows, columns, scale, *roi, spec));
            reached.fold((0..0, 0..0), |(down, across), (y, x)| (join(down, y), join(across, x)))
        };
        let (rows, columns) = (first.rows, first.columns);
        let data = images.iter().map(|image| image.data.as_slice()).collect::<Vec<_>>().concat();
        let features = rcnn.graphs.features(&data, rows, columns, &needed)?;
        expect(GRAPHS[0], "the number of images", features.len(), views.len())?;
        let pyramid = |((view, image), features): ((&View, &NetImage), Vec<FeatureLevel>)| {
            check_features(rcnn, &features)?;
            Ok(Self { view: *view, geometry: image.geometry, features })
        };
        views.iter().zip(&images).zip(features).map(pyramid).collect()
    }

    /// Numbers held.
    pub(crate) fn values(&self) -> usize {
        self.features.iter().map(|level| level.0.len()).sum()
    }

    /// What the keypoint head sees of boxes in frame pixels: `[boxes, c, q, q]`.
    pub(crate) fn keypoint_rois(&self, rcnn: &Rcnn, in_frame: &[Rect]) -> Vec<f32> {
        let rois: Vec<Rect> = in_frame.iter().map(|&rect| self.geometry.net_from_frame_rect(rect)).collect();
        self.pooled(rcnn, &rois, rcnn.network.keypoint_roi)
    }

    fn pooled(&self, rcnn: &Rcnn, rois: &[Rect], spec: RoiSpec) -> Vec<f32> {
        let network = &rcnn.network;
        let levels = self.features.iter().zip(&network.levels);
        let maps: Vec<_> = levels
            .map(|((data, channels, rows, columns), level)| FeatureMap {
                data,
                channels: *channels,
                rows: *rows,
                columns: *columns,
                scale: 1.0 / level.stride as f32,
            })
            .collect();
        rcnn.workers.install(|| pool(network, &maps, rois, spec))
    }
}

/// Heatmaps of `r` pooled RoIs as the network gives them (mirrored in a mirrored view), `[r, k, side, side]`; with an enlargement to come
/// the maps before it, `[r, k, from, from]`.
pub(crate) fn heatmaps(rcnn: &Rcnn, rois: Vec<f32>, r: usize, enlargement: Option<&Enlargement>) -> Result<Vec<f32>, RuntimeError> {
    let (found, side) = match enlargement {
        Some(enlargement) => (rcnn.graphs.keypoint_maps(rois, r)?, enlargement.from()),
        None => (rcnn.graphs.keypoint_head(rois, r)?, rcnn.network.heatmap_side as usize),
    };
    expect(GRAPHS[2], "heatmaps", found.len(), r * rcnn.skeleton.len() * side.pow(2))?;
    finite(GRAPHS[2], "heatmaps", &found)?;
    Ok(found)
}

/// Whether the backbone gave what the manifest says.
fn check(rcnn: &Rcnn, output: &BackboneOutput) -> Result<(), RuntimeError> {
    let network = &rcnn.network;
    let (levels, anchors) = (network.levels.len(), network.aspect_ratios.len());
    expect(GRAPHS[0], "the number of objectness maps", output.objectness.len(), levels)?;
    expect(GRAPHS[0], "the number of delta maps", output.deltas.len(), levels)?;
    for ((objectness, rows, columns), deltas) in output.objectness.iter().zip(&output.deltas) {
        expect(GRAPHS[0], "objectness", objectness.len(), anchors * rows * columns)?;
        expect(GRAPHS[0], "deltas", deltas.len(), 4 * anchors * rows * columns)?;
        finite(GRAPHS[0], "objectness", objectness)?;
        finite(GRAPHS[0], "deltas", deltas)?;
    }
    check_features(rcnn, &output.features)
}

fn check_features(rcnn: &Rcnn, features: &[FeatureLevel]) -> Result<(), RuntimeError> {
    let levels = rcnn.network.roi_levels as usize;
    if features.len() < levels {
        expect(GRAPHS[0], "the number of feature maps", features.len(), levels)?;
    }
    let channels = features.first().map_or(0, |level| level.1);
    for (values, c, rows, columns) in features {
        expect(GRAPHS[0], "the channels of a feature map", *c, channels)?;
        expect(GRAPHS[0], "features", values.len(), c * rows * columns)?;
    }
    Ok(())
}

pub(crate) fn expect(graph: &str, what: &str, found: usize, expected: usize) -> Result<(), RuntimeError> {
    if found == expected {
        return Ok(());
    }
    Err(RuntimeError::Graph { graph: graph.to_owned(), message: format!("{what}: {found} values, the manifest says {expected}") })
}

pub(crate) fn finite(graph: &str, what: &str, values: &[f32]) -> Result<(), RuntimeError> {
    match values.iter().position(|v| !v.is_finite()) {
        None => Ok(()),
        Some(i) => Err(RuntimeError::Graph { graph: graph.to_owned(), message: format!("{what}[{i}] is {}", values[i]) }),
    }
}
