//! One pass of one view: the backbone, and what its heads find on the pyramid.

use crate::rcnn::Rcnn;
use crate::{BackboneOutput, RuntimeError};
use omnilabel_bundle::{GRAPHS, RoiSpec};
use omnilabel_detect::frame::{Frame, transform};
use omnilabel_detect::proposals::{LevelOutput, detections, proposals};
use omnilabel_detect::roi::{FeatureMap, pool};
use omnilabel_keypoints::geometry::Rect;
use omnilabel_keypoints::view::{View, ViewGeometry};

/// The most RoIs that are pooled and run through a head at a time.
const ROI_BATCH: usize = 64;

/// The feature maps of one view.
pub(crate) struct Pyramid {
    pub(crate) view: View,
    pub(crate) geometry: ViewGeometry,
    features: Vec<(Vec<f32>, usize, usize, usize)>,
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
        for rois in rois.chunks(ROI_BATCH) {
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
    /// Numbers held.
    pub(crate) fn values(&self) -> usize {
        self.features.iter().map(|level| level.0.len()).sum()
    }

    /// Heatmaps `[boxes, k, side, side]` of boxes in frame pixels, as the network gives them (mirrored in a mirrored view).
    pub(crate) fn heatmaps(&self, rcnn: &Rcnn, in_frame: &[Rect]) -> Result<Vec<f32>, RuntimeError> {
        let network = &rcnn.network;
        let one = rcnn.skeleton.len() * (network.heatmap_side as usize).pow(2);
        let rois: Vec<Rect> = in_frame.iter().map(|&rect| self.geometry.net_from_frame_rect(rect)).collect();
        let mut maps = Vec::with_capacity(rois.len() * one);
        for rois in rois.chunks(ROI_BATCH) {
            let found = rcnn.graphs.keypoint_head(self.pooled(rcnn, rois, network.keypoint_roi), rois.len())?;
            expect(GRAPHS[2], "heatmaps", found.len(), one * rois.len())?;
            finite(GRAPHS[2], "heatmaps", &found)?;
            maps.extend(found);
        }
        Ok(maps)
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

/// Whether the backbone gave what the manifest says.
fn check(rcnn: &Rcnn, output: &BackboneOutput) -> Result<(), RuntimeError> {
    let network = &rcnn.network;
    let (levels, anchors) = (network.levels.len(), network.aspect_ratios.len());
    expect(GRAPHS[0], "the number of objectness maps", output.objectness.len(), levels)?;
    expect(GRAPHS[0], "the number of delta maps", output.deltas.len(), levels)?;
    if output.features.len() < network.roi_levels as usize {
        expect(GRAPHS[0], "the number of feature maps", output.features.len(), network.roi_levels as usize)?;
    }
    for ((objectness, rows, columns), deltas) in output.objectness.iter().zip(&output.deltas) {
        expect(GRAPHS[0], "objectness", objectness.len(), anchors * rows * columns)?;
        expect(GRAPHS[0], "deltas", deltas.len(), 4 * anchors * rows * columns)?;
        finite(GRAPHS[0], "objectness", objectness)?;
        finite(GRAPHS[0], "deltas", deltas)?;
    }
    let channels = output.features.first().map_or(0, |level| level.1);
    for (values, c, rows, columns) in &output.features {
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
