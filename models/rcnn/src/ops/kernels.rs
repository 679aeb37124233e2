//! The operations on a device of `omnilabel_gpu`: which kernels, in which order, on which shapes. Whatever computes products there is
//! behind [`Engine`]: cuDNN and cuBLAS on a GPU, this workspace's own on the kernels compiled as C++.

use super::conv::ConvSpec;
use super::pool::MaxPool;
use super::upsample::{Bilinear, Nearest};
use crate::device::Arithmetic;
use candle_core::{Error, Result};
use omnilabel_conv::{Geometry, Wanted};
use omnilabel_gpu::ops::{self, Doubling, Pooling};
use omnilabel_gpu::{Array, Device, GpuError};

/// Numbers on the device of an engine.
pub(crate) type On<E> = Array<<E as Engine>::Device, f32>;

/// A device with memory that is given out as it is, convolutions and matrix products.
pub(crate) trait Engine {
    type Device: Device;

    fn device(&self) -> &Self::Device;

    /// Memory for `len` numbers, whatever they are.
    fn empty(&self, len: usize) -> Result<On<Self>>;

    /// Memory of `len` zeros.
    fn zeros(&self, len: usize) -> Result<On<Self>>;

    /// `x ⋆ w`, `[n, o, oh, ow]`.
    fn convolve(&self, g: &Geometry, how: Arithmetic, x: &On<Self>, w: &On<Self>) -> Result<On<Self>>;

    /// The gradient of the input of [`Engine::convolve`], `[n, c, h, w]`, given that of its output.
    fn input_gradient(&self, g: &Geometry, how: Arithmetic, w: &On<Self>, dy: &On<Self>) -> Result<On<Self>>;

    /// The gradient of the weight of [`Engine::convolve`], `[o, c/groups, kh, kw]`.
    fn weight_gradient(&self, g: &Geometry, how: Arithmetic, x: &On<Self>, dy: &On<Self>) -> Result<On<Self>>;

    /// `[m, n]` of `a` `[m, k]` and `b` `[k, n]`, each of which may be given transposed.
    fn product(&self, size: Product, how: Arithmetic, a: &On<Self>, b: &On<Self>) -> Result<On<Self>>;
}

/// Sizes of a matrix product, none of them 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Product {
    pub(crate) m: usize,
    pub(crate) n: usize,
    pub(crate) k: usize,
    /// Whether `a` lies as `[k, m]`.
    pub(crate) a_transposed: bool,
    /// Whether `b` lies as `[n, k]`.
    pub(crate) b_transposed: bool,
}

pub(crate) fn failed(error: GpuError) -> Error {
    Error::wrap(error)
}

/// `count` gradients, where they were wanted.
type Gradients<E> = [Option<On<E>>; 3];

/// The gradient before the ReLU, where there is one.
fn unmasked<E: Engine>(e: &E, relu: bool, y: &On<E>, grad: &On<E>) -> Result<On<E>> {
    if !relu {
        return Ok(grad.clone());
    }
    let out = e.empty(y.len())?;
    ops::relu_backward(e.device(), y, grad, &out).map_err(failed)?;
    Ok(out)
}

/// Adds the bias in place, with ReLU behind it where `relu`.
fn biased<E: Engine>(e: &E, y: On<E>, bias: &On<E>, plane: usize, relu: bool) -> Result<On<E>> {
    ops::add_bias(e.device(), &y, bias, plane, relu).map_err(failed)?;
    Ok(y)
}

fn bias_gradient<E: Engine>(e: &E, dy: &On<E>, channels: usize, plane: usize) -> Result<On<E>> {
    let out = e.empty(channels)?;
    ops::sum_channels(e.device(), dy, plane, &out).map_err(failed)?;
    Ok(out)
}

/// `f()` where it is wanted.
fn when<T>(wanted: bool, f: impl FnOnce() -> Result<T>) -> Result<Option<T>> {
    wanted.then(f).transpose()
}

pub(crate) fn conv<E: Engine>(e: &E, spec: ConvSpec, g: &Geometry, [x, w, b]: [&On<E>; 3]) -> Result<On<E>> {
    biased(e, e.convolve(g, spec.arithmetic, x, w)?, b, g.oh * g.ow, spec.relu)
}

pub(crate) fn conv_backward<E: Engine>(
    e: &E,
    spec: ConvSpec,
    g: &Geometry,
    [x, w, y, grad]: [&On<E>; 4],
    wanted: Wanted,
) -> Result<Gradients<E>> {
    let dy = unmasked(e, spec.relu, y, grad)?;
    Ok([
        when(wanted.input, || e.input_gradient(g, spec.arithmetic, w, &dy))?,
        when(wanted.weight, || e.weight_gradient(g, spec.arithmetic, x, &dy))?,
        when(wanted.bias, || bias_gradient(e, &dy, g.o, g.oh * g.ow))?,
    ])
}

/// `g` is the convolution whose input gradient this is.
pub(crate) fn conv_transpose<E: Engine>(e: &E, spec: ConvSpec, g: &Geometry, [x, w, b]: [&On<E>; 3]) -> Result<On<E>> {
    biased(e, e.input_gradient(g, spec.arithmetic, w, x)?, b, g.h * g.w, spec.relu)
}

/// The operation is the adjoint of a convolution, so its input gradient is that convolution of the gradient.
pub(crate) fn conv_transpose_backward<E: Engine>(
    e: &E,
    spec: ConvSpec,
    g: &Geometry,
    [x, w, y, grad]: [&On<E>; 4],
    wanted: Wanted,
) -> Result<Gradients<E>> {
    let dy = unmasked(e, spec.relu, y, grad)?;
    Ok([
        when(wanted.input, || e.convolve(g, spec.arithmetic, &dy, w))?,
        when(wanted.weight, || e.weight_gradient(g, spec.arithmetic, &dy, x))?,
        when(wanted.bias, || bias_gradient(e, &dy, g.c, g.h * g.w))?,
    ])
}

/// Rows, inputs and outputs of a fully connected layer, and how it computes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dense {
    pub(crate) r: usize,
    pub(crate) i: usize,
    pub(crate) o: usize,
    pub(crate) relu: bool,
    pub(crate) arithmetic: Arithmetic,
}

pub(crate) fn dense<E: Engine>(e: &E, d: Dense, [x, w, b]: [&On<E>; 3]) -> Result<On<E>> {
    if d.r * d.i * d.o == 0 {
        return e.zeros(d.r * d.o);
    }
    let size = Product { m: d.r, n: d.o, k: d.i, a_transposed: false, b_transposed: true };
    biased(e, e.product(size, d.arithmetic, x, w)?, b, 1, d.relu)
}

pub(crate) fn dense_backward<E: Engine>(e: &E, d: Dense, [x, w, y, grad]: [&On<E>; 4], wanted: Wanted) -> Result<Gradients<E>> {
    if d.r * d.i * d.o == 0 {
        // Of a batch without a row.
        return Ok([
            when(wanted.input, || e.zeros(d.r * d.i))?,
            when(wanted.weight, || e.zeros(d.o * d.i))?,
            when(wanted.bias, || e.zeros(d.o))?,
        ]);
    }
    let dy = unmasked(e, d.relu, y, grad)?;
    let size = |m, n, k, a_transposed| Product { m, n, k, a_transposed, b_transposed: false };
    Ok([
        when(wanted.input, || e.product(size(d.r, d.i, d.o, false), d.arithmetic, &dy, w))?,
        when(wanted.weight, || e.product(size(d.o, d.i, d.r, true), d.arithmetic, &dy, x))?,
        when(wanted.bias, || bias_gradient(e, &dy, d.o, 1))?,
    ])
}

pub(crate) fn add_relu<E: Engine>(e: &E, a: &On<E>, b: &On<E>) -> Result<On<E>> {
    let out = e.empty(a.len())?;
    ops::add_relu(e.device(), a, b, &out).map_err(failed)?;
    Ok(out)
}

/// Of both terms.
pub(crate) fn add_relu_backward<E: Engine>(e: &E, y: &On<E>, grad: &On<E>) -> Result<On<E>> {
    unmasked(e, true, y, grad)
}

pub(crate) fn scale_rows<E: Engine>(e: &E, x: &On<E>, scale: &On<E>) -> Result<On<E>> {
    let out = e.empty(x.len())?;
    ops::scale_rows(e.device(), x, scale, &out).map_err(failed)?;
    Ok(out)
}

/// Of the rows and of the scale, where they are wanted.
pub(crate) fn scale_rows_backward<E: Engine>(
    e: &E,
    [x, scale, grad]: [&On<E>; 3],
    [of_rows, of_scale]: [bool; 2],
) -> Result<[Option<On<E>>; 2]> {
    let sums = || {
        let out = e.empty(scale.len())?;
        ops::row_products(e.device(), x, grad, &out).map_err(failed)?;
        Ok(out)
    };
    Ok([when(of_rows, || scale_rows(e, grad, scale))?, when(of_scale, sums)?])
}

/// An operation of one operand `[n, c, h, w]`.
pub(crate) trait Unary {
    fn out_dims(&self, dims: &[usize]) -> Vec<usize>;

    fn forward_on<E: Engine>(&self, e: &E, x: &On<E>, dims: &[usize]) -> Result<On<E>>;

    /// `dims` are the operand's.
    fn backward_on<E: Engine>(&self, e: &E, x: &On<E>, grad: &On<E>, dims: &[usize]) -> Result<On<E>>;
}

impl Unary for MaxPool {
    fn out_dims(&self, dims: &[usize]) -> Vec<usize> {
        vec![dims[0], dims[1], self.out(dims[2]), self.out(dims[3])]
    }

    fn forward_on<E: Engine>(&self, e: &E, x: &On<E>, dims: &[usize]) -> Result<On<E>> {
        let out = self.out_dims(dims);
        let y = e.empty(out.iter().product())?;
        let windows = (self.kernel, self.stride, self.padding);
        ops::max_pool(e.device(), x, planes(dims), windows, &y, (out[2], out[3])).map_err(failed)?;
        Ok(y)
    }

    fn backward_on<E: Engine>(&self, e: &E, x: &On<E>, grad: &On<E>, dims: &[usize]) -> Result<On<E>> {
        let out = self.out_dims(dims);
        let dx = e.empty(x.len())?;
        let pooling = Pooling { kernel: self.kernel, stride: self.stride, padding: self.padding };
        ops::max_pool_backward(e.device(), x, planes(dims), pooling, grad, (out[2], out[3]), &dx).map_err(failed)?;
        Ok(dx)
    }
}

macro_rules! doubling {
    ($type:ty, $how:expr) => {
        impl Unary for $type {
            fn out_dims(&self, dims: &[usize]) -> Vec<usize> {
                vec![dims[0], dims[1], 2 * dims[2], 2 * dims[3]]
            }

            fn forward_on<E: Engine>(&self, e: &E, x: &On<E>, dims: &[usize]) -> Result<On<E>> {
                let y = e.empty(4 * x.len())?;
                ops::double(e.device(), $how, x, planes(dims), &y).map_err(failed)?;
                Ok(y)
            }

            fn backward_on<E: Engine>(&self, e: &E, _: &On<E>, grad: &On<E>, dims: &[usize]) -> Result<On<E>> {
                let dx = e.empty(dims.iter().product())?;
                ops::double_backward(e.device(), $how, grad, planes(dims), &dx).map_err(failed)?;
                Ok(dx)
            }
        }
    };
}

doubling!(Nearest, Doubling::Nearest);
doubling!(Bilinear, Doubling::Bilinear);

/// `[n, c, h, w]` as planes.
fn planes(dims: &[usize]) -> [usize; 3] {
    [dims[0] * dims[1], dims[2], dims[3]]
}

#[cfg(test)]
mod tests;
