//! Joint angles with their limits, and the kinematic chain from angles to joints in space.

use crate::random::Random;
use crate::vec3::{Rotation, Vec3, vec3};

/// Angles of one arm or leg in degrees.
#[derive(Clone, Copy, Debug, Default)]
struct Limb {
    /// Forwards, away from hanging down.
    flexion: f32,
    /// Sideways, away from the body.
    abduction: f32,
    /// About its own axis.
    twist: f32,
    /// Elbow or knee.
    bend: f32,
}

/// All angles of a body in degrees. Index 0 is the person's left, 1 the right.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Angles {
    /// The whole body about the vertical: 0 faces the camera.
    yaw: f32,
    /// In the picture plane.
    roll: f32,
    /// The camera looks down by this.
    pitch: f32,
    /// Torso forwards.
    lean: f32,
    /// Torso sideways.
    side: f32,
    /// Shoulders against hips.
    twist: f32,
    head_yaw: f32,
    head_pitch: f32,
    arms: [Limb; 2],
    legs: [Limb; 2],
}

fn limits(angles: &mut Angles) {
    for arm in &mut angles.arms {
        arm.flexion = arm.flexion.clamp(-50.0, 175.0);
        arm.abduction = arm.abduction.clamp(-10.0, 165.0);
        arm.twist = arm.twist.clamp(-70.0, 70.0);
        arm.bend = arm.bend.clamp(0.0, 145.0);
    }
    for leg in &mut angles.legs {
        leg.flexion = leg.flexion.clamp(-30.0, 115.0);
        leg.abduction = leg.abduction.clamp(-12.0, 55.0);
        leg.twist = leg.twist.clamp(-35.0, 35.0);
        leg.bend = leg.bend.clamp(0.0, 135.0);
    }
    angles.lean = angles.lean.clamp(-20.0, 75.0);
    angles.side = angles.side.clamp(-30.0, 30.0);
    angles.twist = angles.twist.clamp(-35.0, 35.0);
    angles.head_yaw = angles.head_yaw.clamp(-65.0, 65.0);
    angles.head_pitch = angles.head_pitch.clamp(-35.0, 40.0);
}

impl Angles {
    /// A pose of one of several kinds: standing, walking, reaching, sitting, jumping, anything.
    pub(crate) fn sample(random: &mut Random) -> Self {
        let mut a = Self {
            yaw: match random.pick(20) {
                0..=8 => random.normal(0.0, 30.0),
                9..=12 => 180.0 + random.normal(0.0, 28.0),
                _ => random.range(-180.0, 180.0),
            },
            roll: random.normal(0.0, 4.0),
            pitch: random.range(-2.0, 14.0),
            lean: random.normal(3.0, 5.0),
            side: random.normal(0.0, 5.0),
            twist: random.normal(0.0, 8.0),
            head_yaw: random.normal(0.0, 22.0),
            head_pitch: random.normal(4.0, 9.0),
            ..Self::default()
        };
        for side in 0..2 {
            a.arms[side] = Limb {
                flexion: random.normal(5.0, 16.0),
                abduction: random.normal(10.0, 8.0).abs(),
                twist: random.normal(0.0, 20.0),
                bend: random.normal(0.0, 35.0).abs(),
            };
            a.legs[side] = Limb {
                flexion: random.normal(0.0, 6.0),
                abduction: random.normal(4.0, 4.0),
                twist: random.normal(8.0, 8.0),
                bend: random.normal(0.0, 6.0).abs(),
            };
        }
        match random.pick(10) {
            0 | 1 => {}
            2 | 3 => a.walk(random),
            4 | 5 => a.reach(random),
            6 => a.sit(random),
            7 => a.jump(random),
            _ => a.anything(random),
        }
        limits(&mut a);
        a
    }

    fn walk(&mut self, random: &mut Random) {
        let stride = random.range(14.0, 42.0);
        let first = random.pick(2);
        self.legs[first].flexion += stride;
        self.legs[1 - first].flexion -= 0.6 * stride;
        self.legs[1 - first].bend += random.range(5.0, 60.0);
        self.legs[first].bend += random.range(0.0, 20.0);
        self.arms[1 - first].flexion += 0.9 * stride;
        self.arms[first].flexion -= 0.9 * stride;
    }

    fn reach(&mut self, random: &mut Random) {
        let both = random.chance(0.4);
        let first = random.pick(2);
        for side in 0..2 {
            if side == first || both {
                if random.chance(0.5) {
                    self.arms[side].flexion = random.range(50.0, 175.0);
                } else {
                    self.arms[side].abduction = random.range(50.0, 160.0);
                }
                self.arms[side].bend = random.range(0.0, 100.0);
                self.arms[side].twist = random.normal(0.0, 40.0);
            }
        }
    }

    fn sit(&mut self, random: &mut Random) {
        let hips = random.range(45.0, 105.0);
        let knees = hips + random.range(-15.0, 30.0);
        self.lean += random.range(0.0, 30.0);
        for side in 0..2 {
            self.legs[side].flexion = hips + random.normal(0.0, 8.0);
            self.legs[side].bend = knees + random.normal(0.0, 10.0);
            self.legs[side].abduction = random.range(2.0, 28.0);
            self.arms[side].flexion = random.range(5.0, 70.0);
            self.arms[side].bend = random.range(10.0, 110.0);
        }
    }

    fn jump(&mut self, random: &mut Random) {
        for side in 0..2 {
            self.arms[side].abduction = random.range(55.0, 155.0);
            self.arms[side].bend = random.range(0.0, 50.0);
            self.legs[side].abduction = random.range(10.0, 42.0);
            self.legs[side].flexion = random.range(-10.0, 45.0);
            self.legs[side].bend = random.range(0.0, 70.0);
        }
        self.roll += random.normal(0.0, 10.0);
    }

    fn anything(&mut self, random: &mut Random) {
        self.lean = random.range(-10.0, 55.0);
        self.side = random.normal(0.0, 14.0);
        self.twist = random.normal(0.0, 18.0);
        self.roll += random.normal(0.0, 14.0);
        for side in 0..2 {
            self.arms[side] = Limb {
                flexion: random.range(-40.0, 170.0),
                abduction: random.range(0.0, 130.0),
                twist: random.normal(0.0, 35.0),
                bend: random.range(0.0, 135.0),
            };
            self.legs[side] = Limb {
                flexion: random.range(-25.0, 85.0),
                abduction: random.range(-5.0, 40.0),
                twist: random.normal(5.0, 15.0),
                bend: random.range(0.0, 100.0),
            };
        }
    }
}

/// Lengths as fractions of the body height.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Build {
    pub(crate) shoulder: f32,
    pub(crate) hip: f32,
    pub(crate) torso: f32,
    pub(crate) upper_arm: f32,
    pub(crate) forearm: f32,
    pub(crate) thigh: f32,
    pub(crate) shin: f32,
    pub(crate) head: f32,
    /// Factor on all radii.
    pub(crate) girth: f32,
}

impl Build {
    pub(crate) fn sample(random: &mut Random) -> Self {
        let child = random.chance(0.12);
        let legs = random.range(0.94, 1.06) * if child { 0.88 } else { 1.0 };
        Self {
            shoulder: random.range(0.100, 0.128),
            hip: random.range(0.060, 0.078),
            torso: random.range(0.285, 0.320),
            upper_arm: 0.168 * random.range(0.94, 1.06),
            forearm: 0.148 * random.range(0.94, 1.06),
            thigh: 0.238 * legs,
            shin: 0.232 * legs,
            head: random.range(0.066, 0.076) * if child { 1.3 } else { 1.0 },
            girth: random.range(0.86, 1.30),
        }
    }
}

/// Joints in camera space, in units of the body height: x right in the picture, y up, z towards the camera; the hip centre is the origin.
/// Pairs are (left, right) of the person.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Joints {
    pub(crate) neck: Vec3,
    pub(crate) head: Vec3,
    pub(crate) nose: Vec3,
    pub(crate) eyes: [Vec3; 2],
    pub(crate) ears: [Vec3; 2],
    pub(crate) shoulders: [Vec3; 2],
    pub(crate) elbows: [Vec3; 2],
    pub(crate) wrists: [Vec3; 2],
    pub(crate) hands: [Vec3; 2],
    pub(crate) hips: [Vec3; 2],
    pub(crate) knees: [Vec3; 2],
    pub(crate) ankles: [Vec3; 2],
    pub(crate) toes: [Vec3; 2],
    /// From torso space to camera space.
    pub(crate) chest: Rotation,
    /// From head space to camera space.
    pub(crate) face: Rotation,
}

/// Directions of the face marks in head space, unit vectors; index 0 of a pair is the left.
pub(crate) const NOSE: Vec3 = vec3(0.0, -0.12, 0.993);
pub(crate) const EYES: [Vec3; 2] = [vec3(0.40, 0.16, 0.902), vec3(-0.40, 0.16, 0.902)];

const DOWN: Vec3 = vec3(0.0, -1.0, 0.0);

/// The kinematic chain.
pub(crate) fn joints(build: &Build, a: &Angles) -> Joints {
    let world = Rotation::z(a.roll).after(Rotation::x(a.pitch)).after(Rotation::y(a.yaw));
    let chest = world.after(Rotation::z(a.side)).after(Rotation::x(a.lean)).after(Rotation::y(a.twist));
    let neck = chest.apply(vec3(0.0, build.torso + 0.035, 0.0));
    let face = chest.after(Rotation::y(a.head_yaw)).after(Rotation::x(a.head_pitch - 0.6 * a.lean));
    let head = neck + face.apply(vec3(0.0, build.head + 0.032, 0.012));
    let on_head = |d: Vec3, reach: f32| head + face.apply(d * (build.head * reach));

    let arm = |side: usize| {
        let sign = if side == 0 { 1.0 } else { -1.0 };
        let limb = a.arms[side];
        let shoulder = chest.apply(vec3(sign * build.shoulder, build.torso, 0.0));
        let upper =
            chest.after(Rotation::z(sign * limb.abduction)).after(Rotation::x(-limb.flexion)).after(Rotation::y(-sign * limb.twist));
        let fore = upper.after(Rotation::x(-limb.bend));
        let elbow = shoulder + upper.apply(DOWN * build.upper_arm);
        let wrist = elbow + fore.apply(DOWN * build.forearm);
        (shoulder, elbow, wrist, wrist + fore.apply(DOWN * 0.045))
    };
    let leg = |side: usize| {
        let sign = if side == 0 { 1.0 } else { -1.0 };
        let limb = a.legs[side];
        let hip = world.apply(vec3(sign * build.hip, 0.0, 0.0));
        let upper = world.after(Rotation::z(sign * limb.abduction)).after(Rotation::x(-limb.flexion)).after(Rotation::y(sign * limb.twist));
        let lower = upper.after(Rotation::x(limb.bend));
        let knee = hip + upper.apply(DOWN * build.thigh);
        let ankle = knee + lower.apply(DOWN * build.shin);
        (hip, knee, ankle, ankle + lower.apply(vec3(0.0, -0.022, 0.075)))
    };
    let (arms, legs) = ([arm(0), arm(1)], [leg(0), leg(1)]);
    Joints {
        neck,
        head,
        nose: on_head(NOSE, 1.12),
        eyes: EYES.map(|d| on_head(d, 1.0)),
        ears: [1.0, -1.0].map(|sign| on_head(vec3(sign, 0.02, -0.02), 1.0)),
        shoulders: arms.map(|limb| limb.0),
        elbows: arms.map(|limb| limb.1),
        wrists: arms.map(|limb| limb.2),
        hands: arms.map(|limb| limb.3),
        hips: legs.map(|limb| limb.0),
        knees: legs.map(|limb| limb.1),
        ankles: legs.map(|limb| limb.2),
        toes: legs.map(|limb| limb.3),
        chest,
        face,
    }
}
