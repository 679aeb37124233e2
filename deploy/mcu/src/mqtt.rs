//! What of MQTT 5 (OASIS, 2019) a subscriber reads. Knows nothing of labels.

use semihosting::io::Read;

/// Why nothing more comes over a link.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    /// No byte came.
    #[error("the other side ended it")]
    Closed,
    /// A client that names its buffer's size as Maximum Packet Size (§3.1.2.11.4) is not sent this.
    #[error("a packet of {0} bytes is too large")]
    Large(usize),
    /// A packet breaks the format.
    #[error("a packet is malformed")]
    Malformed,
}

/// A variable byte integer (§1.5.5): at most four bytes of seven bits, the lowest first.
fn integer(mut byte: impl FnMut() -> Result<u8, End>) -> Result<usize, End> {
    let mut value = 0;
    for shift in [0, 7, 14, 21] {
        let next = byte()?;
        value |= usize::from(next & 0x7f) << shift;
        if next < 0x80 {
            return Ok(value);
        }
    }
    Err(End::Malformed)
}

/// Reads one packet (§2.1) into `buffer`: topic and payload of a PUBLISH, `None` for the other kinds.
pub(crate) fn receive<'b>(link: &mut impl Read, buffer: &'b mut [u8]) -> Result<Option<(&'b str, &'b [u8])>, End> {
    let mut byte = || {
        let mut byte = [0];
        link.read_exact(&mut byte).map(|()| byte[0]).map_err(|_| End::Closed)
    };
    let first = byte()?;
    let length = integer(byte)?;
    let body = buffer.get_mut(..length).ok_or(End::Large(length))?;
    link.read_exact(body).map_err(|_| End::Closed)?;
    if first >> 4 == 3 { publish(first, body).map(Some) } else { Ok(None) }
}

/// Topic and payload of a PUBLISH (§3.3).
fn publish(first: u8, body: &[u8]) -> Result<(&str, &[u8]), End> {
    let (length, rest) = body.split_first_chunk().ok_or(End::Malformed)?;
    let (topic, rest) = rest.split_at_checked(u16::from_be_bytes(*length).into()).ok_or(End::Malformed)?;
    // A packet identifier follows unless the quality of service is 0.
    let identifier = if first & 0b110 == 0 { 0 } else { 2 };
    let mut rest = rest.get(identifier..).ok_or(End::Malformed)?.iter();
    let properties = integer(|| rest.next().copied().ok_or(End::Malformed))?;
    let payload = rest.as_slice().get(properties..).ok_or(End::Malformed)?;
    Ok((str::from_utf8(topic).map_err(|_| End::Malformed)?, payload))
}
