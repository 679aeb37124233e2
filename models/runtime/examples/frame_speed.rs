//! Milliseconds per frame of a bundle on this machine.
//!
//! ```text
//! cargo run --release -p omnilabel-runtime --example frame_speed -- BUNDLE [PICTURE] [THREADS]
//! ```
//! Without a picture: a grey one of 160 × 120 px in which nobody is found, and three boxes are given instead.

use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Rect, Size};
use omnilabel_runtime::{Teacher, ViewPlan};
use std::path::Path;
use std::time::Instant;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let root = arguments.first().ok_or("usage: frame_speed BUNDLE [PICTURE] [THREADS]")?;
    let bundle = Bundle::open(Path::new(root))?;
    let frame = match arguments.get(1) {
        Some(path) => Frame::open(Path::new(path))?,
        None => Frame { size: Size { width: 160, height: 120 }, rgb: vec![127; 3 * 160 * 120] },
    };
    let cores = std::thread::available_parallelism()?.get();
    let threads = arguments.get(2).map_or(Ok(cores), |text| text.parse())?;
    let manifest = bundle.manifest();
    let side = manifest.input.short_side;
    let six = ViewPlan::new(manifest, &[side * 3 / 4, side, side * 5 / 4], true);
    let boxes = [10.0, 50.0, 90.0].map(|x| (Rect::new(x, 20.0, x + 40.0, 110.0), 1.0));
    let load = Instant::now();
    let teacher = Teacher::load(&bundle, threads)?;
    println!("{threads} threads; loaded in {:.0} ms", load.elapsed().as_secs_f64() * 1e3);
    for (name, plan) in [("one view", ViewPlan::single(manifest)), ("six views", six)] {
        let run = || -> Result<usize, omnilabel_runtime::RuntimeError> {
            Ok(teacher.detect(&frame, &plan)?.len() + if arguments.len() < 2 { teacher.detect_in(&frame, &boxes, &plan)?.len() } else { 0 })
        };
        let first = Instant::now();
        let people = run()?;
        let first = first.elapsed();
        let mut times: Vec<f64> = Vec::new();
        let start = Instant::now();
        while start.elapsed().as_secs() < 3 || times.len() < 5 {
            let one = Instant::now();
            run()?;
            times.push(one.elapsed().as_secs_f64() * 1e3);
        }
        times.sort_by(f64::total_cmp);
        let (first, best, median) = (first.as_secs_f64() * 1e3, times[0], times[times.len() / 2]);
        println!("{name}: {people} people, first frame {first:.0} ms, then {median:.1} ms (median of {}, best {best:.1})", times.len());
    }
    Ok(())
}
