//! What a scene promises: the same one for the same seed, and labels that are right by construction.

use omnilabel_keypoints::geometry::Size;
use omnilabel_keypoints::label::Visibility;
use omnilabel_scenes::{DEFAULT_SIZE, Look, Person, Scene, scene};

const LOOKS: [Look; 2] = [Look::studio(), Look::street()];

fn scenes(count: u64) -> impl Iterator<Item = Scene> {
    LOOKS.into_iter().flat_map(move |look| (0..count).map(move |index| scene(&look, 11, index, DEFAULT_SIZE)))
}

fn people(count: u64) -> Vec<Person> {
    scenes(count).flat_map(|scene| scene.people).collect()
}

#[test]
fn a_scene_is_decided_by_look_seed_and_index() {
    let first = scene(&LOOKS[0], 3, 5, DEFAULT_SIZE);
    assert_eq!(first, scene(&LOOKS[0], 3, 5, DEFAULT_SIZE));
    assert_ne!(first.image, scene(&LOOKS[0], 3, 6, DEFAULT_SIZE).image);
    assert_ne!(first.image, scene(&LOOKS[0], 4, 5, DEFAULT_SIZE).image);
    assert_ne!(first.image, scene(&LOOKS[1], 3, 5, DEFAULT_SIZE).image);
}

#[test]
fn labels_lie_inside_their_box_and_the_picture() {
    let (w, h) = (DEFAULT_SIZE.width as f32, DEFAULT_SIZE.height as f32);
    let people = people(40);
    assert!(people.len() > 80, "{} people in 80 scenes", people.len());
    for person in &people {
        let rect = person.rect;
        assert!(rect.is_valid() && rect.x1 >= 0.0 && rect.y1 >= 0.0 && rect.x2 <= w && rect.y2 <= h, "{rect:?}");
        assert!(person.area > 20.0 && person.area <= rect.area(), "{} of {rect:?}", person.area);
        for keypoint in &person.keypoints {
            let point = keypoint.point;
            if keypoint.visibility == Visibility::Unlabelled {
                assert_eq!((point.x, point.y), (0.0, 0.0));
            } else {
                // A joint is inside its limb, so inside the silhouette's extent up to one sample.
                assert!(point.x >= rect.x1 - 0.5 && point.x <= rect.x2 + 0.5 && point.y >= rect.y1 - 0.5 && point.y <= rect.y2 + 0.5);
            }
        }
    }
}

#[test]
fn every_kind_of_visibility_and_count_occurs() {
    let counts: Vec<usize> = scenes(40).map(|scene| scene.people.len()).collect();
    assert!((0..=4).all(|count| counts.contains(&count)), "{counts:?}");
    let flags: Vec<Visibility> = people(40).iter().flat_map(|p| p.keypoints.map(|k| k.visibility)).collect();
    let share = |v| flags.iter().filter(|f| **f == v).count() as f32 / flags.len() as f32;
    assert!(share(Visibility::Visible) > 0.5, "{}", share(Visibility::Visible));
    assert!(share(Visibility::Hidden) > 0.05, "{}", share(Visibility::Hidden));
    assert!(share(Visibility::Unlabelled) > 0.005, "{}", share(Visibility::Unlabelled));
}

#[test]
fn whoever_shows_the_face_has_the_left_side_on_the_right() {
    let (mut facing, mut mirrored, mut away, mut straight) = (0, 0, 0, 0);
    for person in people(90) {
        let seen = |index: usize| person.keypoints[index].visibility == Visibility::Visible;
        let left_is_right = person.keypoints[5].point.x > person.keypoints[6].point.x;
        if !(seen(5) && seen(6)) {
            continue;
        }
        if seen(0) && seen(1) && seen(2) {
            facing += 1;
            mirrored += u32::from(left_is_right);
        } else if !seen(0) && !seen(1) && !seen(2) {
            away += 1;
            straight += u32::from(!left_is_right);
        }
    }
    assert!(facing > 30 && away > 8, "{facing} facing, {away} away");
    // Heads turn and torsos twist, so not all.
    assert!(mirrored * 10 >= facing * 9 && straight * 10 >= away * 7, "{mirrored} of {facing}, {straight} of {away}");
}

#[test]
fn the_same_scene_at_twice_the_size_has_the_same_labels_scaled() {
    let double = Size { width: 2 * DEFAULT_SIZE.width, height: 2 * DEFAULT_SIZE.height };
    let (mut same, mut all) = (0, 0);
    for index in 0..16 {
        let (small, large) = (scene(&LOOKS[0], 5, index, DEFAULT_SIZE), scene(&LOOKS[0], 5, index, double));
        if small.people.len() != large.people.len() {
            continue; // one person at the limit of what counts as seen
        }
        for (a, b) in small.people.iter().zip(&large.people) {
            assert!((4.0 * a.area / b.area - 1.0).abs() < 0.05, "{} against {}", a.area, b.area);
            for (a, b) in a.keypoints.iter().zip(&b.keypoints) {
                all += 1;
                same += u32::from(a.visibility == b.visibility);
                if a.visibility != Visibility::Unlabelled && b.visibility != Visibility::Unlabelled {
                    assert!((2.0 * a.point.x - b.point.x).abs() < 0.01 && (2.0 * a.point.y - b.point.y).abs() < 0.01);
                }
            }
        }
    }
    assert!(all > 200 && same * 100 >= all * 97, "{same} of {all} visibilities agree");
}

#[test]
fn the_second_look_is_darker_and_warmer() {
    let mean = |look: &Look, channel: usize| {
        let values =
            (0..20).flat_map(|index| scene(look, 2, index, DEFAULT_SIZE).image.pixels().map(|p| f64::from(p[channel])).collect::<Vec<_>>());
        values.sum::<f64>()
    };
    let [studio, street] = LOOKS.map(|look| [mean(&look, 0), mean(&look, 2)]);
    assert!(street[0] < 0.9 * studio[0], "{street:?} {studio:?}");
    assert!(street[1] / street[0] < 0.95 * studio[1] / studio[0], "{street:?} {studio:?}");
}
