//! What a camera's surroundings look like: the distributions that scenes are drawn from.

/// The distributions of one camera.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Look {
    pub(crate) stream: u64,
    pub(crate) outdoors: f32,
    /// Weights of 0 to 4 people.
    pub(crate) people: [f32; 5],
    /// Body height as a fraction of the picture's height.
    pub(crate) height: (f32, f32),
    pub(crate) clutter: (usize, usize),
    /// Chance of each foreground object (two are tried).
    pub(crate) occluders: f32,
    pub(crate) gain: (f32, f32),
    /// Factor per channel at full cast.
    pub(crate) cast: [f32; 3],
    pub(crate) ambient: (f32, f32),
    pub(crate) noise: (f32, f32),
    pub(crate) blur: (f32, f32),
    pub(crate) jpeg: (u8, u8),
    pub(crate) cloth_saturation: f32,
    pub(crate) long_sleeves: f32,
    pub(crate) backpacks: f32,
}

impl Look {
    /// Indoors, bright and even: the look of the manual labels and of the first device.
    pub const fn studio() -> Self {
        Self {
            stream: 1,
            outdoors: 0.25,
            people: [0.05, 0.40, 0.32, 0.16, 0.07],
            height: (0.50, 0.98),
            clutter: (3, 10),
            occluders: 0.25,
            gain: (0.80, 1.15),
            cast: [1.04, 1.0, 0.95],
            ambient: (0.45, 0.70),
            noise: (0.004, 0.018),
            blur: (0.0, 0.6),
            jpeg: (85, 95),
            cloth_saturation: 0.8,
            long_sleeves: 0.45,
            backpacks: 0.05,
        }
    }

    /// A street towards evening: darker, a colour cast, smaller people, more before and behind them, a noisier camera.
    pub const fn street() -> Self {
        Self {
            stream: 2,
            outdoors: 1.0,
            people: [0.08, 0.27, 0.30, 0.21, 0.14],
            height: (0.40, 0.85),
            clutter: (6, 16),
            occluders: 0.38,
            gain: (0.50, 0.95),
            cast: [1.16, 0.96, 0.72],
            ambient: (0.35, 0.60),
            noise: (0.010, 0.034),
            blur: (0.2, 0.95),
            jpeg: (60, 85),
            cloth_saturation: 0.55,
            long_sleeves: 0.8,
            backpacks: 0.25,
        }
    }

    /// The look of a name as the command line knows it: `studio` or `street`.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "studio" => Some(Self::studio()),
            "street" => Some(Self::street()),
            _ => None,
        }
    }
}
