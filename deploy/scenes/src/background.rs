//! What is behind people and before them.

use crate::body::Body;
use crate::look::Look;
use crate::random::Random;
use crate::raster::{Capsule, Colour, OBJECT, Raster, mix, scaled};
use crate::vec3::vec3;

fn tone(random: &mut Random, low: f32, high: f32, saturation: f32) -> Colour {
    let value = random.range(low, high);
    std::array::from_fn(|_| (value * (1.0 + random.range(-saturation, saturation))).clamp(0.0, 1.0))
}

/// Smooth noise in −1 to 1 with a lattice of `cell` px.
#[derive(Clone, Copy)]
struct Noise {
    seed: u32,
    cell: f32,
}

impl Noise {
    fn lattice(self, x: i32, y: i32) -> f32 {
        let mut h = self.seed ^ (x as u32).wrapping_mul(0x9E37_79B1) ^ (y as u32).wrapping_mul(0x85EB_CA77);
        h ^= h >> 15;
        h = h.wrapping_mul(0x2C1B_3C6D);
        h ^= h >> 13;
        (h & 0xFFFF) as f32 / 32767.5 - 1.0
    }

    fn at(self, x: f32, y: f32) -> f32 {
        let (u, v) = (x / self.cell, y / self.cell);
        let (iu, iv) = (u.floor(), v.floor());
        let smooth = |t: f32| t * t * (3.0 - 2.0 * t);
        let (s, t) = (smooth(u - iu), smooth(v - iv));
        let (i, j) = (iu as i32, iv as i32);
        let top = self.lattice(i, j) * (1.0 - s) + self.lattice(i + 1, j) * s;
        let bottom = self.lattice(i, j + 1) * (1.0 - s) + self.lattice(i + 1, j + 1) * s;
        top * (1.0 - t) + bottom * t
    }
}

/// Paints the background and returns the row of the horizon, px.
pub(crate) fn paint(raster: &mut Raster, random: &mut Random, look: &Look, size: (f32, f32)) -> f32 {
    let (w, h) = size;
    let outdoors = random.chance(look.outdoors);
    let horizon = h * random.range(0.42, 0.68);
    let everything = [0.0, 0.0, w, h];
    let (top, low) = if outdoors {
        (mix([0.45, 0.62, 0.86], tone(random, 0.4, 0.9, 0.1), random.range(0.0, 0.8)), tone(random, 0.55, 0.9, 0.12))
    } else {
        let wall = tone(random, 0.3, 0.88, 0.18);
        (wall, scaled(wall, random.range(0.75, 1.05)))
    };
    let ground = tone(random, 0.18, 0.62, 0.2);
    let far_ground = mix(ground, low, random.range(0.1, 0.5));
    let tiles = random.chance(0.4).then(|| random.range(0.05, 0.12) * w);
    raster.paint(everything, |x, y, _| {
        if y < horizon {
            return Some(mix(top, low, y / horizon));
        }
        let t = (y - horizon) / (h - horizon);
        let mut colour = mix(far_ground, ground, t);
        if let Some(tile) = tiles {
            let (u, v) = ((x - w / 2.0) / (tile * (0.25 + t)), 1.2 / (0.15 + t));
            if (u.floor() as i32 + (v * 2.0).floor() as i32) & 1 == 0 {
                colour = scaled(colour, 0.88);
            }
        }
        Some(colour)
    });
    if outdoors {
        street(raster, random, size, horizon);
    } else {
        room(raster, random, size, horizon);
    }
    let things = look.clutter.0 + random.pick(look.clutter.1 - look.clutter.0 + 1);
    for _ in 0..things {
        thing(raster, random, size, horizon);
    }
    let (coarse, fine) =
        (Noise { seed: random.bits(), cell: random.range(10.0, 30.0) }, Noise { seed: random.bits(), cell: random.range(1.5, 4.0) });
    let (a, b) = (random.range(0.0, 0.16), random.range(0.0, 0.07));
    let (columns, rows) = (w as usize, h as usize);
    let pixel = |at: usize| {
        let (x, y) = ((at % columns) as f32 + 0.5, (at / columns) as f32 + 0.5);
        1.0 + a * coarse.at(x, y) + b * fine.at(x, y)
    };
    let grain: Vec<f32> = (0..columns * rows).map(pixel).collect();
    raster.paint(everything, |x, y, below| Some(scaled(below, grain[y as usize * columns + x as usize])));
    horizon
}

fn room(raster: &mut Raster, random: &mut Random, (w, h): (f32, f32), horizon: f32) {
    let skirting = tone(random, 0.2, 0.9, 0.1);
    raster.paint([0.0, horizon - 0.015 * h, w, horizon], |_, _, _| Some(skirting));
    for _ in 0..random.pick(4) {
        // Pictures, windows, doors.
        let (x, width) = (random.range(-0.1, 0.9) * w, random.range(0.08, 0.3) * w);
        let (y, height) = (random.range(0.02, 0.3) * h, random.range(0.1, 0.5) * h);
        let (frame, inside) = (tone(random, 0.1, 0.8, 0.2), tone(random, 0.2, 0.95, 0.3));
        let border = 0.012 * w;
        raster.paint([x, y, x + width, (y + height).min(horizon)], |u, v, _| {
            let inner = u > x + border && u < x + width - border && v > y + border && v < y + height - border;
            Some(if inner { inside } else { frame })
        });
    }
}

fn street(raster: &mut Raster, random: &mut Random, (w, h): (f32, f32), horizon: f32) {
    let mut x = random.range(-0.2, 0.0) * w;
    while x < w {
        let width = random.range(0.12, 0.4) * w;
        if random.chance(0.75) {
            let top = horizon * random.range(-0.1, 0.7);
            let (wall, glass) = (tone(random, 0.25, 0.75, 0.2), tone(random, 0.1, 0.9, 0.25));
            let (pitch_x, pitch_y, lit) = (random.range(0.03, 0.06) * w, random.range(0.05, 0.09) * h, random.range(0.35, 0.6));
            raster.paint([x, top, x + width, horizon], |u, v, _| {
                let (a, b) = (((u - x) / pitch_x).fract(), ((v - top) / pitch_y).fract());
                Some(if a > lit && b > 0.4 { glass } else { wall })
            });
        } else {
            let (cx, cy, r) = (x + width / 2.0, horizon - 0.12 * h, random.range(0.08, 0.18) * w);
            let leaf = [random.range(0.1, 0.3), random.range(0.25, 0.5), random.range(0.08, 0.25)];
            let rough = Noise { seed: random.bits(), cell: 4.0 };
            raster.paint([cx - 0.012 * w, cy, cx + 0.012 * w, horizon + 0.02 * h], |_, _, _| Some([0.22, 0.15, 0.1]));
            raster.paint([cx - r, cy - 1.3 * r, cx + r, cy + r], |u, v, _| {
                let n = rough.at(u, v);
                ((u - cx).powi(2) + (v - cy).powi(2) < (r * (0.85 + 0.15 * n)).powi(2)).then(|| scaled(leaf, 1.0 + 0.4 * n))
            });
        }
        x += width * random.range(0.8, 1.4);
    }
}

/// One thing behind the people: a box, a ball, a post, or a limb that belongs to nobody.
fn thing(raster: &mut Raster, random: &mut Random, (w, h): (f32, f32), horizon: f32) {
    let colour = tone(random, 0.08, 0.9, 0.45);
    let (x, y) = (random.range(0.0, 1.0) * w, horizon + random.range(-0.25, 0.45) * h);
    match random.pick(5) {
        0 | 1 => {
            let (width, height) = (random.range(0.03, 0.22) * w, random.range(0.03, 0.25) * h);
            let other = scaled(colour, random.range(0.5, 0.9));
            let band = random.range(0.1, 1.0);
            raster.paint([x, y - height, x + width, y], |_, v, _| Some(if (v - y + height) / height < band { colour } else { other }));
        }
        2 => {
            let r = random.range(0.015, 0.07) * w;
            raster.paint([x - r, y - r, x + r, y + r], |u, v, _| {
                let away = ((u - x).powi(2) + (v - y).powi(2)) / (r * r);
                (away < 1.0).then(|| scaled(colour, 1.1 - 0.5 * away))
            });
        }
        3 => {
            let (half, top) = (random.range(0.003, 0.010) * w, y - random.range(0.3, 0.9) * h);
            raster.paint([x - half, top, x + half, y], |_, _, _| Some(colour));
            if random.chance(0.6) {
                let lamp = if random.chance(0.5) { [1.0, 0.95, 0.75] } else { scaled(colour, 0.8) };
                raster.paint([x - 3.5 * half, top - 3.0 * half, x + 3.5 * half, top], |_, _, _| Some(lamp));
            }
        }
        _ => {
            let (angle, length) = (random.range(0.0, std::f32::consts::TAU), random.range(0.08, 0.25) * h);
            let r = random.range(0.008, 0.03) * h;
            let ends = [vec3(x, y, -1e6), vec3(x + length * angle.cos(), y + length * angle.sin(), -1e6)];
            raster.capsule(&Capsule { ends, radii: [r, r * 0.7] }, OBJECT, |s| scaled(colour, 0.55 + 0.5 * s.normal.z));
        }
    }
}

/// Something that stands before the people of `layer`: a post, a table, a plant.
pub(crate) fn occluder(raster: &mut Raster, random: &mut Random, (w, h): (f32, f32), layer: usize) {
    let colour = tone(random, 0.08, 0.8, 0.35);
    let depth = Body::before(layer);
    let x = random.range(0.05, 0.95) * w;
    match random.pick(3) {
        0 => {
            let half = random.range(0.008, 0.022) * w;
            raster.stand([x - half, 0.0, x + half, h], depth, |u, _| Some(scaled(colour, 1.0 - 0.35 * ((u - x) / half).abs())));
        }
        1 => {
            let (width, top) = (random.range(0.15, 0.4) * w, random.range(0.68, 0.9) * h);
            let edge = top + random.range(0.02, 0.05) * h;
            raster
                .stand([x - width / 2.0, top, x + width / 2.0, h], depth, |_, v| Some(if v < edge { colour } else { scaled(colour, 0.7) }));
        }
        _ => {
            let (cy, r) = (random.range(0.65, 1.0) * h, random.range(0.05, 0.12) * w);
            let rough = Noise { seed: random.bits(), cell: 3.0 };
            let leaf = [random.range(0.08, 0.3), random.range(0.2, 0.5), random.range(0.06, 0.25)];
            raster.stand([x - r, cy - r, x + r, h], depth, |u, v| {
                let n = rough.at(u, v);
                let inside = (u - x).powi(2) + (v - cy).powi(2) < (r * (0.8 + 0.25 * n)).powi(2);
                inside.then(|| scaled(leaf, 1.0 + 0.5 * n))
            });
        }
    }
}
