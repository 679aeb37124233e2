//! Frames per second of a bundle on the CPU or the GPU: `gpu_speed BUNDLE FRAME [cpu|cuda]`, one view and the paper's 18 (nine scales and
//! their mirror images, a quarter below to a half above the model's own). `tests/run --gpu` runs it.

use omnilabel_bundle::Bundle;
use omnilabel_detect::frame::Frame;
use omnilabel_runtime::{RuntimeError, Teacher, ViewPlan};
use std::path::Path;
use std::time::{Duration, Instant};

/// Each plan runs at least this long after its first frames.
const LEAST: Duration = Duration::from_secs(3);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let (bundle, frame, device) = match &args[..] {
        [bundle, frame] => (bundle, frame, "cuda"),
        [bundle, frame, device] => (bundle, frame, device.as_str()),
        _ => return Err("expected BUNDLE FRAME [cpu|cuda]".into()),
    };
    let (bundle, frame) = (Bundle::open(Path::new(bundle))?, Frame::open(Path::new(frame))?);
    let start = Instant::now();
    let teacher = match device {
        "cpu" => Teacher::load(&bundle, std::thread::available_parallelism().map_or(1, usize::from))?,
        "cuda" => Teacher::load_cuda(&bundle)?,
        other => return Err(format!("`{other}` is neither cpu nor cuda").into()),
    };
    println!("{}: loaded on {device} in {:.1} s", bundle.manifest().name, start.elapsed().as_secs_f32());
    let own = bundle.manifest().input.short_side;
    let scales: Vec<u32> = (0..9).map(|i| own * (24 + 3 * i) / 32).collect();
    for plan in [ViewPlan::single(bundle.manifest()), ViewPlan::new(bundle.manifest(), &scales, true)] {
        let people = rate(&teacher, &frame, &plan)?;
        println!("{} views: {:.2} frames/s, {} people", plan.views.len(), people.0, people.1);
    }
    Ok(())
}

/// Frames per second and people.
fn rate(teacher: &Teacher, frame: &Frame, plan: &ViewPlan) -> Result<(f64, usize), RuntimeError> {
    // Plans and kernels are made at the first frame of a shape.
    let people = teacher.detect(frame, plan)?.len();
    let (start, mut frames) = (Instant::now(), 0);
    while frames < 2 || start.elapsed() < LEAST {
        teacher.detect(frame, plan)?;
        frames += 1;
    }
    Ok((f64::from(frames) / start.elapsed().as_secs_f64(), people))
}
