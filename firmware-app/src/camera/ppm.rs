//! Binary PPM pictures (`P6`, 8 bits a channel) one behind the other: what GStreamer's `pnmenc` writes.

use omnilabel_detect::frame::{Frame, MAX_FRAME_SIDE};
use omnilabel_keypoints::geometry::Size;
use std::io::{self, BufRead, Read};

/// The longest header: three numbers, with white space and comments between them.
const MAX_HEADER: usize = 1024;

/// Why there is no next picture.
#[derive(Debug, thiserror::Error)]
pub enum PpmError {
    /// The stream failed, or ended within a picture.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// Not such a picture, or a larger one than frames may be.
    #[error("{0}")]
    Format(String),
}

/// The next picture; none at the end of the stream.
///
/// # Errors
/// See [`PpmError`]. Afterwards it is not known where the next picture begins.
pub fn read(stream: &mut impl BufRead) -> Result<Option<Frame>, PpmError> {
    if stream.fill_buf()?.is_empty() {
        return Ok(None);
    }
    let mut header = Header { stream, left: MAX_HEADER };
    let magic = [header.byte()?, header.byte()?];
    if magic != *b"P6" {
        return Err(PpmError::Format(format!("expected a binary PPM picture, found bytes {magic:02x?}")));
    }
    let [width, height, most] = [header.number()?, header.number()?, header.number()?];
    let sides = 1..=MAX_FRAME_SIDE;
    if !sides.contains(&width) || !sides.contains(&height) || most != 255 {
        let found = format!("{width} × {height} px with values up to {most}");
        return Err(PpmError::Format(format!("a frame of {found}, expected 1 to {MAX_FRAME_SIDE} px a side and 255")));
    }
    let mut rgb = vec![0; 3 * width as usize * height as usize];
    stream.read_exact(&mut rgb)?;
    Ok(Some(Frame { size: Size { width, height }, rgb }))
}

struct Header<'s, S> {
    stream: &'s mut S,
    left: usize,
}

impl<S: Read> Header<'_, S> {
    fn byte(&mut self) -> Result<u8, PpmError> {
        self.left = self.left.checked_sub(1).ok_or_else(|| PpmError::Format("the header of a picture does not end".to_owned()))?;
        let mut byte = [0];
        self.stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    /// A number, and the one byte of white space behind it.
    fn number(&mut self) -> Result<u32, PpmError> {
        let mut digits = String::new();
        loop {
            match self.byte()? {
                b'#' => while self.byte()? != b'\n' {},
                digit if digit.is_ascii_digit() && digits.len() < 9 => digits.push(char::from(digit)),
                space if space.is_ascii_whitespace() && digits.is_empty() => {}
                space if space.is_ascii_whitespace() => break,
                other => return Err(PpmError::Format(format!("expected a number in the header of a picture, found byte {other:#04x}"))),
            }
        }
        digits.parse().map_err(|_| PpmError::Format(format!("{digits:?} is no number of a picture's header")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_are_read_one_by_one_and_what_is_none_is_refused() {
        let bytes = [b"P6\n2 1\n255\n123456".as_slice(), b"P6 # a comment 9\n1\t2 255 abcdef"].concat();
        let mut stream = bytes.as_slice();
        let first = read(&mut stream).unwrap().unwrap();
        assert_eq!((first.size.width, first.size.height, first.rgb.as_slice()), (2, 1, b"123456".as_slice()));
        let second = read(&mut stream).unwrap().unwrap();
        assert_eq!((second.size.width, second.size.height, second.rgb.as_slice()), (1, 2, b"abcdef".as_slice()));
        assert!(read(&mut stream).unwrap().is_none());
        let check = |bytes: &[u8], expect: &str| {
            let said = read(&mut &*bytes).unwrap_err().to_string();
            assert!(said.contains(expect), "{said} does not say {expect}");
        };
        check(b"\xff\xd8\xff", "PPM");
        check(b"P6 9000 1 255 ", "9000 × 1");
        check(b"P6 0 1 255 ", "0 × 1");
        check(b"P6 1 1 65535 ", "65535");
        check(b"P6 -1 1 255 ", "0x2d");
        check(b"P6 99999999999 1 255 ", "number");
        check(b"P6 2 1 255\n12345", "fill whole buffer");
        check(&[b"P6 ".as_slice(), &[b' '; 2000]].concat(), "does not end");
    }
}
