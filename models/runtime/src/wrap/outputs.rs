//! What of a graph is read: told by names, by declared shapes, and at last by running it once.

use super::{WrapKind, WrapRequest};
use crate::RuntimeError;
use crate::pose::{GraphInfo, PoseGraph, PoseTensor, TensorInfo, TractPose, refuse};
use omnilabel_bundle::{HeatmapSpec, OneStageSpec, PoseOutput, PoseSpec, SimccSpec};

/// Scores may leave `[0, 1]` by the rounding of their sigmoid.
const SCORE_SLACK: f32 = 1e-3;

/// Rows and columns of the input.
pub(super) fn input_size(graph: &GraphInfo, asked: Option<(u32, u32)>) -> Result<(u32, u32), String> {
    let [input] = &graph.inputs[..] else {
        return Err(format!("{} inputs ({}), expected one: the image", graph.inputs.len(), list(&graph.inputs)));
    };
    if input.rank() == Some(4) && input.size(3) == Some(3) && input.size(1) != Some(3) {
        return Err(format!("the input is {input}: its channels come last, expected [1, 3, height, width]"));
    }
    if let Some(size) = asked {
        return Ok(size);
    }
    if input.rank() != Some(4) {
        return Err(format!("the input is {input}, expected [1, 3, height, width]"));
    }
    let fixed = input.size(2).zip(input.size(3));
    fixed.ok_or_else(|| format!("the input is {input}, which fixes no size: say --input HEIGHTxWIDTH"))
}

/// What can be said before the graph runs. Sizes of maps and bins are provisional.
pub(super) fn guess(request: &WrapRequest, graph: &GraphInfo, (height, width): (u32, u32)) -> Result<PoseOutput, String> {
    match &request.kind {
        WrapKind::Heatmap { output, crop, values, refine, shift_flipped } => Ok(PoseOutput::Heatmap(HeatmapSpec {
            crop: *crop,
            output: one(graph, output.as_deref(), 4, "[1, keypoints, rows, columns]")?,
            rows: (height / 4).max(2),
            columns: (width / 4).max(2),
            values: *values,
            refine: *refine,
            shift_flipped: *shift_flipped,
        })),
        WrapKind::Simcc { outputs, crop, values } => {
            let (x, y) = match outputs {
                Some((x, y)) => (known(graph, x)?, known(graph, y)?),
                None => rows(graph, (height, width))?,
            };
            Ok(PoseOutput::Simcc(SimccSpec { crop: *crop, x, y, split_ratio: 2.0, values: *values }))
        }
        WrapKind::OneStage { spec, .. } => {
            let asked = Some(spec.output.as_str()).filter(|name| !name.is_empty());
            let output = one(graph, asked, 3, "[1, numbers, candidates]")?;
            Ok(PoseOutput::OneStage(OneStageSpec { output, ..spec.clone() }))
        }
    }
}

/// The named output, or the only one that has the rank.
fn one(graph: &GraphInfo, name: Option<&str>, rank: usize, expected: &str) -> Result<String, String> {
    if let Some(name) = name {
        return known(graph, name);
    }
    let fitting: Vec<&TensorInfo> = graph.outputs.iter().filter(|output| output.rank().is_none_or(|found| found == rank)).collect();
    match fitting[..] {
        [output] => Ok(output.name.clone()),
        [] => Err(format!("no output is of rank {rank}, expected {expected}; the graph's are {}", list(&graph.outputs))),
        _ => Err(format!("several outputs may be {expected}: say --output NAME; the graph's are {}", list(&graph.outputs))),
    }
}

/// The x and y rows: by SimCC's usual names, else by their sizes.
fn rows(graph: &GraphInfo, (height, width): (u32, u32)) -> Result<(String, String), String> {
    let named = |name: &str| graph.outputs.iter().find(|output| output.name == name);
    if let (Some(x), Some(y)) = (named("simcc_x"), named("simcc_y")) {
        return Ok((x.name.clone(), y.name.clone()));
    }
    let unclear = |why: &str| Err(format!("{why}: say --output-x and --output-y; the graph's outputs are {}", list(&graph.outputs)));
    let fitting: Vec<&TensorInfo> = graph.outputs.iter().filter(|output| output.rank().is_none_or(|rank| rank == 3)).collect();
    let [a, b] = fitting[..] else {
        return unclear("expected two outputs, [1, keypoints, bins along x] and [1, keypoints, bins along y]");
    };
    let Some((bins_a, bins_b)) = a.size(2).zip(b.size(2)) else { return unclear("the outputs' sizes do not tell x from y") };
    let fits = |x: u32, y: u32| u64::from(x) * u64::from(height) == u64::from(y) * u64::from(width);
    match (fits(bins_a, bins_b), fits(bins_b, bins_a)) {
        (true, false) => Ok((a.name.clone(), b.name.clone())),
        (false, true) => Ok((b.name.clone(), a.name.clone())),
        _ => unclear("the outputs' sizes do not tell x from y"),
    }
}

fn known(graph: &GraphInfo, name: &str) -> Result<String, String> {
    if graph.outputs.iter().any(|output| output.name == name) {
        return Ok(name.to_owned());
    }
    Err(format!("there is no output `{name}`, the graph's are {}", list(&graph.outputs)))
}

fn list(tensors: &[TensorInfo]) -> String {
    tensors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// Runs the graph on an empty picture and puts the sizes that came out into `pose`. Returns the outputs' shapes.
pub(super) fn probe(graph: &TractPose, pose: &mut PoseSpec, request: &WrapRequest) -> Result<Vec<Vec<usize>>, RuntimeError> {
    let (rows, columns) = (pose.height as usize, pose.width as usize);
    let outputs = graph.run(&vec![0.0; 3 * rows * columns], rows, columns)?;
    let names = pose.output.names();
    for (output, name) in outputs.iter().zip(&names) {
        crate::pass::finite(omnilabel_bundle::POSE_GRAPH, &format!("the output `{name}` on an empty picture"), &output.values)?;
    }
    let k = request.skeleton.len();
    let (height, width) = (pose.height, pose.width);
    match &mut pose.output {
        PoseOutput::Heatmap(spec) => {
            let [output] = &outputs[..] else { return Err(refuse(format!("{} outputs, expected one", outputs.len()))) };
            let [1, found, rows, columns] = output.shape[..] else {
                return Err(refuse(format!("the output `{}` is {:?}, expected [1, {k}, rows, columns]", spec.output, output.shape)));
            };
            keypoints(&spec.output, found, k)?;
            (spec.rows, spec.columns) = (rows as u32, columns as u32);
        }
        PoseOutput::Simcc(spec) => {
            let [x, y] = &outputs[..] else { return Err(refuse(format!("{} outputs, expected two", outputs.len()))) };
            let (across, down) = (bins(&spec.x, x, k)?, bins(&spec.y, y, k)?);
            let (ratio, other) = (across as f32 / width as f32, down as f32 / height as f32);
            if ratio != other {
                return Err(refuse(format!(
                    "`{}` has {across} bins for {width} px and `{}` {down} for {height} px (width and height), expected as many per pixel \
                     along x as along y",
                    spec.x, spec.y
                )));
            }
            spec.split_ratio = ratio;
        }
        PoseOutput::OneStage(spec) => {
            let [output] = &outputs[..] else { return Err(refuse(format!("{} outputs, expected one", outputs.len()))) };
            scores(spec, output, k)?;
        }
    }
    Ok(outputs.into_iter().map(|output| output.shape).collect())
}

fn keypoints(name: &str, found: usize, expected: usize) -> Result<(), RuntimeError> {
    if found == expected {
        return Ok(());
    }
    Err(refuse(format!("the output `{name}` has {found} keypoints, expected {expected}, as many as the skeleton has")))
}

fn bins(name: &str, output: &PoseTensor, k: usize) -> Result<usize, RuntimeError> {
    let [1, found, bins] = output.shape[..] else {
        return Err(refuse(format!("the output `{name}` is {:?}, expected [1, {k}, bins]", output.shape)));
    };
    keypoints(name, found, k)?;
    Ok(bins)
}

/// Whether the output has the numbers that were said, and scores that are probabilities.
fn scores(spec: &OneStageSpec, output: &PoseTensor, k: usize) -> Result<(), RuntimeError> {
    let channels = spec.channels(k);
    let at: Box<dyn Fn(usize, usize) -> f32> = match output.shape[..] {
        [1, c, n] if c == channels => Box::new(move |i, c| output.values[c * n + i]),
        [1, n, c] if c == channels && n > 0 => Box::new(move |i, c| output.values[i * channels + c]),
        _ => {
            let parts = format!("4 + {} scores + 3 x {k} keypoints", channels - 4 - 3 * k);
            return Err(refuse(format!(
                "the output `{}` is {:?}, expected [1, {channels}, candidates] or [1, candidates, {channels}] ({parts}): does the skeleton \
                 have the model's keypoints, and does --classes have its classes? An export with NMS inside does not fit",
                spec.output, output.shape
            )));
        }
    };
    let count = output.values.len() / channels;
    let numbers = (4..channels - 3 * k).chain((0..k).map(|k_| channels - 3 * k + 3 * k_ + 2));
    for c in numbers {
        for i in 0..count {
            let value = at(i, c);
            if !(-SCORE_SLACK..=1.0 + SCORE_SLACK).contains(&value) {
                return Err(refuse(format!(
                    "number {c} of candidate {i} in `{}` is {value}, expected a score or visibility from 0 to 1: export the model with its \
                     decoding (sigmoid) inside",
                    spec.output
                )));
            }
        }
    }
    Ok(())
}
