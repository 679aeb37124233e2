//! `multipart/x-mixed-replace` as cameras really send it, pushed in as bytes, pulled out as parts. It trusts no length and no line.

/// The most bytes of a part's header lines.
const MAX_HEADER: usize = 8 * 1024;

/// Why a part is skipped; the stream goes on at the next boundary.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PartError {
    /// More bytes than allowed.
    #[error("a part of more than {0} bytes")]
    TooLarge(usize),
    /// Header lines without an end.
    #[error("a part with more than {MAX_HEADER} bytes of header lines")]
    Header,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Skipping to the next boundary.
    Seek,
    /// After a boundary: header lines to an empty one.
    Header,
    /// The body, with its length if the header gives one.
    Body(Option<usize>),
}

/// The parser. What it holds never exceeds the part limit by more than one push.
#[derive(Debug)]
pub struct Multipart {
    delimiter: Vec<u8>,
    limit: usize,
    buffer: Vec<u8>,
    /// Up to where `buffer` was searched for the delimiter.
    searched: usize,
    state: State,
    end: bool,
}

/// The boundary of a `Content-Type` header; `None` when it is not multipart or names none.
pub fn boundary(content_type: &str) -> Option<&str> {
    let mut fields = content_type.split(';');
    if !fields.next()?.trim().to_ascii_lowercase().starts_with("multipart/") {
        return None;
    }
    let value = fields.find_map(|field| {
        let (name, value) = field.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"'))
    })?;
    // Some cameras name the boundary with the dashes that stand before it in the stream.
    let value = value.trim_start_matches("--");
    (!value.is_empty() && value.len() <= 200).then_some(value)
}

fn find(haystack: &[u8], needle: &[u8], from: usize) -> Option<usize> {
    haystack.get(from..)?.windows(needle.len()).position(|window| window == needle).map(|at| from + at)
}

impl Multipart {
    /// Parts between `--boundary` lines, none larger than `limit` bytes.
    pub fn new(boundary: &str, limit: usize) -> Self {
        Self { delimiter: format!("--{boundary}").into_bytes(), limit, buffer: Vec::new(), searched: 0, state: State::Seek, end: false }
    }

    /// Takes bytes of the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// Whether the closing boundary came.
    pub fn is_at_end(&self) -> bool {
        self.end
    }

    /// The next part's body, `None` when more bytes are needed.
    pub fn next_part(&mut self) -> Option<Result<Vec<u8>, PartError>> {
        while !self.end {
            match self.state {
                State::Seek => {
                    let Some(at) = self.search() else {
                        // The delimiter may have begun in the last bytes.
                        let keep = self.buffer.len().min(self.delimiter.len() - 1);
                        self.drop_first(self.buffer.len() - keep);
                        return None;
                    };
                    self.drop_first(at + self.delimiter.len());
                    self.state = State::Header;
                }
                State::Header => {
                    if self.buffer.len() < 2 {
                        return None;
                    }
                    if self.buffer.starts_with(b"--") {
                        self.end = true;
                        return None;
                    }
                    let (end, length) = match (find(&self.buffer, b"\r\n\r\n", 0), find(&self.buffer, b"\n\n", 0)) {
                        (Some(crlf), Some(lf)) if lf < crlf => (lf, 2),
                        (Some(crlf), _) => (crlf, 4),
                        (None, Some(lf)) => (lf, 2),
                        (None, None) if self.buffer.len() > MAX_HEADER => return Some(Err(self.skip(PartError::Header))),
                        (None, None) => return None,
                    };
                    if end > MAX_HEADER {
                        return Some(Err(self.skip(PartError::Header)));
                    }
                    let announced = content_length(&self.buffer[..end]);
                    self.drop_first(end + length);
                    if announced.is_some_and(|bytes| bytes > self.limit) {
                        return Some(Err(self.skip(PartError::TooLarge(self.limit))));
                    }
                    self.state = State::Body(announced);
                }
                State::Body(Some(length)) => {
                    if self.buffer.len() < length {
                        return None;
                    }
                    let part = self.buffer[..length].to_vec();
                    self.drop_first(length);
                    self.state = State::Seek;
                    return Some(Ok(part));
                }
                State::Body(None) => match self.search() {
                    Some(at) => {
                        let body = &self.buffer[..at];
                        let body = body.strip_suffix(b"\r\n").or_else(|| body.strip_suffix(b"\n")).unwrap_or(body);
                        if body.len() > self.limit {
                            return Some(Err(self.skip(PartError::TooLarge(self.limit))));
                        }
                        let part = body.to_vec();
                        self.drop_first(at + self.delimiter.len());
                        self.state = State::Header;
                        return Some(Ok(part));
                    }
                    None if self.buffer.len() > self.limit + self.delimiter.len() + 2 => {
                        return Some(Err(self.skip(PartError::TooLarge(self.limit))));
                    }
                    None => return None,
                },
            }
        }
        None
    }

    fn skip(&mut self, error: PartError) -> PartError {
        self.state = State::Seek;
        self.searched = 0;
        error
    }

    fn search(&mut self) -> Option<usize> {
        let found = find(&self.buffer, &self.delimiter, self.searched);
        self.searched = self.buffer.len().saturating_sub(self.delimiter.len() - 1);
        found
    }

    fn drop_first(&mut self, count: usize) {
        self.buffer.drain(..count);
        self.searched = 0;
    }
}

fn content_length(header: &[u8]) -> Option<usize> {
    String::from_utf8_lossy(header).lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim().eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parts(stream: &[u8], chunk: usize, limit: usize) -> Vec<Result<Vec<u8>, PartError>> {
        let mut parser = Multipart::new("B", limit);
        let mut list = Vec::new();
        for bytes in stream.chunks(chunk.max(1)) {
            parser.push(bytes);
            while let Some(part) = parser.next_part() {
                list.push(part);
            }
            assert!(parser.buffer.len() <= limit + MAX_HEADER + chunk + 64, "the parser holds {} bytes", parser.buffer.len());
        }
        list
    }

    fn check(stream: &str, expect: &[&str]) {
        for chunk in [1, 2, 3, 7, 1000] {
            let found: Vec<_> = parts(stream.as_bytes(), chunk, 64)
                .into_iter()
                .map(|part| part.map_or_else(|error| format!("({error})"), |bytes| String::from_utf8(bytes).unwrap()))
                .collect();
            assert_eq!(found, expect, "in pieces of {chunk}");
        }
    }

    #[test]
    fn parts_come_out_however_the_camera_writes_them() {
        check("--B\r\nContent-Length: 3\r\n\r\nabc\r\n--B\r\ncontent-length:2\r\n\r\nde\r\n--B--", &["abc", "de"]);
        check("--B\r\nContent-Type: image/jpeg\r\n\r\nabc\r\n--B\r\n\r\nd\ne\r\n--B--\r\n", &["abc", "d\ne"]);
        check("--B\nX: y\n\nabc\n--B\nX: y\n\nde\n--B\n", &["abc", "de"]);
        check("noise\r\n--B\r\nContent-Length: 5\r\n\r\n--B-x\r\n--B\r\n\r\nok\r\n--B", &["--B-x", "ok"]);
    }

    #[test]
    fn what_is_too_large_is_told_and_the_stream_goes_on() {
        let long = "x".repeat(100);
        let large = "(a part of more than 64 bytes)";
        check(&format!("--B\r\n\r\n{long}\r\n--B\r\n\r\nok\r\n--B"), &[large, "ok"]);
        check(&format!("--B\r\nContent-Length: 100\r\n\r\n{long}\r\n--B\r\n\r\nok\r\n--B"), &[large, "ok"]);
        check("--B\r\nContent-Length: 99999999999999999999999\r\n\r\nabc\r\n--B\r\n\r\nok\r\n--B", &["abc", "ok"]);
        let header = "h".repeat(MAX_HEADER + 10);
        let header_error = format!("({})", PartError::Header);
        check(&format!("--B\r\n{header}\r\n\r\nabc\r\n--B\r\n\r\nok\r\n--B"), &[&header_error, "ok"]);
    }

    #[test]
    fn a_wrong_length_costs_a_part_and_not_the_stream() {
        check("--B\r\nContent-Length: 1\r\n\r\nabc\r\n--B\r\nContent-Length: 2\r\n\r\nde\r\n--B", &["a", "de"]);
        // A length that reaches into the next part swallows it.
        check("--B\r\nContent-Length: 12\r\n\r\nabc\r\n--B\r\n\r\nde\r\n--B\r\n\r\nfg\r\n--B", &["abc\r\n--B\r\n\r\n", "fg"]);
    }

    #[test]
    fn boundaries_are_read_from_the_content_type() {
        for (header, expect) in [
            ("multipart/x-mixed-replace; boundary=frame", Some("frame")),
            ("multipart/x-mixed-replace;boundary=\"--my frame\"", Some("my frame")),
            ("Multipart/Mixed; charset=x; BOUNDARY=--b", Some("b")),
            ("image/jpeg; boundary=b", None),
            ("multipart/x-mixed-replace; boundary=--", None),
            ("multipart/x-mixed-replace", None),
        ] {
            assert_eq!(boundary(header), expect, "{header}");
        }
    }

    proptest! {
        /// Whatever the bytes and however they are cut, it ends, holds little, and cuts do not matter.
        #[test]
        fn hostile_bytes_neither_panic_nor_grow(
            pieces in prop::collection::vec(prop_oneof![
                Just(b"--B".to_vec()), Just(b"--B\r\n\r\n".to_vec()), Just(b"\r\nContent-Length: 7\r\n\r\n".to_vec()), Just(b"--".to_vec()),
                prop::collection::vec(any::<u8>(), 0..90),
            ], 0..40),
            chunk in 1..50_usize,
        ) {
            let stream = pieces.concat();
            let cut = parts(&stream, chunk, 64);
            for part in cut.iter().flatten() {
                prop_assert!(part.len() <= 64);
            }
        }
    }
}
