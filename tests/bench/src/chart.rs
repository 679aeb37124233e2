//! Charts as SVG.

use crate::compare::{CaseReport, QUIET};
use crate::scale::Curve;
use crate::stats::Spread;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

pub(crate) const FONT: &str = "sans-serif";
pub(crate) const INK: RGBColor = RGBColor(40, 40, 40);
const FASTER: RGBColor = RGBColor(0, 114, 178);
const SLOWER: RGBColor = RGBColor(213, 94, 0);
/// Height of a bar with its gap, px.
const ROW: u32 = 30;

pub(crate) fn failed(error: impl std::fmt::Display) -> anyhow::Error {
    anyhow!("chart: {error}")
}

pub(crate) fn text(size: i32, h: HPos, v: VPos) -> TextStyle<'static> {
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

pub(crate) const COLOURS: [RGBColor; 3] = [RGBColor(0, 114, 178), RGBColor(213, 94, 0), RGBColor(0, 158, 115)];
/// Width and height of a curve's panel, px.
const PANEL: (u32, u32) = (480, 330);

/// Every curve in a panel of its own, y from nought. A hollow point was measured while others took the processor.
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
    let place = |x: f64| if curve.logarithmic { x.max(f64::MIN_POSITIVE).log2() } else { x };
    let xs: Vec<f64> = curve.points.iter().map(|point| place(point.x)).collect();
    let (left, right) = xs.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), x| (low.min(*x), high.max(*x)));
    let margin = 0.06 * (right - left).max(1.0);
    let top = curve.points.iter().flat_map(|point| point.y.iter().map(|(_, y)| *y)).fold(1e-6, f64::max) * 1.4;
    panel.draw(&Text::new(curve.title.clone(), (PANEL.0 as i32 / 2, 8), text(15, HPos::Center, VPos::Top))).map_err(failed)?;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .margin_top(30)
        .x_label_area_size(40)
        .y_label_area_size(62)
        .build_cartesian_2d(left - margin..right + margin, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(0)
        .x_desc(curve.x.clone())
        .y_desc(curve.y.clone())
        .y_label_formatter(&|y| if top > 5.0 { format!("{y:.0}") } else { format!("{y:.2}") })
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.15))
        .label_style((FONT, 13))
        .draw()
        .map_err(failed)?;
    let (corner, _) = panel.get_pixel_range();
    let above = panel.get_pixel_range().1.start;
    let mut free = i32::MIN;
    for (point, x) in curve.points.iter().zip(&xs) {
        let (at, bottom) = chart.backend_coord(&(*x, 0.0));
        if at < free {
            continue;
        }
        free = at + 24;
        let name = Text::new(format!("{}", point.x), (at - corner.start, bottom - above + 5), text(12, HPos::Center, VPos::Top));
        panel.draw(&name).map_err(failed)?;
    }
    let mut sides: Vec<&String> = Vec::new();
    for (side, _) in curve.points.iter().flat_map(|point| &point.y) {
        if !sides.contains(&side) {
            sides.push(side);
        }
    }
    for (side, colour) in sides.into_iter().zip(COLOURS) {
        let of = |point: &crate::scale::Point| Some(point.y.iter().find(|(name, _)| name == side)?.1);
        let points: Vec<(f64, f64, bool)> =
            curve.points.iter().filter_map(|point| Some((place(point.x), of(point)?, point.report.others > QUIET))).collect();
        chart
            .draw_series(LineSeries::new(points.iter().map(|&(x, y, _)| (x, y)), colour.stroke_width(2)))
            .map_err(failed)?
            .label(side.clone())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        let dot = |(x, y, busy)| Circle::new((x, y), 3, if busy { colour.stroke_width(1) } else { colour.filled() });
        chart.draw_series(points.into_iter().map(dot)).map_err(failed)?;
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
