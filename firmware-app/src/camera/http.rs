//! The little of HTTP/1.1 that a camera's stream needs: one GET over a socket whose every read has a deadline, so that a stream that
//! stalls without closing is noticed. (HTTP clients bound the whole response or nothing.)

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

/// The most bytes of status line and headers.
const MAX_HEAD: u64 = 16 * 1024;

/// Where a stream is.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    host: String,
    port: u16,
    path: String,
    authorization: Option<String>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

impl Target {
    /// Reads `http://[user:password@]host[:port]/path`; user and password may be percent-encoded.
    ///
    /// # Errors
    /// What is wrong, and what was expected.
    pub fn parse(url: &str) -> Result<Self, String> {
        let refuse = || Err("is not a URL of the form http://[user:password@]host[:port]/path (HTTPS is not supported)".to_owned());
        let Some(rest) = url.strip_prefix("http://") else { return refuse() };
        if rest.chars().any(|c| c.is_control() || c == ' ') {
            return refuse();
        }
        let (authority, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
        let (user, host) = authority.rsplit_once('@').map_or((None, authority), |(user, host)| (Some(user), host));
        let colon = if host.ends_with(']') { None } else { host.rfind(':') };
        let (host, port) = colon.map_or((host, "80"), |at| (&host[..at], &host[at + 1..]));
        let (Ok(port), false) = (port.parse(), host.is_empty() || port == "0") else { return refuse() };
        let authorization = user.map(|user| format!("Basic {}", BASE64.encode(decoded(user))));
        Ok(Self { host: host.to_owned(), port, path: path.to_owned(), authorization })
    }
}

/// What `%` and two hexadecimal digits stand for; any other `%` stands for itself (URL Standard, "percent-decode").
fn decoded(text: &str) -> Vec<u8> {
    let mut pieces = text.split('%');
    let mut bytes = pieces.next().unwrap_or_default().as_bytes().to_vec();
    for piece in pieces {
        let digits = piece.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.unwrap_or(b'%'));
        bytes.extend_from_slice(&piece.as_bytes()[if byte.is_some() { 2 } else { 0 }..]);
    }
    bytes
}

/// An open response.
pub struct Response {
    /// The `Content-Type` header.
    pub content_type: String,
    body: Body,
}

enum Body {
    Plain(BufReader<TcpStream>),
    Chunked { reader: BufReader<TcpStream>, left: u64, first: bool, end: bool },
}

/// Sends the request and reads the head of the answer. Every read of the response fails after `patience` without a byte.
///
/// # Errors
/// Whatever the network says; a status other than 200, as [`io::ErrorKind::InvalidData`].
pub fn get(target: &Target, patience: Duration) -> io::Result<Response> {
    let host = target.host.trim_matches(['[', ']']);
    let mut last = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
    let mut connected = None;
    for address in (host, target.port).to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, patience) {
            Ok(socket) => {
                connected = Some(socket);
                break;
            }
            Err(error) => last = error,
        }
    }
    let Some(mut socket) = connected else { return Err(last) };
    socket.set_read_timeout(Some(patience))?;
    socket.set_write_timeout(Some(patience))?;
    let authorization = target.authorization.as_ref().map_or(String::new(), |value| format!("Authorization: {value}\r\n"));
    let request = format!(
        "GET {} HTTP/1.1\r\nHost: {}:{}\r\nUser-Agent: omnilabel-edge\r\nAccept: */*\r\n{authorization}Connection: close\r\n\r\n",
        target.path, target.host, target.port
    );
    socket.write_all(request.as_bytes())?;
    let mut reader = BufReader::with_capacity(64 * 1024, socket);
    let mut lines = Vec::new();
    let mut head = (&mut reader).take(MAX_HEAD);
    loop {
        let mut line = Vec::new();
        head.read_until(b'\n', &mut line)?;
        if !line.ends_with(b"\n") {
            return Err(invalid("the answer has no whole HTTP header"));
        }
        let line = String::from_utf8_lossy(&line).trim_end().to_owned();
        if line.is_empty() {
            break;
        }
        lines.push(line);
    }
    let status = lines.first().map_or("", String::as_str);
    if !status.starts_with("HTTP/1.") || status.split(' ').nth(1) != Some("200") {
        return Err(invalid(&format!("the camera answers {status:?}, expected HTTP 200")));
    }
    let header = |name: &str| {
        lines
            .iter()
            .skip(1)
            .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim().eq_ignore_ascii_case(name)))
            .map(|(_, v)| v.trim())
    };
    let content_type = header("content-type").unwrap_or_default().to_owned();
    let chunked = header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
    let body = if chunked { Body::Chunked { reader, left: 0, first: true, end: false } } else { Body::Plain(reader) };
    Ok(Response { content_type, body })
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

impl Read for Response {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (reader, left, first, end) = match &mut self.body {
            Body::Plain(reader) => return reader.read(buffer),
            Body::Chunked { reader, left, first, end } => (reader, left, first, end),
        };
        if *end {
            return Ok(0);
        }
        if *left == 0 {
            // Each chunk but the first follows the line end of the one before.
            let mut line = Vec::new();
            for _ in 0..if *first { 1 } else { 2 } {
                line.clear();
                (&mut *reader).take(1024).read_until(b'\n', &mut line)?;
            }
            *first = false;
            let text = String::from_utf8_lossy(&line);
            let size = text.split(';').next().unwrap_or_default().trim();
            *left = u64::from_str_radix(size, 16).map_err(|_| invalid("the camera sends a chunk without a length"))?;
            if *left == 0 {
                *end = true;
                return Ok(0);
            }
        }
        let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        let count = reader.read(&mut buffer[..most])?;
        *left -= count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read_or_refused() {
        let target = Target::parse("http://admin:pass@cam.local:8080/video?fps=5").unwrap();
        assert_eq!((target.host.as_str(), target.port, target.path.as_str()), ("cam.local", 8080, "/video?fps=5"));
        assert_eq!(target.authorization.as_deref(), Some("Basic YWRtaW46cGFzcw=="));
        assert!(!format!("{target:?}").contains("pass"), "a password does not get into messages");
        let target = Target::parse("http://admin:p%40ss%2Fword@cam.local/").unwrap();
        assert_eq!((target.host.as_str(), target.path.as_str()), ("cam.local", "/"));
        assert_eq!(target.authorization, Some(format!("Basic {}", BASE64.encode("admin:p@ss/word"))));
        assert_eq!(Target::parse("http://[::1]:81").unwrap().port, 81);
        assert_eq!(Target::parse("http://10.0.0.1").unwrap().path, "/");
        for bad in ["https://a/", "rtsp://a/", "http://", "http://:80/", "http://a:x/", "http://a:0/", "http://a b/", "http://a/\r\nX: y"] {
            assert!(Target::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_percent_encoded_is_decoded_and_other_percent_signs_stay() {
        for (text, expect) in [
            ("plain", "plain"),
            ("p%40ss%2fword%3A", "p@ss/word:"),
            ("%C3%A9", "é"),
            ("100%25", "100%"),
            ("%2525", "%25"),
            ("%%41", "%A"),
            ("100%", "100%"),
            ("%4", "%4"),
            ("%+1%-1%zz", "%+1%-1%zz"),
            ("%é%€", "%é%€"),
        ] {
            assert_eq!(decoded(text), expect.as_bytes(), "{text}");
        }
    }
}
