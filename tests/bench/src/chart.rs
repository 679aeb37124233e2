//! Charts as SVG.

use crate::compare::CaseReport;
use crate::scale::Curve;
use crate::stats::Spread;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

const FONT: &str = "sans-serif";
const INK: RGBColor = RGBColor(40, 40, 40);
const FASTER: RGBColor = RGBColor(0, 114, 178);
const SLOWER: RGBColor = RGBColor(213, 94, 0);
/// Height of a bar with its gap, px.
const ROW: u32 = 30;

fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("chart: {error}")
}

fn text(size: i32, h: HPos, v: VPos) -> TextStyle<'static> {
    (FONT, size).into_font().color(&INK).pos(Pos::new(h, v))
}

/// The ratio of each peer in each case, on a logarithmic axis around 1.
pub(crate) fn ratios(cases: &[CaseReport]) -> Result<String> {
    let rows: Vec<(String, Spread)> = cases
        .iter()
        .flat_map(|case| case.sides.iter().filter_map(|side| Some((format!("{} / {}", case.what, side.side), side.ratio?))))
        .collect();
    let low = rows.iter().map(|(_, r)| r.q1).fold(0.5, f64::min) / 1.3;
    let high = rows.iter().map(|(_, r)| r.q3).fold(2.0, f64::max) * 1.9;
    let height = 84 + ROW * rows.len().max(1) as u32;
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (900, height)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let title = "Seconds of the peer over seconds of omnilabel (median and quartiles; right of 1: omnilabel is faster)";
        area.draw(&Text::new(title, (12, 8), text(14, HPos::Left, VPos::Top))).map_err(failed)?;
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .margin_top(30)
            .x_label_area_size(30)
            .y_label_area_size(380)
            .build_cartesian_2d((low..high).log_scale(), 0.0..rows.len().max(1) as f64)
            .map_err(failed)?;
        chart
            .configure_mesh()
            .disable_y_mesh()
            .disable_y_axis()
            .x_label_formatter(&|x| format!("{x}"))
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .label_style((FONT, 13))
            .draw()
            .map_err(failed)?;
        for (index, (name, ratio)) in rows.iter().enumerate() {
            let y = (rows.len() - index) as f64 - 0.5;
            let colour = if ratio.median >= 1.0 { FASTER } else { SLOWER };
            let (left, right) = (ratio.median.min(1.0), ratio.median.max(1.0));
            chart.draw_series([Rectangle::new([(left, y - 0.3), (right, y + 0.3)], colour.mix(0.75).filled())]).map_err(failed)?;
            chart.draw_series(LineSeries::new([(ratio.q1, y), (ratio.q3, y)], INK.stroke_width(2))).map_err(failed)?;
            let label = format!("{:.2}", ratio.median);
            let end = right.max(ratio.q3) * 1.04;
            chart.draw_series([Text::new(label, (end, y), text(13, HPos::Left, VPos::Center))]).map_err(failed)?;
            let (_, at) = chart.backend_coord(&(1.0, y));
            area.draw(&Text::new(name.clone(), (382, at), text(13, HPos::Right, VPos::Center))).map_err(failed)?;
        }
        chart.draw_series(LineSeries::new([(1.0, 0.0), (1.0, rows.len() as f64)], INK.stroke_width(1))).map_err(failed)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];
/// Width and height of a curve's panel, px.
const PANEL: (u32, u32) = (480, 330);

/// Every curve in a panel of its own, on logarithmic axes.
pub(crate) fn curves(curves: &[Curve]) -> Result<String> {
    let columns = 2;
    let rows = curves.len().div_ceil(columns).max(1);
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (PANEL.0 * columns as u32, PANEL.1 * rows as u32)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        for (panel, curve) in area.split_evenly((rows, columns)).iter().zip(curves) {
            draw(panel, curve)?;
        }
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn draw(panel: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>, curve: &Curve) -> Result<()> {
    let around = |values: &mut dyn Iterator<Item = f64>| {
        let (low, high) = values.filter(|v| *v > 0.0).fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)));
        if high > 0.0 { low / 1.25..high * 1.6 } else { 0.5..2.0 }
    };
    let xs = around(&mut curve.points.iter().map(|point| point.x));
    let ys = around(&mut curve.points.iter().flat_map(|point| point.y.iter().map(|(_, y)| *y)));
    panel.draw(&Text::new(curve.title.clone(), (PANEL.0 as i32 / 2, 8), text(15, HPos::Center, VPos::Top))).map_err(failed)?;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .margin_top(30)
        .x_label_area_size(40)
        .y_label_area_size(62)
        .build_cartesian_2d(xs.log_scale(), ys.log_scale())
        .map_err(failed)?;
    let number = |v: &f64| if *v >= 1.0 { format!("{v:.0}") } else { format!("{v}") };
    chart
        .configure_mesh()
        .x_desc(curve.x.clone())
        .y_desc(curve.y.clone())
        .x_label_formatter(&number)
        .y_label_formatter(&number)
        .light_line_style(INK.mix(0.05))
        .bold_line_style(INK.mix(0.15))
        .label_style((FONT, 13))
        .draw()
        .map_err(failed)?;
    let mut sides: Vec<&String> = Vec::new();
    for (side, _) in curve.points.iter().flat_map(|point| &point.y) {
        if !sides.contains(&side) {
            sides.push(side);
        }
    }
    for (side, colour) in sides.into_iter().zip(COLOURS) {
        let points: Vec<(f64, f64)> =
            curve.points.iter().filter_map(|point| Some((point.x, point.y.iter().find(|(name, _)| name == side)?.1))).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), colour.stroke_width(2)))
            .map_err(failed)?
            .label(side.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        chart.draw_series(points.into_iter().map(|at| Circle::new(at, 3, colour.filled()))).map_err(failed)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(TRANSPARENT)
        .label_font((FONT, 13))
        .draw()
        .map_err(failed)
}
