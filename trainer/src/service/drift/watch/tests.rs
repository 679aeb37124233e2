//! Labels of two devices over days, through the store.

use super::*;
use crate::service::drift::Statistic;
use crate::service::drift::fleet::PERIOD_MS;
use crate::service::events::EventReader;
use crate::service::store::intake::Record;
use crate::service::testing::World;

async fn watched(world: &World) -> Watch {
    let store = Store::open(&world.config.state_dir, false).await.unwrap();
    let events = Arc::new(EventLog::open(&world.config.state_dir).unwrap());
    Watch { store, events, config: DriftConfig { reference_days: 1, limit: 0.25 } }
}

fn drifts(world: &World) -> Vec<(String, u64, String)> {
    let events = EventReader::new(&world.config.state_dir).poll().unwrap().into_iter();
    events
        .filter_map(|one| if let Event::Drift { device, model, reason } = one.event { Some((device, model, reason)) } else { None })
        .collect()
}

/// Labels alone, with every box and point `part` as far from the corner.
fn shrunk(mut records: Vec<(String, Record)>, part: f64) -> Vec<(String, Record)> {
    records.retain(|(_, record)| matches!(record, Record::Label(_)));
    for (_, record) in &mut records {
        let Record::Label(row) = record else { continue };
        let mut label = LabelMsg::decode(&row.payload).unwrap();
        for instance in &mut label.instances {
            instance.rect = instance.rect.map(|value| (f64::from(value) * part) as i32);
        }
        row.payload = crate::service::testing::encode(&label);
    }
    records
}

#[tokio::test]
async fn a_turned_camera_is_seen_and_told_once() {
    let world = World::new();
    let watch = watched(&world).await;
    watch.look().await.unwrap();
    assert!(watch.store.drifts().await.unwrap().is_empty(), "nothing is there yet");
    let mut sequence = 0;
    for period in 800..832_u64 {
        let at = period * PERIOD_MS + 1;
        let range = sequence + 1..=sequence + 20;
        sequence += 20;
        // From the fourth day on, `gate` looks at somebody farther away.
        let part = if period < 824 { 1.0 } else { 0.4 };
        watch.store.commit(&shrunk(world.labels("gate", range.clone(), 0.0, 3), part), at).await.unwrap();
        watch.store.commit(&shrunk(world.labels("yard", range, 0.0, 3), 1.0), at).await.unwrap();
        watch.look().await.unwrap();
    }
    let state = watch.store.drifts().await.unwrap();
    let (gate, yard) = (&state["gate"], &state["yard"]);
    assert_eq!((gate.model, gate.reference, gate.newest, gate.reference_until_ms), (3, 160, 160, 808 * PERIOD_MS));
    assert_eq!((gate.largest().unwrap().what, gate.largest().unwrap().drifted), (Statistic::Size, true));
    assert_eq!((yard.newest, yard.compared.len(), yard.trouble()), (160, 4, None));
    let told = drifts(&world);
    assert!(matches!(told.as_slice(), [(device, 3, reason)] if device == "gate" && reason.contains("size")), "{told:?}");
    // Two days of periods are all that is kept of five.
    assert_eq!(watch.store.periods("gate").await.unwrap().len(), 16);
}

#[tokio::test]
async fn each_label_is_counted_once_however_often_the_service_starts() {
    let world = World::new();
    let first = watched(&world).await;
    let labels = world.labels("gate", 1..=30, 0.0, 0);
    first.store.commit(&labels, 1).await.unwrap();
    first.look().await.unwrap();
    // Another service; the same labels come again, and one of another skeleton.
    let watch = watched(&world).await;
    watch.store.commit(&labels, 2).await.unwrap();
    let mut refused = shrunk(world.labels("gate", 31..=31, 0.0, 0), 1.0);
    if let Record::Label(row) = &mut refused[0].1 {
        row.refused = Some("another skeleton".to_owned());
    }
    watch.store.commit(&refused, 3).await.unwrap();
    watch.look().await.unwrap();
    let periods = watch.store.periods("gate").await.unwrap();
    assert_eq!(periods.iter().map(|period| (period.model, period.period, period.counts.frames())).collect::<Vec<_>>(), [(0, 0, 30)]);
    assert_eq!(watch.store.last_counted().await.unwrap(), watch.store.last_label().await.unwrap());
}

#[tokio::test]
async fn many_labels_are_counted_in_several_reads() {
    let world = World::new();
    let watch = watched(&world).await;
    let count = u64::from(2 * READ) + 7;
    watch.store.commit(&shrunk(world.labels("gate", 1..=count, 0.0, 0), 1.0), 1).await.unwrap();
    watch.look().await.unwrap();
    assert_eq!(watch.store.periods("gate").await.unwrap()[0].counts.frames(), count);
    // Of more than is counted at once, the newest are: here behind a gap in the numbers.
    let sql = "UPDATE labels SET id = id + 100000 WHERE sequence > 500";
    sqlx::query(sql).execute(watch.store.pool()).await.unwrap();
    sqlx::query("DELETE FROM meta WHERE key = 'counted'").execute(watch.store.pool()).await.unwrap();
    watch.look().await.unwrap();
    assert_eq!(watch.store.periods("gate").await.unwrap()[0].counts.frames(), 2 * count - 500);
}
