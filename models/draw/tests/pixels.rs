//! What is drawn where, pixel by pixel.
#![allow(clippy::unwrap_used)]

use omnilabel_detect::frame::Frame;
use omnilabel_draw::{CENTRE, Colour, LEFT, MISSED, Mark, Person, RIGHT, Style, Tone, picture};
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::label::{Detection, Keypoint};
use omnilabel_keypoints::skeleton::Skeleton;
use proptest::prelude::*;
use std::time::Duration;

const GREY: u8 = 90;
/// What drawing one small picture may take, whatever the coordinates are; it takes milliseconds.
const PATIENCE: Duration = Duration::from_secs(10);

fn grey(width: u32, height: u32) -> Frame {
    Frame { size: Size { width, height }, rgb: vec![GREY; 3 * (width * height) as usize] }
}

fn at(frame: &Frame, x: u32, y: u32) -> Colour {
    let index = 3 * (y * frame.size.width + x) as usize;
    frame.rgb[index..index + 3].try_into().unwrap()
}

fn changed(frame: &Frame) -> Vec<(u32, u32)> {
    let all = (0..frame.size.height).flat_map(|y| (0..frame.size.width).map(move |x| (x, y)));
    all.filter(|&(x, y)| at(frame, x, y) != [GREY; 3]).collect()
}

fn skeleton() -> Skeleton {
    Skeleton::new(&["left_hip", "left_knee", "right_hip", "right_knee", "head"], &[(0, 1), (2, 3), (0, 2)], None, None).unwrap()
}

fn point(x: f32, y: f32) -> Point {
    Point { x, y }
}

/// Somebody at the four corners of a square, without a box.
fn limbs(marks: [Mark; 4]) -> Person {
    Person { rect: None, marks: [&marks[..], &[Mark::Absent]].concat(), caption: String::new(), tone: Tone::Instance(0) }
}

fn corners(mark: fn(Point) -> Mark) -> [Mark; 4] {
    [mark(point(150.5, 50.5)), mark(point(150.5, 150.5)), mark(point(50.5, 50.5)), mark(point(50.5, 150.5))]
}

#[test]
fn limbs_have_the_colour_of_their_side_between_their_keypoints() {
    let drawn = picture(&grey(200, 200), &skeleton(), &[limbs(corners(Mark::Sure))]);
    assert_eq!(drawn.size, Size { width: 200, height: 200 });
    for step in 60..=140 {
        assert_eq!(at(&drawn, 150, step), LEFT, "left thigh at {step}");
        assert_eq!(at(&drawn, 50, step), RIGHT, "right thigh at {step}");
        assert_eq!(at(&drawn, step, 50), CENTRE, "between the hips at {step}");
        assert_eq!(at(&drawn, step, 150), [GREY; 3], "there is no edge between the knees");
    }
    assert_eq!((at(&drawn, 150, 150), at(&drawn, 50, 150)), (LEFT, RIGHT), "keypoints are filled");
    assert_eq!(at(&drawn, 100, 100), [GREY; 3]);
}

#[test]
fn keypoints_below_the_threshold_are_hollow_and_have_no_limbs() {
    let keypoint = |x, y, probability| Keypoint { point: point(x, y), probability, ..Keypoint::default() };
    let (hip, knee) = (keypoint(40.5, 100.5, 0.9), keypoint(40.5, 40.5, 0.29));
    let detection = Detection {
        rect: Rect::new(10.0, 10.0, 190.0, 190.0),
        score: 0.9,
        keypoints: [hip, knee, keypoint(120.5, 100.5, 0.3), keypoint(160.5, 100.5, 0.3)].into_iter().collect(),
    };
    let drawn = picture(&grey(200, 200), &skeleton(), &[Person::detected(&detection, 0, 0.3, String::new())]);
    assert_eq!(at(&drawn, 40, 40), [GREY; 3], "the middle of an unsure keypoint is open");
    assert!((30..50).any(|x| at(&drawn, x, 40) == LEFT), "its ring is there");
    assert_eq!(at(&drawn, 40, 70), [GREY; 3], "no limb leads to it");
    assert_eq!((at(&drawn, 40, 100), at(&drawn, 140, 100)), (LEFT, RIGHT), "others are filled and joined");
    let hidden = picture(&grey(200, 200), &skeleton(), &[limbs(corners(Mark::Hidden))]);
    assert_eq!(at(&hidden, 150, 100), LEFT, "a labelled point that is hidden has its limbs");
    let absent = picture(&grey(200, 200), &skeleton(), &[limbs([Mark::Absent; 4])]);
    assert_eq!(changed(&absent), []);
}

#[test]
fn a_skeleton_without_edges_shows_its_points() {
    let bare = Skeleton::new(&["a", "b"], &[], None, None).unwrap();
    let person =
        Person { rect: None, marks: vec![Mark::Sure(point(50.5, 60.5)), Mark::Sure(point(150.5, 60.5))], ..limbs([Mark::Absent; 4]) };
    let drawn = picture(&grey(200, 200), &bare, &[person]);
    assert_eq!((at(&drawn, 50, 60), at(&drawn, 150, 60), at(&drawn, 100, 60)), (CENTRE, CENTRE, [GREY; 3]));
}

#[test]
fn nothing_is_drawn_outside_of_a_detections_box_but_its_caption() {
    let style = Style::for_size(Size { width: 400, height: 300 });
    let keypoints = [point(150.0, 120.0), point(250.0, 120.0), point(150.0, 220.0), point(250.0, 220.0)].map(Mark::Sure);
    let person = Person { rect: Some(Rect::new(100.0, 100.0, 300.0, 250.0)), caption: "person 0.93".to_owned(), ..limbs(keypoints) };
    let drawn = picture(&grey(400, 300), &skeleton(), std::slice::from_ref(&person));
    let colour = Tone::Instance(0).colour();
    for (x, y) in [(100, 100), (299, 100), (100, 249), (299, 249), (200, 100), (100, 200), (299, 200), (200, 249)] {
        assert_eq!(at(&drawn, x, y), colour, "the outline at ({x}, {y})");
    }
    let inside = |x: u32, y: u32| (100..300).contains(&x) && (100..250).contains(&y);
    let plate = |x: u32, y: u32| {
        (100..100 + style.text_width("person 0.93") + 2 * style.line).contains(&x) && (100 - style.text_height() - 2..100).contains(&y)
    };
    let outside: Vec<_> = changed(&drawn).into_iter().filter(|&(x, y)| !inside(x, y) && !plate(x, y)).collect();
    assert_eq!(outside, []);
    let written = changed(&drawn).into_iter().filter(|&(x, y)| plate(x, y));
    let dark = written.filter(|&(x, y)| at(&drawn, x, y) == [0; 3]).count();
    assert!(dark > 50, "the score is written on the plate: {dark} pixels");
}

#[test]
fn boxes_of_neighbours_differ_and_a_missed_person_stands_out() {
    let person = |tone| Person { rect: Some(Rect::new(20.0, 20.0, 180.0, 180.0)), tone, ..limbs([Mark::Absent; 4]) };
    let edge = |tone| at(&picture(&grey(200, 200), &skeleton(), &[person(tone)]), 20, 100);
    assert_ne!(edge(Tone::Instance(0)), edge(Tone::Instance(1)));
    assert_eq!(edge(Tone::Missed), MISSED);
}

#[test]
fn captions_of_people_in_the_same_place_are_all_seen() {
    let rect = Some(Rect::new(50.0, 60.0, 350.0, 260.0));
    let person = |index| Person { rect, caption: "person 0.93".to_owned(), tone: Tone::Instance(index), ..limbs([Mark::Absent; 4]) };
    let style = Style::for_size(Size { width: 400, height: 300 });
    let plate = ((style.text_width("person 0.93") + 2 * style.line) * (style.text_height() + 2)) as usize;
    for people in 1..=4 {
        let all: Vec<Person> = (0..people).map(person).collect();
        let drawn = picture(&grey(400, 300), &skeleton(), &all);
        for index in 0..people {
            let colour = Tone::Instance(index).colour();
            let seen = changed(&drawn).into_iter().filter(|&(x, y)| at(&drawn, x, y) == colour).count();
            // Letters cover less than half of a plate.
            assert!(seen > plate / 2, "{index} of {people}: {seen} of {plate} pixels");
        }
    }
}

#[test]
fn what_reaches_over_the_border_is_cut_off_there() {
    let marks =
        [Mark::Sure(point(100.5, 100.5)), Mark::Sure(point(100.5, 1e9)), Mark::Sure(point(-1e30, 50.5)), Mark::Sure(point(50.5, 50.5))];
    let person = Person { rect: Some(Rect::new(-50.0, 20.0, 1e9, 190.0)), caption: "person 0.50".to_owned(), ..limbs(marks) };
    let drawn = picture(&grey(200, 200), &skeleton(), &[person]);
    assert_eq!(drawn.size, Size { width: 200, height: 200 });
    assert_eq!((at(&drawn, 100, 199), at(&drawn, 0, 50)), (LEFT, RIGHT), "limbs go to the border");
    let colour = Tone::Instance(0).colour();
    assert_eq!((at(&drawn, 150, 20), at(&drawn, 150, 189)), (colour, colour));
    assert_eq!((at(&drawn, 0, 120), at(&drawn, 199, 120)), ([GREY; 3], [GREY; 3]), "edges outside are not drawn at the border");
    let away = Person { rect: Some(Rect::new(300.0, 300.0, 400.0, 400.0)), caption: "person 0.50".to_owned(), ..limbs([Mark::Absent; 4]) };
    assert_eq!(changed(&picture(&grey(200, 200), &skeleton(), &[away])), []);
}

#[test]
fn a_small_picture_is_enlarged_and_drawn_at_the_same_places() {
    let mut frame = grey(100, 80);
    frame.rgb[..3].copy_from_slice(&[1, 2, 3]);
    let zoom = Style::for_size(frame.size).zoom;
    assert!(zoom > 2, "{zoom}");
    let marks = [Mark::Sure(point(70.0, 20.0)), Mark::Sure(point(70.0, 60.0)), Mark::Absent, Mark::Absent];
    let drawn = picture(&frame, &skeleton(), &[limbs(marks)]);
    assert_eq!(drawn.size, Size { width: 100 * zoom, height: 80 * zoom });
    assert_eq!(at(&drawn, 70 * zoom, 40 * zoom), LEFT);
    let corner = (0..zoom + 1).flat_map(|y| (0..zoom + 1).map(move |x| (x, y)));
    for (x, y) in corner {
        assert_eq!(at(&drawn, x, y) == [1, 2, 3], x < zoom && y < zoom, "({x}, {y})");
    }
}

fn any_number() -> impl Strategy<Value = f32> {
    prop_oneof![
        any::<f32>(),
        -300.0..500.0f32,
        prop_oneof![Just(f32::NAN), Just(f32::INFINITY), Just(f32::NEG_INFINITY), Just(f32::MAX), Just(f32::MIN), Just(-0.0)],
    ]
}

fn any_mark() -> impl Strategy<Value = Mark> {
    (0..4, any_number(), any_number()).prop_map(|(kind, x, y)| match kind {
        0 => Mark::Sure(point(x, y)),
        1 => Mark::Hidden(point(x, y)),
        2 => Mark::Unsure(point(x, y)),
        _ => Mark::Absent,
    })
}

fn any_person() -> impl Strategy<Value = Person> {
    let rect = proptest::option::of([any_number(), any_number(), any_number(), any_number()]);
    (rect, proptest::collection::vec(any_mark(), 0..7), "\\PC{0,40}", 0..40usize).prop_map(|(rect, marks, caption, index)| Person {
        rect: rect.map(|[x1, y1, x2, y2]| Rect::new(x1, y1, x2, y2)),
        marks,
        caption,
        tone: if index < 30 { Tone::Instance(index) } else { Tone::Missed },
    })
}

proptest! {
    // A case that hangs costs its patience again for every attempt to make it smaller.
    #![proptest_config(ProptestConfig { max_shrink_iters: 4, ..ProptestConfig::default() })]

    #[test]
    fn any_coordinates_are_drawn_or_left_out(
        people in proptest::collection::vec(any_person(), 0..5), width in 1..300u32, height in 1..300u32,
    ) {
        let (done, drawn) = std::sync::mpsc::channel();
        // Nobody waits for the thread of a case that hangs: it ends with the test's process.
        std::thread::spawn(move || done.send(picture(&grey(width, height), &skeleton(), &people)));
        let Ok(drawn) = drawn.recv_timeout(PATIENCE) else {
            return Err(TestCaseError::fail(format!("not drawn within {PATIENCE:?}, or panicked")));
        };
        let zoom = Style::for_size(Size { width, height }).zoom;
        prop_assert_eq!(drawn.size, Size { width: width * zoom, height: height * zoom });
        prop_assert_eq!(drawn.rgb.len(), (3 * width * zoom * height * zoom) as usize);
    }
}
