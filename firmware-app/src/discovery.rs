//! What Home Assistant needs to show the device: one retained message in its own format
//! (<https://www.home-assistant.io/integrations/mqtt/#device-discovery-payload>).

use crate::config::EdgeConfig;
use crate::publish::Topics;
use omnilabel_keypoints::wire::topic::Kind;
use serde_json::json;

/// Topic and payload.
pub fn message(config: &EdgeConfig, topics: &Topics) -> (String, Vec<u8>) {
    // Its identifiers take no dots.
    let id = format!("{}_{}", config.broker.site, config.device).replace(|c: char| !c.is_ascii_alphanumeric() && c != '_' && c != '-', "_");
    let (status, model) = (topics.of(Kind::Status), topics.of(Kind::Model));
    let count = |name: &str, field: &str, class: &str| {
        json!({
            "platform": "sensor", "name": name, "unique_id": format!("{id}_{field}"), "state_topic": status, "state_class": class,
            "value_template": format!("{{{{ value_json.{field} }}}}"),
        })
    };
    let payload = json!({
        "device": {
            "identifiers": [id], "name": config.device, "manufacturer": "Omnilabel", "model": "omnilabel-edge",
            "sw_version": env!("CARGO_PKG_VERSION"), "suggested_area": config.broker.site,
        },
        "origin": { "name": "omnilabel-edge", "sw_version": env!("CARGO_PKG_VERSION") },
        "components": {
            "online": {
                "platform": "binary_sensor", "name": "Connection", "device_class": "connectivity", "unique_id": format!("{id}_online"),
                "state_topic": status, "value_template": "{{ 'ON' if value_json.online else 'OFF' }}",
            },
            "frames": count("Frames labelled", "frames", "total_increasing"),
            "bad_frames": count("Bad frames", "bad_frames", "total_increasing"),
            "pending": count("Labels waiting", "pending", "measurement"),
            "release": {
                "platform": "sensor", "name": "Model release", "unique_id": format!("{id}_release"), "state_topic": model,
                "value_template": "{{ value_json.confirmed }}",
            },
        },
    });
    (format!("homeassistant/device/{id}/config"), payload.to_string().into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_component_has_its_own_id_and_reads_a_field_that_is_sent() {
        let text = "device = \"cam.1\"\nstate_dir = \"s\"\n[broker]\nhost = \"localhost\"\nsite = \"yard\"\n[camera]\ntype = \"folder\"\npath = \"p\"\n";
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("edge.toml");
        std::fs::write(&path, text).unwrap();
        let config = EdgeConfig::load(&path).unwrap();
        let (topic, payload) = message(&config, &Topics::new(&config.broker, &config.device));
        assert_eq!(topic, "homeassistant/device/yard_cam_1/config");
        let value: serde_json::Value = serde_json::from_slice(&payload).unwrap();
        let components = value["components"].as_object().unwrap();
        let ids: std::collections::BTreeSet<_> = components.values().map(|component| component["unique_id"].as_str().unwrap()).collect();
        assert_eq!(ids.len(), components.len());
        let sent = |kind: &str| match kind {
            "status" => serde_json::to_value(omnilabel_keypoints::wire::StatusMsg::default()).unwrap(),
            _ => serde_json::to_value(omnilabel_keypoints::wire::ModelMsg::default()).unwrap(),
        };
        for component in components.values() {
            let kind = component["state_topic"].as_str().unwrap().strip_prefix("omnilabel/v1/yard/cam.1/").unwrap();
            let template = component["value_template"].as_str().unwrap();
            let field = template.split_once("value_json.").unwrap().1.split(' ').next().unwrap();
            assert!(sent(kind).get(field).is_some(), "{template} is not in {kind}");
        }
    }
}
