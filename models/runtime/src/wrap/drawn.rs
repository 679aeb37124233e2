//! A picture of a person, drawn: something to try a model on where no photograph is at hand.

use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::Size;

const WIDTH: u32 = 480;
const HEIGHT: u32 = 640;

/// From, to, half width, colour; in pixels.
type Limb = ([f32; 2], [f32; 2], f32, [u8; 3]);

/// Later ones lie over earlier ones.
#[rustfmt::skip]
const LIMBS: [Limb; 11] = [
    ([205.0, 360.0], [195.0, 470.0], 26.0, [52, 58, 92]), ([195.0, 470.0], [190.0, 575.0], 20.0, [52, 58, 92]),
    ([275.0, 360.0], [290.0, 470.0], 26.0, [46, 52, 84]), ([290.0, 470.0], [300.0, 575.0], 20.0, [46, 52, 84]),
    ([188.0, 205.0], [150.0, 290.0], 18.0, [150, 48, 44]), ([150.0, 290.0], [140.0, 370.0], 14.0, [214, 168, 140]),
    ([292.0, 205.0], [335.0, 285.0], 18.0, [150, 48, 44]), ([335.0, 285.0], [372.0, 225.0], 14.0, [214, 168, 140]),
    ([212.0, 215.0], [218.0, 350.0], 40.0, [172, 56, 50]), ([268.0, 215.0], [262.0, 350.0], 40.0, [172, 56, 50]),
    ([240.0, 130.0], [240.0, 118.0], 40.0, [220, 176, 148]),
];
/// Eyes and mouth.
const MARKS: [([f32; 2], f32); 4] = [([225.0, 112.0], 5.0), ([255.0, 112.0], 5.0), ([236.0, 144.0], 4.0), ([246.0, 144.0], 4.0)];

/// A standing person in front of a wall, 480 × 640 px; the same bytes at every call.
pub fn drawn_person() -> Frame {
    let mut rgb = Vec::with_capacity((3 * WIDTH * HEIGHT) as usize);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            let (px, py) = (x as f32 + 0.5, y as f32 + 0.5);
            let floor = py > 560.0;
            let shade = (py / 8.0) as u8;
            let mut colour = if floor { [120 - shade / 4, 104, 88] } else { [150 + shade / 2, 160 + shade / 3, 170] };
            for (from, to, half, own) in LIMBS {
                if distance([px, py], from, to) <= half {
                    colour = own;
                }
            }
            for (centre, radius) in MARKS {
                if distance([px, py], centre, centre) <= radius {
                    colour = [40, 30, 30];
                }
            }
            rgb.extend(colour);
        }
    }
    Frame { size: Size { width: WIDTH, height: HEIGHT }, rgb }
}

/// From a point to a segment.
fn distance(p: [f32; 2], a: [f32; 2], b: [f32; 2]) -> f32 {
    let (dx, dy) = (b[0] - a[0], b[1] - a[1]);
    let length = dx * dx + dy * dy;
    let t = if length > 0.0 { (((p[0] - a[0]) * dx + (p[1] - a[1]) * dy) / length).clamp(0.0, 1.0) } else { 0.0 };
    ((p[0] - a[0] - t * dx).powi(2) + (p[1] - a[1] - t * dy).powi(2)).sqrt()
}
