//! Charts as SVG.

use crate::compare::CaseReport;
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
