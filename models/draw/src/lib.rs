//! Pictures for people: what a model saw, or what somebody labelled, drawn over the frame as users of COCO's tools know it, and a page
//! that shows many of them.
//!
//! ```text
//! Frame + Skeleton + [Person] ─▶ picture (drawn, enlarged when it is small) ─▶ panel (side by side) ─▶ Album (files, index.html)
//! ```
//!
//! This crate knows no model, data set or score: who calls it says which keypoints are sure and what is written at a box.
//!
//! ```
//! use omnilabel_detect::frame::Frame;
//! use omnilabel_draw::{Mark, Person, Tone, picture};
//! use omnilabel_keypoints::geometry::{Point, Rect, Size};
//! use omnilabel_keypoints::skeleton::Skeleton;
//!
//! let frame = Frame { size: Size { width: 200, height: 160 }, rgb: vec![90; 3 * 200 * 160] };
//! let skeleton = Skeleton::new(&["left_hip", "left_knee"], &[(0, 1)], None, None)?;
//! let person = Person {
//!     rect: Some(Rect::new(60.0, 40.0, 140.0, 120.0)),
//!     marks: vec![Mark::Sure(Point { x: 80.0, y: 60.0 }), Mark::Unsure(Point { x: 120.0, y: 100.0 })],
//!     caption: "person 0.93".to_owned(),
//!     tone: Tone::Instance(0),
//! };
//! assert_eq!(picture(&frame, &skeleton, &[person]).size, frame.size);
//! # Ok::<(), omnilabel_keypoints::skeleton::SkeletonError>(())
//! ```

mod album;
mod canvas;
mod palette;
mod panel;
mod person;
mod sheet;
mod style;

pub use album::{Album, AlbumError};
pub use panel::beside;
pub use person::{Mark, Person, picture};
pub use sheet::{Card, Emphasis};

pub use palette::{CENTRE, Colour, LEFT, MISSED, RIGHT, TRUTH, Tone};
pub use style::Style;
