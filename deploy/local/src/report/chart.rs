//! Charts as inline SVG. Colours of text and axes are taken over by the page's style sheet, so that they follow its theme.

use anyhow::anyhow;
use plotters::prelude::*;

const FONT: &str = "sans-serif";
/// What the style sheet replaces by its own ink.
const INK: RGBColor = RGBColor(0, 0, 0);

/// One line of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// RGB.
    pub colour: (u8, u8, u8),
    /// x rising.
    pub points: Vec<(f64, f64)>,
}

/// One bar of a chart.
#[derive(Clone, Debug, PartialEq)]
pub struct Bar {
    /// Below it.
    pub name: String,
    /// RGB.
    pub colour: (u8, u8, u8),
    /// Its height.
    pub value: f64,
    /// Drawn hollow: not measured in this run.
    pub hollow: bool,
}

fn rgb((r, g, b): (u8, u8, u8)) -> RGBColor {
    RGBColor(r, g, b)
}

/// Lines over x from 0.
///
/// # Errors
/// The chart library refuses.
pub(super) fn lines(x: &str, y: &str, series: &[Series]) -> anyhow::Result<String> {
    let fold = |values: &mut dyn Iterator<Item = f64>| values.filter(|v| v.is_finite()).fold(0.0, f64::max);
    let right = fold(&mut series.iter().flat_map(|s| s.points.iter().map(|p| p.0))).max(1.0);
    let top = fold(&mut series.iter().flat_map(|s| s.points.iter().map(|p| p.1))).max(1e-6) * 1.05;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (640, 300)).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(16)
            .x_label_area_size(36)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..right, 0.0..top)
            .map_err(|error| anyhow!("chart: {error}"))?;
        chart
            .configure_mesh()
            .x_desc(x)
            .y_desc(y)
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .label_style((FONT, 13))
            .draw()
            .map_err(|error| anyhow!("chart: {error}"))?;
        for line in series {
            let colour = rgb(line.colour);
            let points = line.points.iter().copied().filter(|p| p.0.is_finite() && p.1.is_finite());
            chart
                .draw_series(LineSeries::new(points, colour.stroke_width(2)))
                .map_err(|error| anyhow!("chart: {error}"))?
                .label(line.name.clone())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .border_style(TRANSPARENT)
            .label_font((FONT, 13))
            .draw()
            .map_err(|error| anyhow!("chart: {error}"))?;
        root.present().map_err(|error| anyhow!("chart: {error}"))?;
    }
    Ok(inline(&svg))
}

/// Bars from 0, each with its value above it.
///
/// # Errors
/// The chart library refuses.
pub(super) fn bars(y: &str, bars: &[Bar]) -> anyhow::Result<String> {
    let top = bars.iter().map(|b| b.value).filter(|v| v.is_finite()).fold(1e-3, f64::max) * 1.18;
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (640, 300)).into_drawing_area();
        let names: Vec<String> = bars.iter().map(|b| b.name.clone()).collect();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .x_label_area_size(30)
            .y_label_area_size(48)
            .build_cartesian_2d(0.0..bars.len() as f64, 0.0..top)
            .map_err(|error| anyhow!("chart: {error}"))?;
        chart
            .configure_mesh()
            .disable_x_mesh()
            .disable_x_axis()
            .y_desc(y)
            .light_line_style(TRANSPARENT)
            .bold_line_style(INK.mix(0.12))
            .label_style((FONT, 13))
            .draw()
            .map_err(|error| anyhow!("chart: {error}"))?;
        for (index, bar) in bars.iter().enumerate() {
            let (left, right) = (index as f64 + 0.18, index as f64 + 0.82);
            let colour = rgb(bar.colour);
            let style = if bar.hollow { colour.stroke_width(2) } else { colour.filled() };
            chart.draw_series([Rectangle::new([(left, 0.0), (right, bar.value)], style)]).map_err(|error| anyhow!("chart: {error}"))?;
            let centred = |size: i32| {
                (FONT, size).into_font().color(&INK).pos(plotters::style::text_anchor::Pos::new(
                    plotters::style::text_anchor::HPos::Center,
                    plotters::style::text_anchor::VPos::Bottom,
                ))
            };
            let middle = index as f64 + 0.5;
            chart
                .draw_series([Text::new(format!("{:.1}", bar.value), (middle, bar.value + top * 0.015), centred(15))])
                .map_err(|error| anyhow!("chart: {error}"))?;
            let (x, y) = chart.backend_coord(&(middle, 0.0));
            root.draw(&Text::new(names[index].clone(), (x, y + 22), centred(13))).map_err(|error| anyhow!("chart: {error}"))?;
        }
        root.present().map_err(|error| anyhow!("chart: {error}"))?;
    }
    Ok(inline(&svg))
}

/// The `<svg>` element alone, scaling with the page.
fn inline(svg: &str) -> String {
    let start = svg.find("<svg").unwrap_or(0);
    let element = svg[start..].replacen("width=\"640\" height=\"300\"", "class=\"chart\"", 1);
    element.replace("stroke=\"#000000\"", "stroke=\"currentColor\"").replace("fill=\"#000000\"", "fill=\"currentColor\"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_chart_names_its_series_and_survives_odd_values() {
        let series = [
            Series { name: "student".into(), colour: (1, 2, 3), points: vec![(0.0, 3.0), (10.0, f64::NAN), (20.0, 1.0)] },
            Series { name: "nothing yet".into(), colour: (4, 5, 6), points: Vec::new() },
        ];
        let svg = lines("step", "loss", &series).unwrap();
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"));
        for text in ["student", "nothing yet", "step", "loss", "#010203", "class=\"chart\""] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
        assert!(!svg.contains("NaN"));
    }

    #[test]
    fn a_bar_chart_shows_each_value() {
        let bar = |name: &str, value: f64, hollow: bool| Bar { name: name.into(), colour: (9, 9, 9), value, hollow };
        let svg = bars("AP", &[bar("lower", 12.3, false), bar("upper", 45.6, true)]).unwrap();
        for text in ["lower", "upper", "12.3", "45.6"] {
            assert!(svg.contains(text), "{text} is missing in {svg}");
        }
    }
}
