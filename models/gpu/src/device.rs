//! What a device can do, and arrays in its memory.

use crate::{Kernel, THREADS};
use std::marker::PhantomData;
use std::ops::Range;
use std::sync::Arc;

/// Why a device did not do what it was asked to.
#[derive(Debug, thiserror::Error)]
pub enum GpuError {
    /// A library or a driver is not installed, or not found.
    #[error("no GPU: {what} is missing; {hint}")]
    Missing {
        /// What is missing.
        what: &'static str,
        /// What would help.
        hint: String,
    },
    /// The driver refused.
    #[error("the GPU: {operation}: {message}")]
    Driver {
        /// What was asked for.
        operation: &'static str,
        /// What the driver said.
        message: String,
    },
    /// The kernels did not compile.
    #[error("the GPU kernels do not compile for {arch}: {log}")]
    Compile {
        /// The architecture, as NVRTC names it.
        arch: String,
        /// What the compiler said.
        log: String,
    },
    /// A kernel was given what it does not take.
    #[error("GPU kernel `{kernel}`: {message}")]
    Kernel {
        /// The kernel.
        kernel: &'static str,
        /// What is wrong.
        message: String,
    },
    /// More of something than the kernels have room for.
    #[error("{what}: {found}, the GPU kernels take at most {most}")]
    Limit {
        /// Of what.
        what: &'static str,
        /// How many.
        found: usize,
        /// The most.
        most: usize,
    },
}

/// An argument of a launch.
#[derive(Debug)]
pub enum Arg<'a, B> {
    /// The address of a buffer's byte.
    Buffer(&'a B, usize),
    /// An `int`.
    Int(i32),
    /// A `float`.
    Float(f32),
}

/// Memory and kernels. What is asked for is done in order; only [`Device::download`] waits for it.
pub trait Device: Send + Sync {
    /// Memory of the device.
    type Buffer: Send + Sync;

    /// Memory of zeros.
    ///
    /// # Errors
    /// See [`GpuError`].
    fn alloc(&self, bytes: usize) -> Result<Self::Buffer, GpuError>;

    /// A copy of `bytes` on the device.
    ///
    /// # Errors
    /// See [`GpuError`].
    fn upload(&self, bytes: &[u8]) -> Result<Self::Buffer, GpuError>;

    /// Copies what lies at `start` in `buffer` to `bytes`, when all that was asked for before is done.
    ///
    /// # Errors
    /// See [`GpuError`].
    fn download(&self, buffer: &Self::Buffer, start: usize, bytes: &mut [u8]) -> Result<(), GpuError>;

    /// Runs `kernel` on `grid` blocks (x, y) of [`THREADS`] threads.
    ///
    /// # Errors
    /// See [`GpuError`].
    ///
    /// # Safety
    /// `args` are what the kernel takes, and the buffers as long as it reads and writes for them.
    #[expect(unsafe_code, reason = "a kernel trusts its arguments")]
    unsafe fn launch(&self, kernel: Kernel, grid: [u32; 2], args: &[Arg<'_, Self::Buffer>]) -> Result<(), GpuError>;
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for u8 {}
    impl Sealed for u16 {}
    impl Sealed for u32 {}
    impl Sealed for u64 {}
    impl Sealed for f32 {}
}

/// What arrays hold.
pub trait Element: sealed::Sealed + bytemuck::Pod {}
impl Element for u8 {}
impl Element for u16 {}
impl Element for u32 {}
impl Element for u64 {}
impl Element for f32 {}

/// A part of a buffer. Clones share the memory.
pub struct Array<D: Device, T> {
    buffer: Arc<D::Buffer>,
    /// In elements, like `len`.
    start: usize,
    len: usize,
    kind: PhantomData<T>,
}

impl<D: Device, T> Clone for Array<D, T> {
    fn clone(&self) -> Self {
        Self { buffer: self.buffer.clone(), ..*self }
    }
}

impl<D: Device, T: Element> Array<D, T> {
    /// `len` zeros.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn zeros(device: &D, len: usize) -> Result<Self, GpuError> {
        Ok(Self::of(device.alloc(len * size_of::<T>())?, len))
    }

    /// A copy of `values`.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn from_slice(device: &D, values: &[T]) -> Result<Self, GpuError> {
        Ok(Self::of(device.upload(bytemuck::cast_slice(values))?, values.len()))
    }

    /// The first `len` elements of a buffer, which holds at least as many.
    pub fn of(buffer: D::Buffer, len: usize) -> Self {
        Self { buffer: Arc::new(buffer), start: 0, len, kind: PhantomData }
    }

    /// The values, when all that was asked for before is done.
    ///
    /// # Errors
    /// See [`GpuError`].
    pub fn to_vec(&self, device: &D) -> Result<Vec<T>, GpuError> {
        let mut values = vec![T::zeroed(); self.len];
        if self.len > 0 {
            device.download(&self.buffer, self.start * size_of::<T>(), bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }

    /// A part of it.
    ///
    /// # Panics
    /// When `range` reaches out of it.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "{range:?} of {} elements", self.len);
        Self { start: self.start + range.start, len: range.len(), ..self.clone() }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The memory it lies in, where nobody else has it.
    pub fn into_buffer(self) -> Option<D::Buffer> {
        Arc::into_inner(self.buffer)
    }

    /// The memory it lies in, of which it may be a part.
    pub fn buffer(&self) -> &Arc<D::Buffer> {
        &self.buffer
    }

    pub(crate) fn arg(&self) -> Arg<'_, D::Buffer> {
        Arg::Buffer(&self.buffer, self.start_bytes())
    }

    /// Where it begins in its memory.
    pub(crate) fn start_bytes(&self) -> usize {
        self.start * size_of::<T>()
    }
}

/// Blocks for `threads` threads.
pub(crate) fn blocks(threads: usize) -> usize {
    threads.div_ceil(THREADS)
}
