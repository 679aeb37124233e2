//! What a frame shows before it leaves the device. It reduces what can be seen and promises no anonymity: who was not found is not
//! covered.

use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Rect};
use omnilabel_keypoints::label::{Instance, Label};
use omnilabel_keypoints::skeleton::Skeleton;

/// Sides of a face's mosaic, cells.
const CELLS: u32 = 4;
/// What lies outside of people's boxes.
const GREY: u8 = 114;
/// A person's box is kept with this margin on each side, of its longer side.
const MARGIN: f32 = 0.1;

/// Whether faces can be found by this skeleton's keypoints.
pub fn knows_faces(skeleton: &Skeleton) -> bool {
    (0..skeleton.len()).any(|index| skeleton.is_facial(index))
}

/// Makes every person's face, kept or not, a coarse mosaic.
pub fn blur_faces(frame: &mut Frame, label: &Label, skeleton: &Skeleton) {
    for instance in &label.instances {
        if let Some((centre, radius)) = face(instance, skeleton) {
            mosaic(frame, centre, radius);
        }
    }
}

/// Makes everything grey that lies outside of every person's box.
pub fn only_people(frame: &mut Frame, label: &Label) {
    let boxes: Vec<Rect> = label.instances.iter().map(|instance| grown(instance.detection.rect)).collect();
    let width = frame.size.width as usize;
    for (at, pixel) in frame.rgb.chunks_exact_mut(3).enumerate() {
        let (x, y) = ((at % width) as f32 + 0.5, (at / width) as f32 + 0.5);
        if !boxes.iter().any(|rect| (rect.x1..rect.x2).contains(&x) && (rect.y1..rect.y2).contains(&y)) {
            pixel.fill(GREY);
        }
    }
}

fn grown(rect: Rect) -> Rect {
    let margin = MARGIN * rect.width().max(rect.height());
    Rect::new(rect.x1 - margin, rect.y1 - margin, rect.x2 + margin, rect.y2 + margin)
}

/// Centre and radius of a face in px: twice as far as its keypoints lie from their middle, and no less than the body's size suggests,
/// because the keypoints of a face in profile lie close together.
fn face(instance: &Instance, skeleton: &Skeleton) -> Option<(Point, f32)> {
    let detection = &instance.detection;
    let finite = |point: &Point| point.x.is_finite() && point.y.is_finite();
    let points = || (0..skeleton.len().min(detection.keypoints.len())).map(|index| (index, detection.keypoints[index].point));
    let named = |name: &str| points().find(|&(index, point)| skeleton.name(index) == name && finite(&point)).map(|(_, point)| point);
    let mut facial: Vec<Point> =
        points().filter(|(index, point)| skeleton.is_facial(*index) && finite(point)).map(|(_, point)| point).collect();
    if facial.is_empty() {
        return None;
    }
    // The top of a head alone does not show where the face is; the neck is its other end.
    if facial.len() == 1 {
        facial.extend(named("neck"));
    }
    let count = facial.len() as f32;
    let centre = Point { x: facial.iter().map(|p| p.x).sum::<f32>() / count, y: facial.iter().map(|p| p.y).sum::<f32>() / count };
    let distance = |a: Point, b: Point| (a.x - b.x).hypot(a.y - b.y);
    let spread = facial.iter().map(|&point| distance(point, centre)).fold(0.0, f32::max);
    let shoulders = named("left_shoulder").zip(named("right_shoulder")).map_or(0.0, |(left, right)| distance(left, right));
    let body = detection.rect.width().max(detection.rect.height());
    Some((centre, (2.0 * spread).max(0.5 * shoulders).max(0.07 * body)))
}

/// Replaces a disc by the means of the cells of a grid over it. A mean cannot be undone, as the blur of a filter in part can.
fn mosaic(frame: &mut Frame, centre: Point, radius: f32) {
    let (width, height) = (frame.size.width as f32, frame.size.height as f32);
    // A face of which no number is finite covers nothing; one as large as the frame covers the frame.
    let radius = radius.min(width + height);
    let (left, top) = (centre.x - radius, centre.y - radius);
    let span = |from: f32, cell: f32, most: f32| (from.clamp(0.0, most) as usize, (from + cell).ceil().clamp(0.0, most) as usize);
    let cell = 2.0 * radius / CELLS as f32;
    for index in 0..CELLS * CELLS {
        let (column, row) = ((index % CELLS) as f32, (index / CELLS) as f32);
        let ((x1, x2), (y1, y2)) = (span(left + column * cell, cell, width), span(top + row * cell, cell, height));
        let (mut sums, mut count) = ([0_u64; 3], 0);
        let at = |x: usize, y: usize| 3 * (y * frame.size.width as usize + x);
        for y in y1..y2 {
            for x in x1..x2 {
                (0..3).for_each(|channel| sums[channel] += u64::from(frame.rgb[at(x, y) + channel]));
                count += 1;
            }
        }
        if count == 0 {
            continue;
        }
        let mean = sums.map(|sum| (sum / count) as u8);
        for y in y1..y2 {
            for x in x1..x2 {
                let inside = (x as f32 + 0.5 - centre.x).hypot(y as f32 + 0.5 - centre.y) <= radius;
                if inside {
                    frame.rgb[at(x, y)..at(x, y) + 3].copy_from_slice(&mean);
                }
            }
        }
    }
}
