//! Frames: decoding, encoding and the image transform.

use image::codecs::{jpeg::JpegEncoder, png::PngEncoder};
use image::{ExtendedColorType, ImageEncoder, ImageFormat, ImageReader, Limits};
use omnilabel_bundle::InputSpec;
use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::view::{View, ViewGeometry};
use rayon::prelude::*;
use std::io::{Cursor, Read};
use std::path::Path;

/// An RGB frame, 8 bits per channel, row-major, as the file stores it (EXIF orientation is ignored, as COCO's tools do).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Size in pixels.
    pub size: Size,
    /// `3 · width · height` bytes.
    pub rgb: Vec<u8>,
}

/// The longest side of a frame that is decoded, px.
pub const MAX_FRAME_SIDE: u32 = 8192;
/// The largest picture file that is read, bytes.
pub const MAX_FRAME_BYTES: u64 = 128 << 20;

/// The most memory that decoding may take, bytes.
const MAX_DECODE_BYTES: u64 = 512 << 20;

/// Why a picture could not be read.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// Not a JPEG or PNG that can be decoded as a whole, or larger than [`MAX_FRAME_SIDE`].
    #[error("{name}: {message}")]
    Decode {
        /// File or stream.
        name: String,
        /// What is wrong.
        message: String,
    },
}

impl Frame {
    /// Decodes a JPEG or PNG. `name` is only for errors.
    ///
    /// # Errors
    /// [`FrameError::Decode`].
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self, FrameError> {
        let refuse = |message: String| FrameError::Decode { name: name.to_owned(), message };
        let format = match image::guess_format(bytes) {
            Ok(format @ (ImageFormat::Jpeg | ImageFormat::Png)) => format,
            Ok(other) => return Err(refuse(format!("expected a JPEG or PNG, found {other:?}"))),
            Err(_) => return Err(refuse(format!("expected a JPEG or PNG, found {} bytes of something else", bytes.len()))),
        };
        let mut limits = Limits::default();
        limits.max_image_width = Some(MAX_FRAME_SIDE);
        limits.max_image_height = Some(MAX_FRAME_SIDE);
        limits.max_alloc = Some(MAX_DECODE_BYTES);
        let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
        reader.limits(limits);
        let picture = reader.decode().map_err(|e| refuse(e.to_string()))?.into_rgb8();
        // The decoder fills what is missing with grey; such a picture would be labelled and trained on.
        if format == ImageFormat::Jpeg && !has_end_of_image(bytes) {
            return Err(refuse(format!("the JPEG is cut off: its {} bytes have no end-of-image marker", bytes.len())));
        }
        let size = Size { width: picture.width(), height: picture.height() };
        if size.width == 0 || size.height == 0 {
            return Err(refuse("the picture is empty".to_owned()));
        }
        Ok(Self { size, rgb: picture.into_raw() })
    }

    /// Reads and decodes a file.
    ///
    /// # Errors
    /// See [`FrameError`].
    pub fn open(path: &Path) -> Result<Self, FrameError> {
        let io = |source| FrameError::Io { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        std::fs::File::open(path).map_err(io)?.take(MAX_FRAME_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
        let name = path.display().to_string();
        if bytes.len() as u64 > MAX_FRAME_BYTES {
            return Err(FrameError::Decode { name, message: format!("larger than {MAX_FRAME_BYTES} bytes") });
        }
        Self::decode(&name, &bytes)
    }

    /// Encodes as JPEG of `quality` 1 to 100.
    ///
    /// # Panics
    /// When `rgb` has another length than `size` says, or a side is 0 or over 65,535: no decoder makes such a frame.
    pub fn to_jpeg(&self, quality: u8) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(JpegEncoder::new_with_quality(&mut bytes, quality.clamp(1, 100)));
        bytes
    }

    /// Encodes as PNG, without loss.
    ///
    /// # Panics
    /// As [`Frame::to_jpeg`].
    pub fn to_png(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.encode(PngEncoder::new(&mut bytes));
        bytes
    }

    fn encode(&self, encoder: impl ImageEncoder) {
        let Size { width, height } = self.size;
        if let Err(e) = encoder.write_image(&self.rgb, width, height, ExtendedColorType::Rgb8) {
            panic!("a frame of {width} x {height} px with {} bytes cannot be encoded: {e}", self.rgb.len());
        }
    }
}

/// Whether the JPEG's segments and entropy-coded data lead to its EOI marker (T.81 §B.1.1); what follows it does not matter.
fn has_end_of_image(mut bytes: &[u8]) -> bool {
    const EOI: u8 = 0xd9;
    while let Some(at) = bytes.windows(2).position(|pair| pair[0] == 0xff && pair[1] != 0xff) {
        let marker = bytes[at + 1];
        bytes = &bytes[at + 2..];
        match (marker, bytes) {
            (EOI, _) => return true,
            // A stuffed 0xff, and the markers without a segment: TEM, RSTn, SOI.
            (0x00 | 0x01 | 0xd0..=0xd8, _) => {}
            (_, [high, low, ..]) => bytes = bytes.get(usize::from(u16::from_be_bytes([*high, *low]))..).unwrap_or_default(),
            _ => return false,
        }
    }
    false
}

/// A frame as the network sees it.
#[derive(Clone, Debug)]
pub struct NetImage {
    /// `[3, rows, columns]`, normalised, zero-padded.
    pub data: Vec<f32>,
    /// Padded rows.
    pub rows: usize,
    /// Padded columns.
    pub columns: usize,
    /// How coordinates map.
    pub geometry: ViewGeometry,
}

impl NetImage {
    /// The mirror image: what [`transform`] makes of the view mirrored, to the bit.
    #[must_use]
    pub fn mirrored(&self) -> Self {
        let (geometry, width) = (self.geometry.mirror(), self.geometry.net().width as usize);
        let mut data = self.data.clone();
        data.chunks_exact_mut(self.columns.max(1)).for_each(|row| row[..width].reverse());
        Self { data, geometry, ..*self }
    }
}

/// Rows and columns of the network's input for a view of size `net`.
pub fn padded(net: Size, input: &InputSpec) -> (usize, usize) {
    let padded = |side: u32| side.max(1).next_multiple_of(input.size_divisor.max(1)) as usize;
    (padded(net.height), padded(net.width))
}

/// Resizes, mirrors, normalises and pads (see [`InputSpec`]). Multi-threaded (rayon).
///
/// The resize is `torch.nn.functional.interpolate(mode="bilinear", align_corners=False)` to the view's size, as torchvision's
/// `GeneralizedRCNNTransform` does it.
pub fn transform(frame: &Frame, input: &InputSpec, view: View) -> NetImage {
    let geometry = ViewGeometry::new(frame.size, view, input.max_long_side);
    let net = geometry.net();
    let (rows, columns) = padded(net, input);
    let mut data = vec![0.0; 3 * rows * columns];
    let mut x_taps = taps(frame.size.width, net.width);
    if view.flip {
        x_taps.reverse();
    }
    let y_taps = taps(frame.size.height, net.height);
    let stride = 3 * frame.size.width as usize;
    let gain: [f32; 3] = std::array::from_fn(|c| 1.0 / (255.0 * input.std[c]));
    let bias: [f32; 3] = std::array::from_fn(|c| input.mean[c] / input.std[c]);
    let channels: [usize; 3] = std::array::from_fn(|c| input.channels.rgb_index(c));
    let (first, rest) = data.split_at_mut(rows * columns);
    let (second, third) = rest.split_at_mut(rows * columns);
    first.par_chunks_mut(columns).zip(second.par_chunks_mut(columns)).zip(third.par_chunks_mut(columns)).zip(&y_taps).for_each(
        |(((first, second), third), &(low, high, fraction))| {
            let (above, below) = (&frame.rgb[low * stride..][..stride], &frame.rgb[high * stride..][..stride]);
            for (column, &(left, right, across)) in x_taps.iter().enumerate() {
                for (c, plane) in [&mut *first, &mut *second, &mut *third].into_iter().enumerate() {
                    let at = channels[c];
                    let mix = |row: &[u8]| f32::from(row[3 * left + at]) * (1.0 - across) + f32::from(row[3 * right + at]) * across;
                    plane[column] = (mix(above) * (1.0 - fraction) + mix(below) * fraction) * gain[c] - bias[c];
                }
            }
        },
    );
    NetImage { data, rows, columns, geometry }
}

/// PyTorch's source pixels of each of `target` pixels: (low, high, weight of high).
fn taps(source: u32, target: u32) -> Vec<(usize, usize, f32)> {
    let ratio = source as f32 / target as f32;
    (0..target)
        .map(|i| {
            let at = (ratio * (i as f32 + 0.5) - 0.5).max(0.0);
            let low = (at as u32).min(source - 1);
            let high = (low + 1).min(source - 1);
            (low as usize, high as usize, (at - low as f32).clamp(0.0, 1.0))
        })
        .collect()
}
