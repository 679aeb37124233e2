//! A run over time: labels stored, memory, devices on the new release; faults as bands behind them.

use super::faults::Kind;
use super::memory::Sample;
use super::report::{Mark, Report};
use crate::chart::{COLOURS, FONT, INK, failed, text};
use anyhow::Result;
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, VPos};

/// Width and height of a panel, px.
const PANEL: (u32, u32) = (960, 230);

/// One line of a panel.
struct Line {
    name: &'static str,
    /// Seconds and values.
    points: Vec<(f64, f64)>,
}

const fn colour(kind: Kind) -> RGBColor {
    match kind {
        Kind::BrokerRestarted => RGBColor(230, 159, 0),
        Kind::CentreKilled => RGBColor(204, 60, 60),
        Kind::CentreStopped => RGBColor(120, 94, 240),
    }
}

/// The chart as SVG.
///
/// # Errors
/// The chart library refuses.
pub(crate) fn chart(report: &Report) -> Result<String> {
    let of = |value: fn(&Sample) -> Option<f64>| -> Vec<(f64, f64)> {
        report.samples.iter().filter_map(|sample| Some((sample.at, value(sample)?))).collect()
    };
    let mib = |kib: u64| kib as f64 / 1024.0;
    let stored = report.stored_by_second.iter().enumerate().map(|(second, &labels)| (second as f64, labels as f64)).collect();
    let memory = |name, usage: fn(&Sample) -> Option<super::memory::Usage>| {
        let points = report.samples.iter().filter_map(|sample| Some((sample.at, mib(usage(sample)?.rss_kib)))).collect();
        Line { name, points }
    };
    let panels = [
        ("Labels stored per second", vec![Line { name: "stored", points: stored }]),
        (
            "Resident memory, MiB",
            vec![
                memory("centre", |sample| sample.centre),
                memory("broker", |sample| sample.broker),
                memory("all simulated devices", |sample| sample.devices),
            ],
        ),
        (
            "Devices",
            vec![
                Line { name: "connected", points: of(|sample| Some(sample.connected as f64)) },
                Line { name: "on the new release", points: of(|sample| Some(sample.confirmed as f64)) },
            ],
        ),
    ];
    let end = panels.iter().flat_map(|(_, lines)| lines).flat_map(|line| &line.points).fold(1.0, |end: f64, (at, _)| end.max(*at));
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (PANEL.0, PANEL.1 * panels.len() as u32 + 30)).into_drawing_area();
        area.fill(&WHITE).map_err(failed)?;
        let (above, below) = area.split_vertically((PANEL.1 * panels.len() as u32) as i32);
        for (panel, (title, lines)) in above.split_evenly((panels.len(), 1)).iter().zip(&panels) {
            draw(panel, title, lines, &report.marks, end)?;
        }
        legend(&below, &report.marks)?;
        area.present().map_err(failed)?;
    }
    Ok(svg)
}

fn draw(panel: &DrawingArea<SVGBackend<'_>, Shift>, title: &str, lines: &[Line], marks: &[Mark], end: f64) -> Result<()> {
    let top = lines.iter().flat_map(|line| &line.points).fold(1.0, |top: f64, (_, value)| top.max(*value)) * 1.15;
    panel.draw(&Text::new(title.to_owned(), (70, 6), text(14, HPos::Left, VPos::Top))).map_err(failed)?;
    let mut chart = ChartBuilder::on(panel)
        .margin(10)
        .margin_top(26)
        .x_label_area_size(34)
        .y_label_area_size(62)
        .build_cartesian_2d(0.0..end, 0.0..top)
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_desc("seconds")
        .x_label_formatter(&|x| format!("{x:.0}"))
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .label_style((FONT, 12))
        .draw()
        .map_err(failed)?;
    // A short one is to be seen, too.
    let least = end / 400.0;
    let band = |mark: &Mark| {
        let corners = [(mark.at, 0.0), ((mark.at + mark.seconds.max(least)).min(end), top)];
        Rectangle::new(corners, colour(mark.kind).mix(0.35).filled())
    };
    chart.draw_series(marks.iter().map(band)).map_err(failed)?;
    for (line, colour) in lines.iter().zip(COLOURS) {
        chart
            .draw_series(LineSeries::new(line.points.iter().copied(), colour.stroke_width(2)))
            .map_err(failed)?
            .label(line.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(TRANSPARENT)
        .label_font((FONT, 12))
        .draw()
        .map_err(failed)
}

fn legend(area: &DrawingArea<SVGBackend<'_>, Shift>, marks: &[Mark]) -> Result<()> {
    let kinds = [Kind::BrokerRestarted, Kind::CentreKilled, Kind::CentreStopped];
    for (kind, x) in kinds.into_iter().zip([70, 340, 610]) {
        let count = marks.iter().filter(|mark| mark.kind == kind).count();
        area.draw(&Rectangle::new([(x, 6), (x + 14, 20)], colour(kind).mix(0.5).filled())).map_err(failed)?;
        let words = format!("{count} × {}", kind.name());
        area.draw(&Text::new(words, (x + 20, 6), text(13, HPos::Left, VPos::Top))).map_err(failed)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::memory::Usage;

    #[test]
    fn a_run_is_drawn_and_so_is_an_empty_one() {
        let usage = Some(Usage { rss_kib: 4096, anon_kib: 2048, descriptors: 9, cpu_ms: 0 });
        let sample = |at: u32| Sample { at: f64::from(at), centre: usage.filter(|_| at != 5), connected: 20, ..Sample::default() };
        let marks = vec![Mark { at: 4.0, seconds: 1.5, kind: Kind::CentreKilled }];
        let report = Report { samples: (0..20).map(sample).collect(), stored_by_second: vec![7; 20], marks, ..Report::default() };
        let svg = chart(&report).unwrap();
        assert!(svg.contains("1 × centre killed") && svg.contains("on the new release") && svg.trim_end().ends_with("</svg>"));
        assert!(chart(&Report::default()).unwrap().contains("Labels stored per second"));
    }
}
