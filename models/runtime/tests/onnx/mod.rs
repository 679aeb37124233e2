//! Small ONNX pose models whose answers are known, and pictures for them: people are blue boxes with a green nose and two red hands. Which
//! hand is the left one follows from its side of the body, so that the models are equivariant under mirroring, as trained ones are.
#![allow(dead_code, clippy::unwrap_used, reason = "shared by tests, each of which uses a part")]

use omnilabel_bundle::{Letterbox, OneStageSpec};
use omnilabel_detect::frame::Frame;
use omnilabel_keypoints::geometry::{Point, Rect, Size};
use omnilabel_keypoints::skeleton::Skeleton;
use prost::Message;
use std::path::Path;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::*;

/// What the one-stage model of [`one_stage`] is wrapped with.
pub(crate) fn one_stage_spec() -> OneStageSpec {
    OneStageSpec {
        output: String::new(),
        classes: 1,
        class: 0,
        objectness: false,
        letterbox: Letterbox::Centre,
        fill: 114,
        score_threshold: 0.2,
        nms_iou: 0.5,
        max_detections: 10,
    }
}

/// A dimension of an input or output.
#[derive(Clone, Copy, Debug)]
pub(crate) enum D {
    N(i64),
    S(&'static str),
}

/// A convolution's window.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    k: usize,
    stride: i64,
    pads: [i64; 4],
}

/// A graph in the making.
#[derive(Clone, Default)]
pub(crate) struct Net {
    pub(crate) graph: GraphProto,
}

impl Net {
    pub(crate) fn new() -> Self {
        Self { graph: GraphProto { name: "net".into(), ..Default::default() } }
    }

    pub(crate) fn input(&mut self, name: &str, element: DataType, dims: &[D]) -> String {
        self.graph.input.push(info(name, element, dims));
        name.to_owned()
    }

    pub(crate) fn output(&mut self, name: &str, of: &str, dims: &[D]) {
        self.graph.node.push(NodeProto {
            input: vec![of.to_owned()],
            output: vec![name.to_owned()],
            name: format!("{name}.out"),
            op_type: "Identity".into(),
            ..Default::default()
        });
        self.graph.output.push(info(name, DataType::Float, dims));
    }

    pub(crate) fn floats(&mut self, dims: &[usize], values: Vec<f32>) -> String {
        assert_eq!(dims.iter().product::<usize>(), values.len());
        self.initializer(dims, DataType::Float, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    pub(crate) fn ints(&mut self, values: &[i64]) -> String {
        self.initializer(&[values.len()], DataType::Int64, values.iter().flat_map(|v| v.to_le_bytes()).collect())
    }

    fn initializer(&mut self, dims: &[usize], kind: DataType, raw_data: Vec<u8>) -> String {
        let name = format!("c{}", self.graph.initializer.len());
        self.graph.initializer.push(TensorProto {
            name: name.clone(),
            dims: dims.iter().map(|d| *d as i64).collect(),
            data_type: kind as i32,
            raw_data,
            ..Default::default()
        });
        name
    }

    pub(crate) fn node(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let name = format!("n{}", self.graph.node.len());
        self.graph.node.push(NodeProto {
            input: inputs.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![name.clone()],
            name: name.clone(),
            op_type: op.into(),
            attribute,
            ..Default::default()
        });
        name
    }

    /// `[1, 3, h, w]` → channels `weights.len()`, each a kernel `[3, k, k]`.
    /// `[1, c, h, w]` → a channel for each of `weights`, kernels `[c, k, k]`.
    pub(crate) fn conv(&mut self, x: &str, weights: &[Vec<f32>], bias: Option<Vec<f32>>, Window { k, stride, pads }: Window) -> String {
        let inputs = weights[0].len() / (k * k);
        let weight = self.floats(&[weights.len(), inputs, k, k], weights.concat());
        let mut names = vec![x.to_owned(), weight];
        names.extend(bias.map(|bias| self.floats(&[bias.len()], bias)));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        self.node("Conv", &names, vec![ints("kernel_shape", &[k as i64; 2]), ints("strides", &[stride; 2]), ints("pads", &pads)])
    }

    pub(crate) fn model(&self) -> ModelProto {
        ModelProto {
            ir_version: 8,
            opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
            graph: Some(self.graph.clone()),
            ..Default::default()
        }
    }

    pub(crate) fn save(&self, path: &Path) {
        std::fs::write(path, self.model().encode_to_vec()).unwrap();
    }
}

fn info(name: &str, element: DataType, dims: &[D]) -> ValueInfoProto {
    let dim = |dim: &D| Dimension {
        value: Some(match dim {
            D::N(size) => dimension::Value::DimValue(*size),
            D::S(name) => dimension::Value::DimParam((*name).to_owned()),
        }),
        ..Default::default()
    };
    let tensor = type_proto::Tensor { elem_type: element as i32, shape: Some(TensorShapeProto { dim: dims.iter().map(dim).collect() }) };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto { value: Some(type_proto::Value::TensorType(tensor)), ..Default::default() }),
        ..Default::default()
    }
}

pub(crate) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i, ..Default::default() }
}

pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Ints as i32, ints: ints.to_vec(), ..Default::default() }
}

/// How the top-down nets see a pixel.
#[derive(Clone, Copy)]
pub(crate) struct Eyes {
    /// Index of red, green and blue among the input's channels.
    pub(crate) order: [usize; 3],
    /// What the input was normalised with, undone by the net.
    pub(crate) mean: [f32; 3],
    pub(crate) std: [f32; 3],
    /// Values come out as `gain · v + offset`, v in `[0, 1]`.
    pub(crate) gain: f32,
    pub(crate) offset: f32,
    /// Whether the hand's side is looked at; else red is the left hand's colour and blue the right one's.
    pub(crate) sides: bool,
}

impl Default for Eyes {
    fn default() -> Self {
        Self { order: [0, 1, 2], mean: [0.0; 3], std: [1.0; 3], gain: 1.0, offset: 0.0, sides: true }
    }
}

pub(crate) const HEIGHT: usize = 128;
pub(crate) const WIDTH: usize = 96;

/// Maps of nose, left hand and right hand, `[1, 3, HEIGHT / stride, WIDTH / stride]`; cell i looks around input pixel `stride · i`.
fn maps(net: &mut Net, x: &str, stride: usize, eyes: Eyes) -> String {
    const K: usize = 5;
    let kernel = |colour: usize| {
        let channel = eyes.order[colour];
        let weight = eyes.std[channel] / (K * K) as f32;
        let values = (0..3 * K * K).map(|i| if i / (K * K) == channel { weight } else { 0.0 }).collect::<Vec<f32>>();
        (values, eyes.mean[channel])
    };
    let colours = if eyes.sides { [1, 0, 0] } else { [1, 0, 2] };
    let (weights, bias): (Vec<_>, Vec<f32>) = colours.map(kernel).into_iter().unzip();
    let found = net.conv(x, &weights, Some(bias), Window { k: K, stride: stride as i64, pads: [K as i64 / 2; 4] });
    let columns = WIDTH / stride;
    let masks: Vec<f32> = (0..3 * columns)
        .map(|i| match (i / columns, (i % columns) * stride >= WIDTH / 2) {
            (1, right) if eyes.sides => f32::from(u8::from(right)),
            (2, right) if eyes.sides => f32::from(u8::from(!right)),
            _ => 1.0,
        })
        .collect();
    let masks = net.floats(&[1, 3, 1, columns], masks);
    let masked = net.node("Mul", &[&found, &masks], vec![]);
    let (gain, offset) = (net.floats(&[1], vec![eyes.gain]), net.floats(&[1], vec![eyes.offset]));
    let scaled = net.node("Mul", &[&masked, &gain], vec![]);
    net.node("Add", &[&scaled, &offset], vec![])
}

pub(crate) fn image() -> [D; 4] {
    [D::N(1), D::N(3), D::N(HEIGHT as i64), D::N(WIDTH as i64)]
}

/// A heatmap model.
pub(crate) fn heatmap(stride: usize, eyes: Eyes, batch: D) -> Net {
    let mut net = Net::new();
    let mut dims = image();
    dims[0] = batch;
    let x = net.input("image", DataType::Float, &dims);
    let found = maps(&mut net, &x, stride, eyes);
    net.output("heatmaps", &found, &[batch, D::N(3), D::N((HEIGHT / stride) as i64), D::N((WIDTH / stride) as i64)]);
    net
}

/// A SimCC model with two bins per pixel: bin b lies at input pixel b / 2.
pub(crate) fn simcc(eyes: Eyes) -> Net {
    let mut net = Net::new();
    let x = net.input("image", DataType::Float, &image());
    let found = maps(&mut net, &x, 1, eyes);
    for (name, axis, pixels) in [("simcc_x", 2, WIDTH), ("simcc_y", 3, HEIGHT)] {
        let row = net.node("ReduceMax", &[&found], vec![ints("axes", &[axis]), int("keepdims", 0)]);
        // Between pixels, their mean.
        let mut spread = vec![0.0; pixels * 2 * pixels];
        for bin in 0..2 * pixels {
            for side in [bin / 2, (bin.div_ceil(2)).min(pixels - 1)] {
                spread[side * 2 * pixels + bin] += 0.5;
            }
        }
        let spread = net.floats(&[pixels, 2 * pixels], spread);
        let bins = net.node("MatMul", &[&row, &spread], vec![]);
        net.output(name, &bins, &[D::N(1), D::N(3), D::N(2 * pixels as i64)]);
    }
    net
}

/// Side of the one-stage models' fixed input.
pub(crate) const SIDE: usize = 192;
/// Pixels between their candidates.
pub(crate) const STRIDE: usize = 8;
/// Candidates look as far as this in each direction.
const REACH: usize = 36;

/// A weight for each place in a candidate's window.
type Moment<'f> = &'f dyn Fn(f32, f32) -> f32;

/// A one-stage model: at each cell, moments of the colours in a window give the body's box and the dots' places.
pub(crate) fn one_stage(dynamic: bool, transposed: bool) -> Net {
    let mut net = Net::new();
    let side = if dynamic { D::S("side") } else { D::N(SIDE as i64) };
    let width = if dynamic { D::S("width") } else { side };
    let x = net.input("images", DataType::Float, &[D::N(1), D::N(3), side, width]);
    let pick = |net: &mut Net, weights: [f32; 3]| net.conv(&x, &[weights.to_vec()], None, Window { k: 1, stride: 1, pads: [0; 4] });
    // Colours without grey.
    let (red, green, blue) = (pick(&mut net, [1.0, 0.0, 0.0]), pick(&mut net, [0.0, 1.0, 0.0]), pick(&mut net, [0.0, 0.0, 1.0]));
    let less = net.node("Min", &[&red, &green], vec![]);
    let beyond = |net: &mut Net, a: &str, b: &str| {
        let difference = net.node("Sub", &[a, b], vec![]);
        net.node("Relu", &[&difference], vec![])
    };
    let (r, g, b) = (beyond(&mut net, &red, &green), beyond(&mut net, &green, &red), beyond(&mut net, &blue, &less));
    let squared = net.node("Mul", &[&b, &b], vec![]);

    let at = |i: usize| i as f32 - (REACH as f32 - 0.5);
    let kernel =
        |f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> { (0..4 * REACH * REACH).map(|i| f(at(i % (2 * REACH)), at(i / (2 * REACH)))).collect() };
    let before = (REACH - STRIDE / 2) as i64;
    let pads = [before, before, REACH as i64, REACH as i64];
    let window = Window { k: 2 * REACH, stride: STRIDE as i64, pads };
    // One convolution for all moments of a colour, which are its channels.
    let moments = |net: &mut Net, x: &str, of: &[Moment<'_>]| -> Vec<String> {
        let kernels: Vec<Vec<f32>> = of.iter().map(|f| kernel(f)).collect();
        let all = net.conv(x, &kernels, None, window);
        let part = |i: usize| {
            let (start, end, axis) = (net.ints(&[i as i64]), net.ints(&[i as i64 + 1]), net.ints(&[1]));
            net.node("Slice", &[&all, &start, &end, &axis], vec![])
        };
        (0..of.len()).map(part).collect()
    };
    let tiny = net.floats(&[1], vec![1e-3]);
    // The first moment is the mass, which divides the others and comes back last.
    let means = |net: &mut Net, x: &str, of: &[Moment<'_>]| -> Vec<String> {
        let found = moments(net, x, of);
        let mass = net.node("Add", &[&found[0], &tiny], vec![]);
        found[1..].iter().map(|sum| net.node("Div", &[sum, &mass], vec![])).chain([mass.clone()]).collect()
    };
    let means_b = means(&mut net, &b, &[&|_, _| 1.0, &|dx, _| dx, &|_, dy| dy, &|dx, _| dx * dx, &|_, dy| dy * dy]);
    let [dx, dy, xx, yy, mass] = &means_b[..] else { unreachable!() };
    let extent = |net: &mut Net, mean: &str, square: &str| {
        let mean = net.node("Mul", &[mean, mean], vec![]);
        let variance = net.node("Sub", &[square, &mean], vec![]);
        // Of n pixels side by side the variance is (n² − 1) / 12.
        let twelve = net.floats(&[1], vec![12.0]);
        let wide = net.node("Mul", &[&variance, &twelve], vec![]);
        let one = net.floats(&[1], vec![1.0]);
        let wide = net.node("Add", &[&wide, &one], vec![]);
        let wide = net.node("Relu", &[&wide], vec![]);
        net.node("Sqrt", &[&wide], vec![])
    };
    let (w, h) = (extent(&mut net, dx, xx), extent(&mut net, dy, yy));

    // Brightness, highest in the cell next to the middle, 0 without a body.
    let (dx2, dy2) = (net.node("Mul", &[dx, dx], vec![]), net.node("Mul", &[dy, dy], vec![]));
    let distance = net.node("Add", &[&dx2, &dy2], vec![]);
    let spread = net.floats(&[1], vec![-1.0 / 72.0]);
    let exponent = net.node("Mul", &[&distance, &spread], vec![]);
    let near = net.node("Exp", &[&exponent], vec![]);
    let light = net.conv(&squared, &[vec![1.0; 4 * REACH * REACH]], None, window);
    let light = net.node("Div", &[&light, mass], vec![]);
    // Between two bodies there is nobody.
    let middle = net.conv(&b, &[vec![0.125; STRIDE * STRIDE]], None, Window { k: STRIDE, stride: STRIDE as i64, pads: [0; 4] });
    let score = net.node("Mul", &[&near, &light], vec![]);
    let (zero, one) = (net.floats(&[], vec![0.0]), net.floats(&[], vec![1.0]));
    let middle = net.node("Clip", &[&middle, &zero, &one], vec![]);
    let score = net.node("Mul", &[&score, &middle], vec![]);

    // Each cell's own place: 8 · index + 3.5 as pixel index.
    let grid = |net: &mut Net, axis: i64| {
        let nothing = net.floats(&[1], vec![0.0]);
        let zeros = net.node("Mul", &[dx, &nothing], vec![]);
        let ones = net.node("Add", &[&zeros, &one], vec![]);
        let axis = net.node_scalar(axis);
        let counted = net.node("CumSum", &[&ones, &axis], vec![]);
        let eight = net.floats(&[1], vec![STRIDE as f32]);
        let scaled = net.node("Mul", &[&counted, &eight], vec![]);
        let shift = net.floats(&[1], vec![3.5 - STRIDE as f32]);
        net.node("Add", &[&scaled, &shift], vec![])
    };
    let (gx, gy) = (grid(&mut net, 3), grid(&mut net, 2));
    let half = net.floats(&[1], vec![0.5]);
    let mut planes = Vec::new();
    for (offset, grid) in [(dx, &gx), (dy, &gy)] {
        let index = net.node("Add", &[offset, grid], vec![]);
        planes.push(net.node("Add", &[&index, &half], vec![]));
    }
    planes.extend([w, h, score]);
    let halves: [&dyn Fn(f32) -> f32; 3] = [&|_| 1.0, &|dx| f32::from(u8::from(dx > 0.0)), &|dx| f32::from(u8::from(dx < 0.0))];
    for (colour, half) in [&g, &r, &r].into_iter().zip(halves) {
        let found = means(&mut net, colour, &[&|dx, _| half(dx), &|dx, _| half(dx) * dx, &|dx, dy| half(dx) * dy]);
        for (offset, grid) in [(&found[0], &gx), (&found[1], &gy)] {
            planes.push(net.node("Add", &[offset, grid], vec![]));
        }
        let mass = &found[2];
        // Near 1 where there is a dot.
        let one_more = net.node("Add", &[mass, &one], vec![]);
        planes.push(net.node("Div", &[mass, &one_more], vec![]));
    }
    let names: Vec<&str> = planes.iter().map(String::as_str).collect();
    let planes = net.node("Concat", &names, vec![int("axis", 1)]);
    let shape = net.ints(&[1, CHANNELS as i64, -1]);
    let mut out = net.node("Reshape", &[&planes, &shape], vec![]);
    let mut dims = [D::N(1), D::N(CHANNELS as i64), D::S("candidates")];
    if transposed {
        out = net.node("Transpose", &[&out], vec![ints("perm", &[0, 2, 1])]);
        dims.swap(1, 2);
    }
    net.output("output0", &out, &dims);
    net
}

/// Numbers of a candidate: 4 of a box, a score, 3 for each of 3 keypoints.
pub(crate) const CHANNELS: usize = 14;

impl Net {
    fn node_scalar(&mut self, value: i64) -> String {
        self.initializer(&[], DataType::Int64, value.to_le_bytes().to_vec())
    }
}

pub(crate) fn skeleton() -> Skeleton {
    Skeleton::new(&["nose", "left_hand", "right_hand"], &[], None, None).unwrap()
}

#[derive(Clone, Copy)]
pub(crate) struct Person {
    pub(crate) body: Rect,
    pub(crate) blue: u8,
    /// Nose, left hand, right hand.
    pub(crate) points: [Point; 3],
}

pub(crate) const FRAME: Size = Size { width: 384, height: 192 };

/// Two people side by side, the brighter second. The hands are on the sides that a facing person has them: left on the right.
pub(crate) fn persons() -> [Person; 2] {
    let p = |x, y| Point { x, y };
    [
        Person { body: Rect::new(60.0, 50.0, 116.0, 130.0), blue: 150, points: [p(86.0, 64.0), p(103.0, 110.0), p(71.0, 92.0)] },
        Person { body: Rect::new(264.0, 60.0, 320.0, 140.0), blue: 210, points: [p(290.0, 76.0), p(309.0, 90.0), p(275.0, 124.0)] },
    ]
}

pub(crate) fn paint(size: Size, people: &[Person]) -> Frame {
    let (width, height) = (size.width as usize, size.height as usize);
    let mut rgb = vec![0; 3 * width * height];
    for person in people {
        let Rect { x1, y1, x2, y2 } = person.body;
        for (i, pixel) in rgb.chunks_exact_mut(3).enumerate() {
            let (x, y) = ((i % width) as f32 + 0.5, (i / width) as f32 + 0.5);
            if x1 < x && x < x2 && y1 < y && y < y2 {
                let near = |p: Point| (-((p.x - x).powi(2) + (p.y - y).powi(2)) / 50.0).exp() * 255.0;
                let [nose, left, right] = person.points;
                pixel.copy_from_slice(&[near(left).max(near(right)) as u8, near(nose) as u8, person.blue]);
            }
        }
    }
    Frame { size, rgb }
}

pub(crate) fn picture() -> Frame {
    paint(FRAME, &persons())
}

/// The frame in a mirror.
pub(crate) fn mirrored(frame: &Frame) -> Frame {
    let row = 3 * frame.size.width as usize;
    let rgb = frame.rgb.chunks_exact(row).flat_map(|row| row.chunks_exact(3).rev().flatten().copied()).collect();
    Frame { size: frame.size, rgb }
}
