//! Where two configurations differ, for people.

use serde_json::Value;

/// How many differences are told.
const TOLD: usize = 5;

/// The options that differ, each as `options.lr: 0.002, the folder has 0.001`; `None` when none does.
pub(super) fn told(ours: &Value, theirs: &Value) -> Option<String> {
    let mut found = Vec::new();
    collect(&mut String::new(), ours, theirs, &mut found);
    let more = found.len().saturating_sub(TOLD);
    found.truncate(TOLD);
    let more = if more > 0 { format!("; and {more} more") } else { String::new() };
    (!found.is_empty()).then(|| found.join("; ") + &more)
}

fn collect(path: &mut String, ours: &Value, theirs: &Value, found: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(a), Value::Object(b)) => {
            let only_theirs = b.keys().filter(|key| !a.contains_key(*key));
            for key in a.keys().chain(only_theirs) {
                let length = path.len();
                if length > 0 {
                    path.push('.');
                }
                path.push_str(key);
                collect(path, &ours[key], &theirs[key], found);
                path.truncate(length);
            }
        }
        _ if ours == theirs => {}
        // Also for what one side does not know, an older version's folder for example.
        _ => found.push(format!("{path}: {}, the folder has {}", value(ours), value(theirs))),
    }
}

fn value(value: &Value) -> String {
    if value.is_null() { "none".to_owned() } else { value.to_string() }
}

#[cfg(test)]
mod tests {
    use super::told;
    use serde_json::json;

    #[test]
    fn the_options_that_differ_are_named_with_both_values() {
        let ours = json!({"options": {"lr": 0.002, "seed": 1, "augment": {"flip": true}}, "init": {"Seed": 1}, "name": "a"});
        assert_eq!(told(&ours, &ours), None);
        let mut theirs = ours.clone();
        theirs["options"]["lr"] = json!(0.001);
        assert_eq!(told(&ours, &theirs).unwrap(), "options.lr: 0.002, the folder has 0.001");
        theirs["options"]["augment"]["flip"] = json!(false);
        theirs["init"] = json!({"File": ["w.safetensors", 1]});
        let text = told(&ours, &theirs).unwrap();
        for part in
            ["options.augment.flip: true, the folder has false", "init.Seed: 1, the folder has none", "init.File: none, the folder has ["]
        {
            assert!(text.contains(part), "{text}");
        }
        assert!(told(&ours, &json!({})).unwrap().contains("name: \"a\", the folder has none"));
        let many = |value| json!((0..8).map(|i| (i.to_string(), value)).collect::<std::collections::BTreeMap<_, i32>>());
        assert!(told(&many(1), &many(2)).unwrap().ends_with("; and 3 more"));
    }
}
