//! The little linear algebra that a kinematic chain needs.

/// A vector in the person's space: x to the person's left, y up, z forward.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Vec3 {
    pub(crate) x: f32,
    pub(crate) y: f32,
    pub(crate) z: f32,
}

pub(crate) const fn vec3(x: f32, y: f32, z: f32) -> Vec3 {
    Vec3 { x, y, z }
}

impl Vec3 {
    pub(crate) fn dot(self, other: Self) -> f32 {
        self.x * other.x + self.y * other.y + self.z * other.z
    }

    pub(crate) fn unit(self) -> Self {
        self * (1.0 / self.dot(self).sqrt().max(1e-9))
    }
}

impl std::ops::Add for Vec3 {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        vec3(self.x + other.x, self.y + other.y, self.z + other.z)
    }
}

impl std::ops::Sub for Vec3 {
    type Output = Self;
    fn sub(self, other: Self) -> Self {
        vec3(self.x - other.x, self.y - other.y, self.z - other.z)
    }
}

impl std::ops::Mul<f32> for Vec3 {
    type Output = Self;
    fn mul(self, factor: f32) -> Self {
        vec3(self.x * factor, self.y * factor, self.z * factor)
    }
}

/// A rotation, by rows.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rotation([Vec3; 3]);

impl Rotation {
    /// About the x axis by `degrees`; positive takes "down" backwards.
    pub(crate) fn x(degrees: f32) -> Self {
        let (s, c) = degrees.to_radians().sin_cos();
        Self([vec3(1.0, 0.0, 0.0), vec3(0.0, c, -s), vec3(0.0, s, c)])
    }

    /// About the y axis by `degrees`; positive turns "forward" to the left.
    pub(crate) fn y(degrees: f32) -> Self {
        let (s, c) = degrees.to_radians().sin_cos();
        Self([vec3(c, 0.0, s), vec3(0.0, 1.0, 0.0), vec3(-s, 0.0, c)])
    }

    /// About the z axis by `degrees`; positive takes "down" to the left.
    pub(crate) fn z(degrees: f32) -> Self {
        let (s, c) = degrees.to_radians().sin_cos();
        Self([vec3(c, -s, 0.0), vec3(s, c, 0.0), vec3(0.0, 0.0, 1.0)])
    }

    /// `self` after `first`.
    pub(crate) fn after(self, first: Self) -> Self {
        let columns = [first.column(0), first.column(1), first.column(2)];
        Self(std::array::from_fn(|row| vec3(self.0[row].dot(columns[0]), self.0[row].dot(columns[1]), self.0[row].dot(columns[2]))))
    }

    fn column(&self, index: usize) -> Vec3 {
        let pick = |row: Vec3| [row.x, row.y, row.z][index];
        vec3(pick(self.0[0]), pick(self.0[1]), pick(self.0[2]))
    }

    pub(crate) fn apply(self, v: Vec3) -> Vec3 {
        vec3(self.0[0].dot(v), self.0[1].dot(v), self.0[2].dot(v))
    }

    /// The inverse rotation of `v`.
    pub(crate) fn undo(self, v: Vec3) -> Vec3 {
        vec3(self.column(0).dot(v), self.column(1).dot(v), self.column(2).dot(v))
    }
}
