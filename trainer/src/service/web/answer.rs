//! What the page's server answers: JSON, and what was expected where a request is wrong.

use crate::service::store::StoreError;
use axum::body::{Body, Bytes};
use axum::extract::Query;
use axum::extract::rejection::PathRejection;
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

/// How long a request's body may take.
const BODY_TIME: Duration = Duration::from_secs(5);

/// The part of a path between braces, or why there is none.
pub(super) type Named = Result<axum::extract::Path<String>, PathRejection>;

/// A request that is not answered as it was asked.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Failure {
    status: StatusCode,
    message: String,
    retry_secs: Option<u64>,
}

impl Failure {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_secs: None }
    }

    /// A parameter that cannot be.
    pub(super) fn parameter(name: &str, found: &str, expected: &str) -> Self {
        let found: String = found.chars().take(80).collect();
        Self::new(StatusCode::BAD_REQUEST, format!("`{name}` is {found:?}, expected {expected}"))
    }

    /// Come again after `wait`.
    pub(super) fn later(wait: Duration) -> Self {
        let secs = wait.as_secs() + 1;
        let message = format!("too many wrong tokens from this address, expected the next in {secs} s");
        Self { status: StatusCode::TOO_MANY_REQUESTS, message, retry_secs: Some(secs) }
    }

    /// Whether it only says to come again.
    pub(super) const fn is_later(&self) -> bool {
        self.retry_secs.is_some()
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        tracing::error!("the page: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "the store cannot be read or written, see the centre's log")
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let mut response = json(&json!({ "error": self.message }));
        *response.status_mut() = self.status;
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if let Some(secs) = self.retry_secs {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(secs));
        }
        response
    }
}

/// An answer in JSON.
pub(super) fn json(value: &Value) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// A body of JSON, of at most `most` bytes.
pub(super) async fn body(headers: &HeaderMap, body: Body, most: usize) -> Result<Bytes, Failure> {
    // Which a form of another site cannot send.
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()?.split(';').next()).unwrap_or_default();
    if !kind.trim().eq_ignore_ascii_case("application/json") {
        return Err(Failure::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "a body of type application/json is expected"));
    }
    tokio::time::timeout(BODY_TIME, axum::body::to_bytes(body, most))
        .await
        .map_err(|_| Failure::new(StatusCode::REQUEST_TIMEOUT, "the body is expected at once"))?
        .map_err(|_| Failure::new(StatusCode::PAYLOAD_TOO_LARGE, format!("a body of at most {most} bytes is expected")))
}

/// A number of the wire, which is coarser than its digits in binary.
pub(super) fn short(value: f32) -> f64 {
    (f64::from(value) * 10_000.0).round() / 10_000.0
}

/// A number in a path, from 0 on.
pub(super) fn numbered(name: &str, path: &Named) -> Result<u64, Failure> {
    let text = path.as_ref().map_or("", |path| path.0.as_str());
    // Such as the store keeps it.
    let number = text.parse::<u64>().ok().filter(|number| i64::try_from(*number).is_ok());
    number.ok_or_else(|| Failure::parameter(name, text, "a number from 0 on"))
}

/// The parameters after a path's `?`: known ones, each once.
#[derive(Debug)]
pub(super) struct Params(Vec<(String, String)>);

impl Params {
    pub(super) fn read(uri: &Uri, known: &[&str]) -> Result<Self, Failure> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|error| Failure::new(StatusCode::BAD_REQUEST, format!("the parameters cannot be read: {error}")))?;
        for (index, (name, value)) in pairs.iter().enumerate() {
            if !known.contains(&name.as_str()) {
                let expected = if known.is_empty() { "no parameters".to_owned() } else { format!("one of {}", known.join(", ")) };
                return Err(Failure::parameter(&name.chars().take(40).collect::<String>(), value, &expected));
            }
            if pairs[..index].iter().any(|(other, _)| other == name) {
                return Err(Failure::parameter(name, value, "each parameter once"));
            }
        }
        Ok(Self(pairs))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// A number in `range`; one that is not a number is in none.
    pub(super) fn number<T>(&self, name: &str, range: RangeInclusive<T>, expected: &str) -> Result<Option<T>, Failure>
    where
        T: FromStr + PartialOrd,
    {
        let Some(text) = self.text(name) else { return Ok(None) };
        let number = text.parse::<T>().ok().filter(|number| range.contains(number));
        number.map(Some).ok_or_else(|| Failure::parameter(name, text, expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(query: &str) -> Result<Params, Failure> {
        Params::read(&format!("/api?{query}").parse().unwrap(), &["device", "min_score"])
    }

    #[test]
    fn parameters_are_known_ones_each_once() {
        let params = read("device=cam-1&min_score=0.5").unwrap();
        assert_eq!((params.text("device"), params.text("before")), (Some("cam-1"), None));
        assert_eq!(params.number("min_score", 0.0..=1.0_f32, "0 to 1").unwrap(), Some(0.5));
        assert_eq!(params.number("before", 1..=9_i64, "a number").unwrap(), None);
        assert_eq!(read("device=a%26b").unwrap().text("device"), Some("a&b"));
        assert!(read("").is_ok());
        for (query, expected) in [("devise=cam-1", "`devise`"), ("device=a&device=b", "each parameter once")] {
            assert!(read(query).unwrap_err().message().contains(expected), "{query}");
        }
        for value in ["2", "nan", "", "-0.1", "x"] {
            let refused = read(&format!("min_score={value}")).unwrap().number("min_score", 0.0..=1.0_f32, "0 to 1").unwrap_err();
            assert_eq!(refused.message(), format!("`min_score` is {value:?}, expected 0 to 1"));
        }
    }
}
