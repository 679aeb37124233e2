//! The page itself: one document, with its style and its script in it. A browser is told their hashes, and runs nothing else.

use axum::http::header::{self, HeaderValue};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use sha2::{Digest, Sha256};
use std::sync::LazyLock;

const OPENAPI: &str = include_str!("openapi.json");
const STYLE: &str = include_str!("page/style.css");
/// One script, in the order of what needs what.
const SCRIPTS: [&str; 9] = [
    include_str!("page/base.js"),
    include_str!("page/charts.js"),
    include_str!("page/fleet.js"),
    include_str!("page/releases.js"),
    include_str!("page/labels.js"),
    include_str!("page/sheet.js"),
    include_str!("page/review.js"),
    include_str!("page/log.js"),
    include_str!("page/main.js"),
];

static SCRIPT: LazyLock<String> = LazyLock::new(|| SCRIPTS.concat());
static PAGE: LazyLock<String> = LazyLock::new(|| {
    let page = include_str!("page/index.html").replacen("<style></style>", &format!("<style>{STYLE}</style>"), 1);
    page.replacen("<script></script>", &format!("<script>{}</script>", *SCRIPT), 1)
});

/// The page's own script and style, by their hashes, and pictures and answers of its own origin.
pub(super) fn content_security_policy() -> HeaderValue {
    let hash = |text: &str| BASE64.encode(Sha256::digest(text));
    let text = format!(
        "default-src 'none'; script-src 'sha256-{}'; style-src 'sha256-{}'; img-src 'self' data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'; frame-ancestors 'none'",
        hash(&SCRIPT),
        hash(STYLE)
    );
    HeaderValue::try_from(text).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}

/// `GET /`
pub(super) async fn page() -> Response {
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], PAGE.as_str()).into_response()
}

/// `GET /api/v1/openapi.json`
pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::web::routes;
    use std::collections::BTreeSet;

    #[test]
    fn the_page_is_one_document_that_is_let_in_by_its_hashes() {
        for tag in ["script", "style"] {
            assert_eq!((PAGE.matches(&format!("<{tag}>")).count(), PAGE.matches(&format!("</{tag}>")).count()), (1, 1), "one {tag}");
        }
        let policy = content_security_policy();
        let text = policy.to_str().unwrap();
        let script = PAGE.split_once("<script>").unwrap().1.split_once("</script>").unwrap().0;
        assert!(text.contains(&format!("script-src 'sha256-{}'", BASE64.encode(Sha256::digest(script)))), "{text}");
        assert!(!text.contains("unsafe"), "{text}");
        for forbidden in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function", " style=\"", " onclick="]
        {
            assert!(!PAGE.contains(forbidden), "{forbidden}");
        }
        let from_elsewhere = PAGE.replace("http://www.w3.org/2000/svg", "");
        assert!(!from_elsewhere.contains("http://") && !from_elsewhere.contains("https://"), "the page works offline");
    }

    #[test]
    fn the_description_has_the_routes_that_there_are() {
        let description: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let paths = description["paths"].as_object().unwrap();
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, methods)| methods.as_object().unwrap().keys().map(|method| (path.clone(), method.clone())))
            .collect();
        let served: BTreeSet<(String, String)> =
            routes().into_iter().map(|(path, method, _)| (path.to_owned(), method.to_owned())).collect();
        assert_eq!(described, served);
    }
}
