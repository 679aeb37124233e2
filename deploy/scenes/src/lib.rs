//! Synthetic footage of articulated people with exact keypoint labels.
//!
//! A scene is drawn from a [`Look`] by seed and index: a background, people as shaded capsules on a kinematic chain with joint limits, things
//! that stand before them, light, blur and sensor noise. The labels come from the geometry, their visibility from the z-buffer.
//!
//! | module | what it holds |
//! |---|---|
//! | `pose` | joint angles and the chain from angles to joints |
//! | `body` | clothes, face, capsules, keypoints |
//! | `background` | rooms, streets, clutter, occluders |
//! | `raster` | the z-buffered, supersampled rasteriser |
//! | `lens` | exposure, cast, blur, noise |
//! | [`coco`] | a folder of scenes in COCO's format |

mod background;
mod body;
pub mod coco;
mod lens;
mod look;
mod pose;
mod random;
mod raster;
mod vec3;

pub use coco::{ScenesError, write_coco};
pub use look::Look;

use body::{Body, Light};
use image::RgbImage;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{HardKeypoint, Visibility};
use random::Random;
use raster::{Raster, SAMPLES};
use vec3::vec3;

/// The size that the shipped model was trained for.
pub const DEFAULT_SIZE: Size = Size { width: 160, height: 128 };

/// A person who shows less of its silhouette than this is taken out of the scene.
const LEAST_VISIBLE: f32 = 0.3;

/// A rendered picture and who is in it.
#[derive(Clone, Debug, PartialEq)]
pub struct Scene {
    /// The picture.
    pub image: RgbImage,
    /// The JPEG quality of this camera, 1 to 100.
    pub jpeg_quality: u8,
    /// From the farthest to the nearest.
    pub people: Vec<Person>,
}

/// One person's label, in continuous picture coordinates.
#[derive(Clone, Debug, PartialEq)]
pub struct Person {
    /// The extent of the silhouette inside the picture, hidden parts included.
    pub rect: Rect,
    /// The silhouette's area inside the picture, hidden parts included, px².
    pub area: f32,
    /// COCO's 17 keypoints.
    pub keypoints: [HardKeypoint; 17],
}

/// Renders scene `index` of `seed`. The same arguments give the same picture.
pub fn scene(look: &Look, seed: u64, index: u64, size: Size) -> Scene {
    let mut random = Random::new(seed ^ look.stream.rotate_right(8), index);
    let (w, h) = (size.width as f32, size.height as f32);
    let mut backdrop = Raster::new(size.width, size.height);
    let horizon = background::paint(&mut backdrop, &mut random, look, (w, h));
    let light = Light {
        towards: vec3(random.range(-0.8, 0.8), random.range(0.2, 1.0), random.range(0.3, 1.0)).unit(),
        ambient: random.range(look.ambient.0, look.ambient.1),
    };
    let shadow = random.range(0.1, 0.55);
    let mut bodies = people(&mut random, look, (w, h), horizon);
    let things = Random::new(seed.wrapping_add(0x5CE2_E000) ^ look.stream, index);
    let (raster, people) = loop {
        for (layer, body) in bodies.iter_mut().enumerate() {
            body.place(layer);
        }
        let mut raster = Raster { colour: backdrop.colour.clone(), ..Raster::new(size.width, size.height) };
        for (index, body) in bodies.iter().enumerate() {
            body.shadow(&mut raster, shadow);
            body.draw(&mut raster, index as u8, light);
        }
        let mut things = things.clone();
        for _ in 0..2 {
            if things.chance(look.occluders) {
                let layer = things.pick(4).min(bodies.len().saturating_sub(1));
                background::occluder(&mut raster, &mut things, (w, h), layer);
            }
        }
        let labels: Vec<Option<Person>> = bodies.iter().enumerate().map(|(index, body)| label(body, index as u8, &raster)).collect();
        let mut shown = labels.iter().map(Option::is_some);
        if labels.iter().all(Option::is_some) {
            break (raster, labels.into_iter().flatten().collect());
        }
        bodies.retain(|_| shown.next().unwrap_or(false));
    };
    let rgb = lens::expose(raster.resolve(), size.width as usize, size.height as usize, look, &mut random);
    let jpeg_quality = look.jpeg.0 + random.pick(usize::from(look.jpeg.1 - look.jpeg.0) + 1) as u8;
    let image = RgbImage::from_raw(size.width, size.height, rgb).unwrap_or_default();
    Scene { image, jpeg_quality, people }
}

/// People from the farthest to the nearest, placed so that they do not stand in one another.
fn people(random: &mut Random, look: &Look, (w, h): (f32, f32), horizon: f32) -> Vec<Body> {
    let mut left = random.range(0.0, look.people.iter().sum());
    let count = look.people.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    let count = count.unwrap_or(1);
    let mut scales: Vec<f32> = (0..count).map(|_| h * random.range(look.height.0, look.height.1)).collect();
    // Groups stand farther away than single people.
    let crowding = [1.0, 1.0, 0.92, 0.82, 0.76][count.min(4)];
    scales.iter_mut().for_each(|scale| *scale *= crowding);
    scales.sort_by(f32::total_cmp);
    let mut taken: Vec<f32> = Vec::new();
    let mut bodies = Vec::new();
    for (layer, scale) in scales.into_iter().enumerate() {
        let far = |x: f32| taken.iter().map(|other| (other - x).abs()).fold(f32::INFINITY, f32::min);
        let tries: [f32; 4] = std::array::from_fn(|_| random.range(0.08, 0.92) * w);
        let x = tries.into_iter().find(|x| far(*x) > 0.22 * scale).unwrap_or(tries[0]);
        taken.push(x);
        let nearness = scale / (look.height.1 * h);
        let foot = (horizon + (h - horizon) * (0.25 + 0.75 * nearness) + random.normal(0.0, 0.05) * h).max(scale * 0.72);
        bodies.push(Body::sample(random, look, Point { x, y: foot }, scale, layer));
    }
    bodies
}

/// The label of person `index`; `None` when too little of it can be seen.
fn label(body: &Body, index: u8, raster: &Raster) -> Option<Person> {
    let (mut covered, mut seen) = (0_u32, 0_u32);
    let (mut x1, mut y1, mut x2, mut y2) = (usize::MAX, usize::MAX, 0, 0);
    for (at, (cover, owner)) in raster.cover.iter().zip(&raster.owner).enumerate() {
        if cover >> index & 1 == 1 {
            covered += 1;
            seen += u32::from(*owner == index);
            let (x, y) = (at % raster.width, at / raster.width);
            (x1, x2, y1, y2) = (x1.min(x), x2.max(x + 1), y1.min(y), y2.max(y + 1));
        }
    }
    let scale = SAMPLES as f32;
    let area = covered as f32 / (scale * scale);
    let keypoints = body.keypoints(raster);
    let visible = keypoints.iter().filter(|k| k.visibility == Visibility::Visible).count();
    if covered == 0 || (seen as f32) < LEAST_VISIBLE * covered as f32 || visible < 3 {
        return None;
    }
    let rect = Rect::new(x1 as f32 / scale, y1 as f32 / scale, x2 as f32 / scale, y2 as f32 / scale);
    Some(Person { rect, area, keypoints })
}
