//! A dressed person: joints become shaded capsules, and keypoints with their visibility.

use crate::look::Look;
use crate::pose::{Angles, Build, EYES, Joints, NOSE, joints};
use crate::random::Random;
use crate::raster::{Capsule, Colour, Raster, Surface, mix, scaled};
use crate::vec3::{Vec3, vec3};
use omnilabel_keypoints::geometry::Point;
use omnilabel_keypoints::label::{HardKeypoint, Visibility};

/// Space between two people in depth, larger than any person is deep, px.
const LAYER: f32 = 1e4;

#[derive(Clone, Copy, Debug)]
enum Weave {
    Plain,
    Stripes(Colour, f32),
    Checks(Colour, f32),
    LowerPart(Colour, f32),
}

#[derive(Clone, Copy, Debug)]
struct Cloth {
    colour: Colour,
    weave: Weave,
}

impl Cloth {
    fn sample(random: &mut Random, look: &Look) -> Self {
        let colour = fabric(random, look);
        let other = if random.chance(0.4) { [0.85, 0.84, 0.8] } else { fabric(random, look) };
        let weave = match random.pick(7) {
            0 => Weave::Stripes(other, random.range(3.0, 8.0)),
            1 => Weave::Checks(other, random.range(3.0, 6.0)),
            2 => Weave::LowerPart(other, random.range(0.3, 0.7)),
            _ => Weave::Plain,
        };
        Self { colour, weave }
    }

    fn at(&self, surface: Surface) -> Colour {
        match self.weave {
            Weave::Plain => self.colour,
            Weave::Stripes(other, count) => {
                if (surface.along * count).fract() < 0.5 {
                    self.colour
                } else {
                    other
                }
            }
            Weave::Checks(other, count) => {
                let (u, v) = ((surface.along * count).floor() as i32, (surface.normal.x * 2.0).floor() as i32);
                if (u + v) & 1 == 0 { self.colour } else { other }
            }
            Weave::LowerPart(other, from) => {
                if surface.along < from {
                    self.colour
                } else {
                    other
                }
            }
        }
    }
}

/// A cloth colour: mostly muted, sometimes bright.
fn fabric(random: &mut Random, look: &Look) -> Colour {
    let hue = random.range(0.0, 6.0);
    let saturation = random.range(0.0, 1.0).powf(1.6) * look.cloth_saturation;
    let value = random.range(0.08, 0.85);
    let channel = |shift: f32| {
        let k = (hue + shift) % 6.0;
        value * (1.0 - saturation * (1.0 - (k - 3.0).abs().min(2.0) + 1.0).clamp(0.0, 1.0))
    };
    [channel(0.0), channel(2.0), channel(4.0)]
}

const SKIN: [Colour; 6] =
    [[0.87, 0.68, 0.56], [0.80, 0.60, 0.47], [0.70, 0.49, 0.36], [0.55, 0.37, 0.26], [0.40, 0.26, 0.18], [0.28, 0.18, 0.13]];
const HAIR: [Colour; 6] =
    [[0.06, 0.05, 0.05], [0.15, 0.09, 0.06], [0.30, 0.19, 0.10], [0.55, 0.42, 0.22], [0.45, 0.44, 0.43], [0.42, 0.16, 0.07]];

#[derive(Clone, Copy, Debug)]
struct Clothes {
    skin: Colour,
    hair: Colour,
    long_hair: bool,
    shirt: Cloth,
    /// Zip, buttons or a print on the chest.
    front: Option<Colour>,
    long_sleeves: bool,
    trousers: Cloth,
    shorts: bool,
    shoes: Colour,
    backpack: Option<Colour>,
}

impl Clothes {
    fn sample(random: &mut Random, look: &Look) -> Self {
        Self {
            skin: scaled(SKIN[random.pick(SKIN.len())], random.range(0.92, 1.06)),
            hair: HAIR[random.pick(HAIR.len())],
            long_hair: random.chance(0.35),
            shirt: Cloth::sample(random, look),
            front: random.chance(0.55).then(|| fabric(random, look)),
            long_sleeves: random.chance(look.long_sleeves),
            trousers: Cloth { colour: scaled(fabric(random, look), 0.8), weave: Weave::Plain },
            shorts: random.chance(1.0 - look.long_sleeves),
            shoes: scaled(fabric(random, look), 0.7),
            backpack: random.chance(look.backpacks).then(|| fabric(random, look)),
        }
    }
}

/// A person who stands in a scene.
pub(crate) struct Body {
    joints: Joints,
    build: Build,
    clothes: Clothes,
    /// Picture position of the hip centre and pixels per body height.
    hip: Point,
    scale: f32,
    depth: f32,
}

/// Light that falls on people, a unit vector towards it, camera space.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Light {
    pub(crate) towards: Vec3,
    pub(crate) ambient: f32,
}

impl Light {
    fn on(&self, normal: Vec3) -> f32 {
        self.ambient + (1.0 - self.ambient) * 1.15 * normal.dot(self.towards).max(0.0)
    }
}

impl Body {
    /// A person of `scale` px body height whose lowest foot stands at `foot`; `layer` 0 is the farthest.
    pub(crate) fn sample(random: &mut Random, look: &Look, foot: Point, scale: f32, layer: usize) -> Self {
        let build = Build::sample(random);
        let joints = joints(&build, &Angles::sample(random));
        let clothes = Clothes::sample(random, look);
        let lowest = joints.ankles.iter().chain(&joints.toes).chain(&joints.knees).chain(&joints.hips);
        let lowest = lowest.fold(0.0_f32, |low, joint| low.min(joint.y)) - 0.03;
        let mut body = Self { joints, build, clothes, hip: Point::default(), scale, depth: 0.0 };
        body.hip = Point { x: foot.x, y: foot.y + lowest * scale };
        body.place(layer);
        body
    }

    /// Moves the person to another depth.
    pub(crate) fn place(&mut self, layer: usize) {
        self.depth = (layer as f32 + 1.0) * LAYER;
    }

    /// A depth in front of the people of `layer` and behind the next.
    pub(crate) fn before(layer: usize) -> f32 {
        (layer as f32 + 1.5) * LAYER
    }

    fn project(&self, joint: Vec3) -> Vec3 {
        vec3(self.hip.x + joint.x * self.scale, self.hip.y - joint.y * self.scale, self.depth + joint.z * self.scale)
    }

    /// Darkens the ground under the feet.
    pub(crate) fn shadow(&self, raster: &mut Raster, strength: f32) {
        let feet = self.joints.ankles.map(|ankle| self.project(ankle));
        let (cx, cy) = ((feet[0].x + feet[1].x) / 2.0, feet[0].y.max(feet[1].y) + 0.03 * self.scale);
        let (rx, ry) = ((feet[0].x - feet[1].x).abs() / 2.0 + 0.14 * self.scale, 0.045 * self.scale);
        raster.paint([cx - rx, cy - ry, cx + rx, cy + ry], |x, y, below| {
            let away = ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2);
            (away < 1.0).then(|| scaled(below, 1.0 - strength * (1.0 - away)))
        });
    }

    /// Draws the person as owner `index`.
    pub(crate) fn draw(&self, raster: &mut Raster, index: u8, light: Light) {
        let (j, c, girth) = (&self.joints, &self.clothes, self.build.girth);
        let capsule = |from: Vec3, to: Vec3, r0: f32, r1: f32| Capsule {
            ends: [self.project(from), self.project(to)],
            radii: [(r0 * self.scale).max(0.6), (r1 * self.scale).max(0.6)],
        };
        let mut limb = |from: Vec3, to: Vec3, r0: f32, r1: f32, cloth: &Cloth| {
            raster.capsule(&capsule(from, to, r0 * girth, r1 * girth), index, |s| scaled(cloth.at(s), light.on(s.normal)));
        };
        let plain = |colour: Colour| Cloth { colour, weave: Weave::Plain };
        let skin = plain(c.skin);
        let (sleeve, leg) = (if c.long_sleeves { c.shirt } else { skin }, if c.shorts { skin } else { c.trousers });
        let shoes = plain(c.shoes);
        for side in 0..2 {
            limb(j.hips[side], j.knees[side], 0.062, 0.043, &c.trousers);
            limb(j.knees[side], j.ankles[side], 0.043, 0.026, &leg);
            limb(j.ankles[side], j.toes[side], 0.028, 0.021, &shoes);
            limb(j.shoulders[side], j.elbows[side], 0.040, 0.031, &c.shirt);
            limb(j.elbows[side], j.wrists[side], 0.030, 0.022, &sleeve);
            limb(j.wrists[side], j.hands[side], 0.023, 0.022, &skin);
        }
        limb(j.hips[0], j.hips[1], 0.064, 0.064, &c.trousers);
        limb(j.shoulders[0], j.shoulders[1], 0.043, 0.043, &plain(c.shirt.colour));
        limb(j.neck, j.head, 0.032, 0.036, &skin);
        for side in 0..2 {
            limb(
                j.shoulders[side] + j.chest.apply(vec3(if side == 0 { -0.03 } else { 0.03 }, -0.02, 0.0)),
                j.hips[side],
                0.062,
                0.056,
                &c.shirt,
            );
        }
        if let Some(bag) = c.backpack {
            let back = |y: f32| j.chest.apply(vec3(0.0, y, -0.085));
            limb(back(self.build.torso * 0.9), back(self.build.torso * 0.35), 0.066, 0.072, &plain(bag));
        }
        // The middle of the torso shows which side is the front.
        let spine = capsule(j.chest.apply(vec3(0.0, self.build.torso - 0.01, 0.008)), vec3(0.0, 0.03, 0.0), 0.070 * girth, 0.064 * girth);
        raster.capsule(&spine, index, |s| {
            let local = j.chest.undo(s.normal);
            let mark = c.front.filter(|_| local.z > 0.3 && local.x.abs() < 0.32 && s.along < 0.8);
            scaled(mark.unwrap_or_else(|| c.shirt.at(s)), light.on(s.normal))
        });
        self.draw_head(raster, index, light);
    }

    fn draw_head(&self, raster: &mut Raster, index: u8, light: Light) {
        let (j, c, radius) = (&self.joints, &self.clothes, self.build.head);
        let ball = |centre: Vec3, r: f32| {
            let end = self.project(centre);
            Capsule { ends: [end, end], radii: [(r * self.scale).max(0.6); 2] }
        };
        for ear in j.ears {
            raster.capsule(&ball(ear, radius * 0.24), index, |s| scaled(scaled(c.skin, 0.88), light.on(s.normal)));
        }
        if c.long_hair {
            let back = |y: f32| j.head + j.face.apply(vec3(0.0, y, -0.45) * radius);
            let ends = [self.project(back(0.2)), self.project(back(-1.5))];
            let radii = [radius * 0.95 * self.scale, radius * 0.6 * self.scale];
            raster.capsule(&Capsule { ends, radii }, index, |s| scaled(c.hair, light.on(s.normal)));
        }
        let chin = j.head + j.face.apply(vec3(0.0, -0.30, 0.05) * radius);
        let skull = Capsule { ends: [self.project(j.head), self.project(chin)], radii: [radius * self.scale, radius * 0.86 * self.scale] };
        raster.capsule(&skull, index, |s| {
            let local = j.face.undo(s.normal);
            let colour = if s.along < 0.5 && EYES.iter().any(|eye| local.dot(*eye) > 0.982) {
                [0.05, 0.05, 0.07]
            } else if s.along >= 0.5 && local.z > 0.75 && local.x.abs() < 0.38 && (-0.55..-0.34).contains(&local.y) {
                mix(c.skin, [0.55, 0.12, 0.12], 0.6)
            } else if local.z < 0.12 && local.y > -0.75 || local.y > 0.52 {
                c.hair
            } else {
                c.skin
            };
            scaled(colour, light.on(s.normal))
        });
        let nose = j.head + j.face.apply(NOSE * radius * 0.98);
        raster.capsule(&ball(nose, radius * 0.19), index, |s| scaled(scaled(c.skin, 1.08), light.on(s.normal)));
    }

    /// The 17 keypoints of COCO: 2 where the raster shows them, 1 where something lies before them, 0 outside the picture.
    pub(crate) fn keypoints(&self, raster: &Raster) -> [HardKeypoint; 17] {
        let (j, girth, head) = (&self.joints, self.build.girth, self.build.head);
        // Joints lie inside limbs: a keypoint is hidden when something lies nearer than the limb's own skin.
        let depths = [
            (j.nose, 0.25 * head),
            (j.eyes[0], 0.30 * head),
            (j.eyes[1], 0.30 * head),
            (j.ears[0], 0.45 * head),
            (j.ears[1], 0.45 * head),
            (j.shoulders[0], 0.062 * girth),
            (j.shoulders[1], 0.062 * girth),
            (j.elbows[0], 0.036 * girth),
            (j.elbows[1], 0.036 * girth),
            (j.wrists[0], 0.028 * girth),
            (j.wrists[1], 0.028 * girth),
            (j.hips[0], 0.074 * girth),
            (j.hips[1], 0.074 * girth),
            (j.knees[0], 0.050 * girth),
            (j.knees[1], 0.050 * girth),
            (j.ankles[0], 0.034 * girth),
            (j.ankles[1], 0.034 * girth),
        ];
        depths.map(|(joint, skin)| {
            let at = self.project(joint);
            let point = Point { x: at.x, y: at.y };
            match raster.depth_at(at.x, at.y) {
                None => HardKeypoint::default(),
                Some(seen) if seen > at.z + skin * self.scale + 0.75 => HardKeypoint { point, visibility: Visibility::Hidden },
                Some(_) => HardKeypoint { point, visibility: Visibility::Visible },
            }
        })
    }
}
