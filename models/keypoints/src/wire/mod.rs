//! Versioned messages and the topics they travel on. CBOR with quantised integers is what devices send; JSON of the same types
//! is what people read (`docs/WIRE.md`). Maps have short string keys; unknown keys are skipped, missing optional ones defaulted;
//! codes are append-only.

mod bytes;
mod cbor;
pub mod json;
mod messages;
pub mod topic;

pub use messages::{
    AckMsg, BlockRequest, FACES_BLURRED, FrameHeader, HistogramMsg, LabelKey, LabelMsg, ModelMsg, ONLY_PEOPLE, ReleaseMsg, StatusMsg,
    WireInstance, WireKeypoint,
};

use heapless::String;
use serde::{Deserialize, Serialize};

/// The version of the message formats, and of the topics.
pub const VERSION: u8 = 1;
/// The longest site or device name in bytes.
pub const MAX_ID: usize = 64;
/// The longest topic in bytes.
pub const MAX_TOPIC: usize = 256;
/// The most gaps one acknowledgement names.
pub const MAX_GAPS: usize = 16;
/// Bins of a score histogram over `[0, 1]`.
pub const HISTOGRAM_BINS: usize = 256;

/// The deepest nesting of arrays and maps that a reader accepts, unknown fields included.
pub const MAX_DEPTH: usize = 16;

/// A site, device or channel name: 1 to [`MAX_ID`] of `[A-Za-z0-9._-]`.
pub type Id = String<MAX_ID>;
/// A SHA-256 digest.
pub type Digest = [u8; 32];

/// The encoding of a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encoding {
    /// Quantised CBOR.
    #[default]
    Cbor,
    /// The same types as JSON.
    Json,
}

/// Why a message could not be read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The buffer for the encoded message is too small.
    #[error("the buffer of {0} bytes is too small for the message")]
    Buffer(usize),
    /// Not a message of this type in this encoding, near the byte.
    #[error("not a valid message near byte {0}")]
    Malformed(usize),
    /// A version this code does not know.
    #[error("message version {0} is newer than {VERSION}")]
    Version(u8),
    /// A name is empty, too long, or has a character outside `[A-Za-z0-9._-]`.
    #[error("not a valid site, device or channel name")]
    Id,
}

/// A message that can travel. `encode` writes to a caller's buffer and returns the length; `decode` tells CBOR from JSON by the
/// first byte that is not white space (`{` is JSON). Values nest at most [`MAX_DEPTH`] deep and CBOR lengths are definite.
pub trait Message: Sized + Serialize + for<'de> Deserialize<'de> {
    /// An upper bound of the encoded size in bytes, for static buffers.
    const MAX_BYTES: usize;
    /// The message's version field.
    fn version(&self) -> u8;
    /// Writes the message to `out`.
    ///
    /// # Errors
    /// [`WireError::Buffer`].
    fn encode(&self, encoding: Encoding, out: &mut [u8]) -> Result<usize, WireError> {
        let room = out.len();
        match encoding {
            Encoding::Cbor => minicbor_serde::to_slice(self, out).map_err(|_| WireError::Buffer(room)),
            Encoding::Json => serde_json_core::to_slice(self, out).map_err(|_| WireError::Buffer(room)),
        }
    }
    /// Reads a message; never panics, whatever the bytes.
    ///
    /// # Errors
    /// [`WireError::Malformed`], [`WireError::Version`].
    fn decode(bytes: &[u8]) -> Result<Self, WireError> {
        let json = bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'{');
        let message = if json { json::from_slice::<Self>(bytes) } else { cbor::from_slice::<Self>(bytes) };
        // One match: messages are large, and every copy of one lies on the stack of a microcontroller.
        match message {
            Ok(message) if message.version() > VERSION => Err(WireError::Version(message.version())),
            Ok(message) => Ok(message),
            Err(at) => Err(WireError::Malformed(at)),
        }
    }
}
