//! A contact sheet of scenes with their skeletons: `cargo run --release -p omnilabel-scenes --example sheet -- studio 7 sheet.png`.

use image::{Rgb, RgbImage};
use omnilabel_keypoints::label::Visibility;
use omnilabel_scenes::{DEFAULT_SIZE, Look, scene};

const EDGES: [(usize, usize); 12] =
    [(5, 7), (7, 9), (6, 8), (8, 10), (5, 6), (11, 12), (5, 11), (6, 12), (11, 13), (13, 15), (12, 14), (14, 16)];
const ZOOM: u32 = 2;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let look = Look::named(&args.next().unwrap_or_default()).ok_or("the first argument is studio or street")?;
    let seed: u64 = args.next().ok_or("the second argument is a seed")?.parse()?;
    let out = args.next().ok_or("the third argument is a PNG file")?;
    let marks = args.next().is_none();
    let (columns, rows) = (4, 4);
    let (w, h) = (DEFAULT_SIZE.width * ZOOM, DEFAULT_SIZE.height * ZOOM);
    let mut sheet = RgbImage::new(columns * w, rows * h);
    let start = std::time::Instant::now();
    for cell in 0..columns * rows {
        let scene = scene(&look, seed, u64::from(cell), DEFAULT_SIZE);
        let (left, top) = (cell % columns * w, cell / columns * h);
        for (x, y, pixel) in sheet.view_mut(left, top, w, h) {
            *pixel = *scene.image.get_pixel(x / ZOOM, y / ZOOM);
        }
        let mut dot = |x: f32, y: f32, colour: [u8; 3]| {
            let (x, y) = ((x * ZOOM as f32) as i64, (y * ZOOM as f32) as i64);
            if x >= 0 && y >= 0 && x < i64::from(w) && y < i64::from(h) {
                sheet.put_pixel(left + x as u32, top + y as u32, Rgb(colour));
            }
        };
        if !marks {
            continue;
        }
        for person in &scene.people {
            for (a, b) in EDGES {
                let (a, b) = (person.keypoints[a], person.keypoints[b]);
                if a.visibility != Visibility::Unlabelled && b.visibility != Visibility::Unlabelled {
                    for step in 0..=100 {
                        let t = step as f32 / 100.0;
                        dot(a.point.x + (b.point.x - a.point.x) * t, a.point.y + (b.point.y - a.point.y) * t, [0, 255, 255]);
                    }
                }
            }
            for (index, keypoint) in person.keypoints.iter().enumerate() {
                let colour = match keypoint.visibility {
                    Visibility::Unlabelled => continue,
                    Visibility::Hidden => [255, 60, 60],
                    Visibility::Visible if index % 2 == 1 => [60, 255, 60],
                    Visibility::Visible => [255, 200, 0],
                };
                for (dx, dy) in [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.5, 0.5)] {
                    dot(keypoint.point.x + dx - 0.25, keypoint.point.y + dy - 0.25, colour);
                }
            }
        }
    }
    println!("{:.1} scenes/s on one core", f64::from(columns * rows) / start.elapsed().as_secs_f64());
    sheet.save(out)?;
    Ok(())
}

trait ViewMut {
    fn view_mut(&mut self, left: u32, top: u32, width: u32, height: u32) -> impl Iterator<Item = (u32, u32, &mut Rgb<u8>)>;
}

impl ViewMut for RgbImage {
    fn view_mut(&mut self, left: u32, top: u32, width: u32, height: u32) -> impl Iterator<Item = (u32, u32, &mut Rgb<u8>)> {
        self.enumerate_pixels_mut()
            .filter(move |(x, y, _)| (left..left + width).contains(x) && (top..top + height).contains(y))
            .map(move |(x, y, pixel)| (x - left, y - top, pixel))
    }
}
