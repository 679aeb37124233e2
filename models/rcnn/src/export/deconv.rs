//! A transposed convolution (k 4, s 2, p 1) as a 3×3 convolution and a pixel shuffle.
//!
//! Output row `2y + a` (`a` is 0 or 1) takes input row `y + d` with kernel row `a + 1 − 2d`, which lies in 0…3 for `d` in −1…0
//! when `a` is 0, and in 0…1 when `a` is 1; columns alike. So each of the four outputs of a cell is a 3×3 convolution with five
//! zeros, and channel `4k + 2a + b` of it goes to keypoint `k` at `(2y + a, 2x + b)` (ONNX DepthToSpace, mode CRD).

use candle_core::{Device, Result, Tensor};

/// Side of the transposed kernel, and of the convolution's.
const FROM: usize = 4;
const TO: usize = 3;

/// `(kernel tap, sub-pixel, convolution tap)` along one axis.
const TAPS: [(usize, usize, usize); 4] = [(3, 0, 0), (1, 0, 1), (2, 1, 1), (0, 1, 2)];

/// Every element's `(index in [c, k, 4, 4], index in [4k, c, 3, 3])`.
fn pairs(c: usize, k: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..c).flat_map(move |ci| {
        (0..k).flat_map(move |ki| {
            TAPS.iter().flat_map(move |&(ky, a, dy)| {
                TAPS.iter().map(move |&(kx, b, dx)| {
                    let from = ((ci * k + ki) * FROM + ky) * FROM + kx;
                    let to = (((4 * ki + 2 * a + b) * c + ci) * TO + dy) * TO + dx;
                    (from, to)
                })
            })
        })
    })
}

/// Weight `[c, k, 4, 4]` and bias `[k]` → weight `[4k, c, 3, 3]` and bias `[4k]`.
pub(crate) fn shuffled(weight: &Tensor, bias: &Tensor) -> Result<(Tensor, Tensor)> {
    let (c, k, ..) = weight.dims4()?;
    let source: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    let mut target = vec![0f32; 4 * k * c * TO * TO];
    pairs(c, k).for_each(|(from, to)| target[to] = source[from]);
    let bias: Vec<f32> = bias.to_vec1::<f32>()?.into_iter().flat_map(|b| [b; 4]).collect();
    Ok((Tensor::from_vec(target, (4 * k, c, TO, TO), &Device::Cpu)?, Tensor::from_vec(bias, 4 * k, &Device::Cpu)?))
}

/// The inverse of [`shuffled`].
pub(crate) fn unshuffled(weight: &Tensor, bias: &Tensor) -> Result<(Tensor, Tensor)> {
    let (channels, c, ..) = weight.dims4()?;
    let k = channels / 4;
    let source: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    let mut target = vec![0f32; c * k * FROM * FROM];
    pairs(c, k).for_each(|(from, to)| target[from] = source[to]);
    let bias: Vec<f32> = bias.to_vec1::<f32>()?.into_iter().step_by(4).collect();
    Ok((Tensor::from_vec(target, (c, k, FROM, FROM), &Device::Cpu)?, Tensor::from_vec(bias, k, &Device::Cpu)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::{ConvSpec, conv_transpose2d, conv2d};

    #[test]
    fn the_convolution_and_the_shuffle_are_the_transposed_convolution() {
        let random = |shape: &[usize]| Tensor::rand(-1f32, 1.0, shape, &Device::Cpu).unwrap();
        let (c, k, h, w) = (3, 2, 4, 5);
        let (x, weight, bias) = (random(&[2, c, h, w]), random(&[c, k, 4, 4]), random(&[k]));
        let expected = conv_transpose2d(&x, &weight, Some(&bias), ConvSpec { stride: 2, ..ConvSpec::padded(1) }).unwrap();
        let (conv, conv_bias) = shuffled(&weight, &bias).unwrap();
        let y = conv2d(&x, &conv, Some(&conv_bias), ConvSpec::padded(1)).unwrap();
        let y = y.reshape(&[2, k, 2, 2, h, w][..]).unwrap().permute(vec![0, 1, 4, 2, 5, 3]).unwrap().reshape((2, k, 2 * h, 2 * w)).unwrap();
        let worst = y.sub(&expected).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
        // Sums of 12 products of values below 1.
        assert!(worst < 1e-5, "{worst}");
        let (back, back_bias) = unshuffled(&conv, &conv_bias).unwrap();
        let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!((values(&back), values(&back_bias)), (values(&weight), values(&bias)));
    }
}
