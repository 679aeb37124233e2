//! What PromQL expressions read, as far as tests ask: which metrics, chosen by which labels. `promtool` knows the whole language.

use std::collections::BTreeSet;

/// Before the labels of a grouping or a matching.
const GROUPINGS: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Words that name no metric. A function is known by its parenthesis, an aggregation may have its grouping before that.
const WORDS: [&str; 12] = ["and", "or", "unless", "bool", "offset", "sum", "min", "max", "avg", "count", "topk", "inf"];

/// A metric that an expression reads.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Selector {
    /// Its name.
    pub metric: String,
    /// The labels that it is chosen by.
    pub labels: BTreeSet<String>,
}

/// Every metric of an expression.
pub fn selectors(expression: &str) -> BTreeSet<Selector> {
    let mut found = BTreeSet::new();
    let mut rest = expression;
    while let Some(first) = rest.chars().next() {
        if is_name(first) && !first.is_ascii_digit() {
            let (name, after) = split_name(rest);
            let next = after.trim_start();
            rest = after;
            if GROUPINGS.contains(&name) {
                rest = next.strip_prefix('(').and_then(|labels| labels.split_once(')')).map_or(after, |(_, after)| after);
            } else if let Some(matchers) = next.strip_prefix('{') {
                let (labels, after) = split_matchers(matchers);
                found.insert(Selector { metric: name.to_owned(), labels });
                rest = after;
            } else if !next.starts_with('(') && !WORDS.contains(&name) {
                found.insert(Selector { metric: name.to_owned(), labels: BTreeSet::new() });
            }
        } else if first.is_ascii_digit() {
            // 15, 0.95, 1e9.
            rest = rest.trim_start_matches(|c| is_name(c) || c == '.');
        } else if first == '[' {
            rest = rest.split_once(']').map_or("", |(_, after)| after);
        } else if first == '"' {
            rest = after_text(rest);
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    found
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_' || c == ':'
}

fn split_name(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()))
}

/// What comes after the text in quotes that this begins with.
fn after_text(text: &str) -> &str {
    let mut escaped = false;
    for (index, c) in text.char_indices().skip(1) {
        match c {
            '"' if !escaped => return &text[index + 1..],
            _ => escaped = c == '\\' && !escaped,
        }
    }
    ""
}

/// The labels up to the closing brace, and what comes after it.
fn split_matchers(text: &str) -> (BTreeSet<String>, &str) {
    let (mut labels, mut rest) = (BTreeSet::new(), text);
    while let Some(first) = rest.chars().next() {
        if first == '}' {
            return (labels, &rest[1..]);
        } else if first == '"' {
            rest = after_text(rest);
        } else if is_name(first) {
            let (name, after) = split_name(rest);
            labels.insert(name.to_owned());
            rest = after;
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    (labels, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(expression: &str, expected: &[(&str, &[&str])]) {
        let expected = expected.iter().map(|(metric, labels)| Selector {
            metric: (*metric).to_owned(),
            labels: labels.iter().map(|label| (*label).to_owned()).collect(),
        });
        assert_eq!(selectors(expression), expected.collect(), "{expression}");
    }

    #[test]
    fn metrics_are_told_from_functions_words_and_labels() {
        check("up == 0", &[("up", &[])]);
        check("up{job=\"a, b}\", site=~\"$site\"} == 0", &[("up", &["job", "site"])]);
        check("sum by (le, x) (rate(a_bucket{d=~\"\\\"}\"}[5m])) / on (site) b > bool 1.5e3", &[("a_bucket", &["d"]), ("b", &[])]);
        check("time() - a > 600 < 604800 unless b offset 5m", &[("a", &[]), ("b", &[])]);
        check("histogram_quantile(0.95, sum(rate(c[$__rate_interval])) by (le))", &[("c", &[])]);
        check("", &[]);
    }
}
