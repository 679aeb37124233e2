//! The report's files: tables as Markdown, everything as JSON, curves as SVG.

use super::plan::{Drawn, Plan};
use super::quality::PARTS;
use super::record::{Hard, LabelRecord, Quality, Record};
use super::summary::{Equal, GAP_ERRORS, Gain, Row, Summary};
use super::{ArmError, ExperimentError};
use crate::arm::write_atomically;
use crate::calibrate::Calibration;
use crate::evaluate::Bin;
use plotters::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::Path;

/// Width of a picture, px.
const WIDTH: u32 = 800;

/// Arms whose calibration is drawn: more lines are not told apart. The table has all.
const DRAWN: usize = 8;

/// Writes `report.json`, `report.md` and the pictures.
pub(super) fn write(out: &Path, plan: &Plan, summary: &Summary) -> Result<(), ExperimentError> {
    let json = out.join("report.json");
    let text = serde_json::to_vec_pretty(summary).map_err(|source| ArmError::Json { path: json.clone(), source })?;
    write_atomically(&json, &text)?;
    write_atomically(&out.join("report.md"), markdown(plan, summary)?.as_bytes())?;
    // Without a point there is nothing to draw.
    for (name, picture) in [
        ("curves.svg", curves(&lines(plan, summary), summary.equal.len())),
        ("gains.svg", gains(summary)),
        ("calibration.svg", calibration(summary)),
    ] {
        let picture = picture.map_err(|error| ExperimentError::Report(format!("{name}: {error}")))?;
        let path = out.join(name);
        match picture {
            Some(svg) => write_atomically(&path, svg.as_bytes())?,
            // That of an earlier report is of other records.
            None if path.exists() => std::fs::remove_file(&path).map_err(ArmError::io(&path))?,
            None => {}
        }
    }
    Ok(())
}

/// A share in percent with one digit, or a dash.
fn percent(value: f64) -> String {
    if value < 0.0 { "–".to_owned() } else { format!("{:.1}", 100.0 * value) }
}

impl Summary {
    /// The tables for people, as Markdown.
    pub fn tables(&self) -> String {
        let mut text = table(&self.equal);
        for Equal { steps, rows } in &self.lengths {
            let _ = write!(text, "\nWith {steps} steps each:\n\n{}", table(rows));
        }
        // An arm that had no choice would be compared with bounds that had one.
        let tried = |row: &&Row| self.records.iter().any(|record| record.arm == row.arm && record.steps != row.steps);
        let best: Vec<Row> = self.best.iter().filter(tried).cloned().collect();
        if !best.is_empty() {
            let _ = write!(text, "\nEach arm at the length that was best on the held-out labelled images:\n\n{}", table(&best));
        }
        if let Some(labels) = labels(&self.equal) {
            let _ = write!(
                text,
                "\nThe teachers' detections on the unlabelled images, where the truth is known (with `most_agreed`, on those that are learnt \
                 from):\n\n{labels}"
            );
        }
        if !self.missing.is_empty() {
            let _ = write!(text, "\nNot run: {}.\n", self.missing.join(", "));
        }
        text
    }
}

fn table(rows: &[Row]) -> String {
    let compared = rows.iter().any(|row| row.against.is_some());
    let (against, line) = if compared { ("less the reference | ", "---|") } else { ("", "") };
    let mut text = format!(
        "| arm | steps | manual + generated | seeds | AP | AP50 | AP75 | AP_M | AP_L | PCK | held-out AP | gain (± standard error) | {against}gap \
         recovered |\n|---|---|---|---|---|---|---|---|---|---|---|---|{line}---|\n"
    );
    for row in rows {
        let s = &row.mean;
        let deviation = row.ap_deviation.map(|d| format!(" ± {:.1}", 100.0 * d)).unwrap_or_default();
        let gain = |gain: Option<Gain>| {
            gain.map_or_else(|| "–".to_owned(), |gain| format!("{:+.1} ± {:.1}", 100.0 * gain.ap, 100.0 * gain.standard_error))
        };
        let against = if compared { format!("{} | ", gain(row.against)) } else { String::new() };
        let gap = match row.gap.map(|gap| (100.0 * gap.recovered, gap.interval)) {
            None => "–".to_owned(),
            Some((recovered, None)) => format!("{recovered:.0} % (one seed)"),
            Some((recovered, Some([from, to]))) => format!("{recovered:.0} % ({:.0} to {:.0})", 100.0 * from, 100.0 * to),
        };
        let gain = gain(row.gain);
        let _ = writeln!(
            text,
            "| {} | {} | {:.0} + {:.0} | {} | {}{deviation} | {} | {} | {} | {} | {} | {} | {gain} | {against}{gap} |",
            row.arm,
            row.steps,
            row.manual_images,
            row.generated_images,
            row.seeds.len(),
            percent(s.ap),
            percent(s.ap50),
            percent(s.ap75),
            percent(s.ap_m),
            percent(s.ap_l),
            row.pck.map_or_else(|| "–".to_owned(), percent),
            percent(row.held_out_ap),
        );
    }
    text
}

fn labels(rows: &[Row]) -> Option<String> {
    let known: Vec<_> = rows.iter().filter_map(|row| row.labels.map(|labels| (row, labels))).collect();
    if known.is_empty() {
        return None;
    }
    let mut text = "| arm | AP, one view | AP, all views | PCK, one view | PCK, all views |\n|---|---|---|---|---|\n".to_owned();
    for (row, labels) in known {
        let pck = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), percent);
        let aps = [labels.single_ap, labels.ensemble_ap].map(percent);
        let _ = writeln!(text, "| {} | {} | {} | {} | {} |", row.arm, aps[0], aps[1], pck(labels.single_pck), pck(labels.ensemble_pck));
    }
    Some(text)
}

/// The records behind a row.
fn records_of<'s>(summary: &'s Summary, row: &'s Row) -> impl Iterator<Item = &'s Record> {
    summary.records.iter().filter(|record| record.arm == row.arm && record.steps == row.steps)
}

/// How many labels there are and what they are like by size: what the thresholds were matched to, and what came of it.
fn counts(summary: &Summary) -> String {
    let mut text = String::new();
    for row in &summary.equal {
        let found: Vec<&LabelRecord> = records_of(summary, row).filter_map(|record| record.labels.as_ref()).collect();
        if found.is_empty() {
            continue;
        }
        let mean =
            |value: &dyn Fn(&Calibration) -> f64| found.iter().map(|labels| value(&labels.calibration)).sum::<f64>() / found.len() as f64;
        let thirds = |of: fn(&Quality) -> Option<[f64; 3]>| {
            row.labels.as_ref().and_then(of).map_or_else(|| "–".to_owned(), |thirds| thirds.map(percent).join(" / "))
        };
        let both = |of: fn(&Hard) -> Option<f64>| {
            let of = |hard: Option<Hard>| hard.as_ref().and_then(of).map_or_else(|| "–".to_owned(), percent);
            row.labels.map_or_else(|| "–".to_owned(), |labels| format!("{} → {}", of(labels.single_hard), of(labels.ensemble_hard)))
        };
        let _ = writeln!(
            text,
            "| {} | {:.2} → {:.2} | {:.2} → {:.2} | {:.3} | {} | {} | {} | {} |",
            row.arm,
            mean(&|c| c.instance.wanted_mean),
            mean(&|c| c.instance.realised_mean),
            mean(&|c| c.keypoint.wanted_mean),
            mean(&|c| c.keypoint.realised_mean),
            mean(&|c| f64::from(c.thresholds.instance)),
            both(|hard| Some(hard.ap)),
            both(|hard| hard.pck),
            thirds(|quality| quality.single_terciles),
            thirds(|quality| quality.ensemble_terciles),
        );
    }
    if text.is_empty() {
        return text;
    }
    format!(
        "\nHard labels: how many on all images, the mean that a threshold was to match and what it gave, before `min_agreement` and `most_agreed`; of \
         those that are learnt from, where the truth is known, AP of the labelled people and PCK of the labelled keypoints of one view and of all, \
         and the AP of detections by thirds of the people's areas, small to large:\n\n\
         | arm | people a picture | keypoints a person | τ | AP of labels | PCK of labels | AP by size, one view | AP by size, all views |\n\
         |---|---|---|---|---|---|---|---|\n{text}"
    )
}

/// Means over the records of an arm, part by part.
fn parts(summary: &Summary, of: fn(&LabelRecord) -> &[Bin]) -> Vec<(&str, Vec<Bin>)> {
    let rows = summary.equal.iter().map(|row| {
        let found: Vec<&[Bin]> =
            records_of(summary, row).filter_map(|record| record.labels.as_ref()).map(of).filter(|bins| !bins.is_empty()).collect();
        let length = found.iter().map(|bins| bins.len()).min().unwrap_or(0);
        let mean = |value: &dyn Fn(&Bin) -> f64, part: usize| found.iter().map(|bins| value(&bins[part])).sum::<f64>() / found.len() as f64;
        let bin = |part: usize| Bin {
            from: mean(&|bin| f64::from(bin.from), part) as f32,
            to: mean(&|bin| f64::from(bin.to), part) as f32,
            count: found.iter().map(|bins| bins[part].count).sum(),
            mean: mean(&|bin| bin.mean, part),
        };
        (row.arm.as_str(), (0..length).map(bin).collect())
    });
    rows.filter(|(_, bins): &(&str, Vec<Bin>)| !bins.is_empty()).collect()
}

/// How to read one of the two numbers that travel with a label, the score and the agreement.
struct Calibrated {
    title: &'static str,
    axes: [&'static str; 2],
    of: fn(&LabelRecord) -> &[Bin],
}

/// All of them.
const CALIBRATED: [Calibrated; 3] = [
    Calibrated {
        title: "AP of the labels of pictures by the mean agreement of the views on them, fifths from low to high",
        axes: ["mean agreement on a picture", "AP of its labels"],
        of: |labels| &labels.ap_by_agreement,
    },
    Calibrated {
        title: "PCK of generated keypoints by the agreement of the views, fifths from low to high",
        axes: ["agreement of the views", "PCK of generated keypoints"],
        of: |labels| &labels.pck_by_agreement,
    },
    Calibrated {
        title: "OKS of the teachers' detections with the nearest person by their score, fifths from low to high",
        axes: ["score of a detection", "OKS with the nearest person"],
        of: |labels| &labels.oks_by_score,
    },
];

/// The calibrations of the labels, an arm a row.
fn calibrations(summary: &Summary) -> String {
    let mut text = String::new();
    for Calibrated { title, of, .. } in CALIBRATED {
        let rows = parts(summary, of);
        if rows.is_empty() {
            continue;
        }
        let _ = write!(text, "\n{title} (bounds in brackets):\n\n| arm | 1 | 2 | 3 | 4 | 5 |\n|---|---|---|---|---|---|\n");
        for (arm, bins) in rows {
            let empty = std::iter::repeat_n(" – |".to_owned(), PARTS.saturating_sub(bins.len()));
            let cells = bins.iter().map(|bin| format!(" {:.1} ({:.2} to {:.2}) |", 100.0 * bin.mean, bin.from, bin.to)).chain(empty);
            let _ = writeln!(text, "| {arm} |{}", cells.collect::<String>());
        }
    }
    text
}

fn markdown(plan: &Plan, summary: &Summary) -> Result<String, ExperimentError> {
    let mut text = format!("# {}\n\n{}{}", summary.name, summary.tables(), counts(summary) + &calibrations(summary));
    let _ = write!(
        text,
        "\nAP and PCK in %, means over the seeds ± their standard deviation; {}. Gain: AP less that of `{}`; its standard error joins the test \
         images' part (paired bootstrap, {} resamples) and the seeds', which one seed does not have. Gap recovered: gain over the gain of {}, with \
         a 95 % interval but for one seed, where that gain is {GAP_ERRORS:.0} standard errors or more, of arms with generated labels that were tested \
         like the bounds and, but for the table of best lengths, trained for as long. Held-out AP: of the labelled images that nothing is trained on, by which choices are made. PCK: within 0.2 torso \
         diameters.{}\n",
        match plan.data.draw {
            Drawn::Random => "every seed draws its own labelled images",
            Drawn::First => "all seeds have the same labelled images",
        },
        plan.lower,
        plan.resamples,
        plan.upper.as_ref().map_or_else(|| "an upper bound".to_owned(), |upper| format!("`{upper}`")),
        plan.reference
            .as_ref()
            .map_or_else(String::new, |name| format!(" Less the reference: AP less that of `{name}`, over the seeds that both have.")),
    );
    let machines: BTreeSet<String> = summary
        .records
        .iter()
        .map(|record| &record.machine)
        .map(|m| format!("{}, {:?} ({} threads, {})", m.device, m.precision, m.threads, m.arch))
        .collect();
    // Arms that share a model share its training.
    let trained: BTreeMap<String, f64> = summary.records.iter().map(|record| (record.recipe.key(), record.train_s)).collect();
    let hours: f64 = trained.values().sum::<f64>() / 3600.0;
    let _ = writeln!(
        text,
        "\n{} records, {hours:.1} hours of training on {}. Minutes of training: {}. AP by thirds of the people's areas, small to large: {}.",
        summary.records.len(),
        machines.into_iter().collect::<Vec<_>>().join(", "),
        summary.equal.iter().map(|row| format!("{} {:.0}", row.arm, row.train_s / 60.0)).collect::<Vec<_>>().join(", "),
        summary.equal.iter().map(|row| format!("{} {}", row.arm, row.terciles.map(percent).join(" / "))).collect::<Vec<_>>().join("; "),
    );
    let plan = toml::to_string(plan).map_err(|error| ExperimentError::Report(format!("the plan as TOML: {error}")))?;
    let _ = write!(text, "\nThe plan, with every default, paths as they were found:\n\n```toml\n{plan}```\n");
    Ok(text)
}

/// What is drawn of each arm: the curve of its first seed with its own length. Of many arms, the bounds and the first others.
fn lines<'s>(plan: &Plan, summary: &'s Summary) -> Vec<&'s Record> {
    let first = |row: &Row| summary.records.iter().find(|record| record.arm == row.arm && record.steps == row.steps);
    let is_bound = |record: &&Record| record.arm == plan.lower || plan.upper.as_ref() == Some(&record.arm);
    let (bounds, others): (Vec<&Record>, Vec<&Record>) =
        summary.equal.iter().filter_map(first).filter(|record| record.curve.len() > 1).partition(is_bound);
    bounds.into_iter().chain(others).take(DRAWN).collect()
}

/// The text of an axis, with how many arms are drawn where that is not all.
fn axis(text: &str, drawn: usize, arms: usize) -> String {
    if drawn < arms { format!("{text} ({drawn} of {arms} arms)") } else { text.to_owned() }
}

/// A picture, where there is something to draw.
type Picture = Result<Option<String>, Box<dyn std::error::Error>>;

/// The keypoint loss over the steps.
fn curves(lines: &[&Record], arms: usize) -> Picture {
    if lines.is_empty() {
        return Ok(None);
    }
    let points = || lines.iter().flat_map(|record| &record.curve);
    let right = points().map(|point| point.step).max().unwrap_or(1) as f64;
    let losses = || points().map(|point| f64::from(point.keypoint));
    let (bottom, top) = (0.95 * losses().fold(f64::INFINITY, f64::min), 1.05 * losses().fold(1e-6, f64::max));
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 420)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart =
            ChartBuilder::on(&root).margin(12).x_label_area_size(40).y_label_area_size(52).build_cartesian_2d(0.0..right, bottom..top)?;
        chart
            .configure_mesh()
            .x_desc(axis("optimiser steps", lines.len(), arms))
            .y_desc("keypoint loss")
            .light_line_style(TRANSPARENT)
            .draw()?;
        for (index, record) in lines.iter().enumerate() {
            let colour = Palette99::pick(index).to_rgba();
            let line = record.curve.iter().map(|point| (point.step as f64, f64::from(point.keypoint)));
            chart
                .draw_series(LineSeries::new(line, colour.stroke_width(2)))?
                .label(record.arm.clone())
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
        }
        chart.configure_series_labels().border_style(TRANSPARENT).position(SeriesLabelPosition::UpperRight).draw()?;
        root.present()?;
    }
    Ok(Some(svg))
}

/// Every arm's gain with its 95 % interval, from above in the order of the table.
fn gains(summary: &Summary) -> Picture {
    let rows: Vec<_> = summary.equal.iter().filter_map(|row| Some((row, row.gain?))).collect();
    if rows.is_empty() {
        return Ok(None);
    }
    let ends = |(_, gain): &(&Row, Gain)| gain.interval.map(|end| 100.0 * end);
    let all = || rows.iter().flat_map(ends);
    let (left, right) = (all().fold(0.0, f64::min), all().fold(0.0, f64::max));
    let margin = 0.05 * (right - left).max(0.1);
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 80 + 24 * rows.len() as u32)).into_drawing_area();
        root.fill(&WHITE)?;
        let across = left - margin..right + margin;
        // Segments include the end.
        let down = (0..rows.len() - 1).into_segmented();
        let mut chart = ChartBuilder::on(&root).margin(12).x_label_area_size(40).y_label_area_size(200).build_cartesian_2d(across, down)?;
        let name = |place: &SegmentValue<usize>| match place {
            SegmentValue::Exact(i) | SegmentValue::CenterOf(i) => {
                rows.iter().rev().nth(*i).map_or_else(String::new, |(row, _)| row.arm.clone())
            }
            SegmentValue::Last => String::new(),
        };
        let mut mesh = chart.configure_mesh();
        mesh.disable_y_mesh().y_labels(rows.len()).y_label_formatter(&name).light_line_style(TRANSPARENT);
        mesh.x_desc("gain over the lower bound, AP points, with its 95 % interval").draw()?;
        let (bottom, top) = (SegmentValue::Exact(0), SegmentValue::Last);
        chart.draw_series([PathElement::new([(0.0, bottom), (0.0, top)], BLACK)])?;
        for (index, row) in rows.iter().rev().enumerate() {
            let (at, colour) = (SegmentValue::CenterOf(index), Palette99::pick(0).to_rgba());
            let [from, to] = ends(row);
            chart.draw_series([PathElement::new([(from, at.clone()), (to, at.clone())], colour.stroke_width(2))])?;
            chart.draw_series([Circle::new((100.0 * row.1.ap, at), 4, colour.filled())])?;
        }
        root.present()?;
    }
    Ok(Some(svg))
}

/// Whether agreement and score mean what they say: a panel each. Of arms that have the same labels in a seed, the first is drawn.
fn calibration(summary: &Summary) -> Picture {
    let panels = CALIBRATED.map(|calibrated| {
        let mut known: Vec<(u64, &[Bin])> = Vec::new();
        let new = |(arm, _): &(&str, Vec<Bin>)| {
            let of_arm =
                |record: &&Record| summary.equal.iter().any(|row| row.arm == *arm && record.arm == row.arm && record.steps == row.steps);
            let ours = summary.records.iter().filter(of_arm);
            let ours = ours.filter_map(|record| Some((record.seed, record.labels.as_ref().map(calibrated.of)?)));
            // Records of an earlier version have none of some, which does not make them the same.
            let ours: Vec<_> = ours.filter(|(_, bins)| !bins.is_empty()).collect();
            let new = ours.iter().all(|bins| !known.contains(bins));
            known.extend(ours);
            new
        };
        let mut lines: Vec<_> = parts(summary, calibrated.of).into_iter().filter(new).collect();
        let arms = lines.len();
        lines.truncate(DRAWN);
        let [x, y] = calibrated.axes;
        ([axis(x, lines.len(), arms), y.to_owned()], lines)
    });
    let panels: Vec<_> = panels.into_iter().filter(|(_, lines)| !lines.is_empty()).collect();
    if panels.is_empty() {
        return Ok(None);
    }
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (WIDTH, 380)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, ([x, y], lines)) in root.split_evenly((1, panels.len())).iter().zip(&panels) {
            let mut chart =
                ChartBuilder::on(area).margin(12).x_label_area_size(40).y_label_area_size(48).build_cartesian_2d(0.0..1.0, 0.0..1.0)?;
            chart.configure_mesh().x_desc(x).y_desc(y).light_line_style(TRANSPARENT).draw()?;
            for (index, (arm, bins)) in lines.iter().enumerate() {
                let colour = Palette99::pick(index).to_rgba();
                let points: Vec<(f64, f64)> = bins.iter().map(|bin| (f64::from(bin.from + bin.to) / 2.0, bin.mean)).collect();
                chart.draw_series(points.iter().map(|&point| Circle::new(point, 3, colour.filled())))?;
                chart
                    .draw_series(LineSeries::new(points, colour.stroke_width(2)))?
                    .label(*arm)
                    .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(3)));
            }
            chart.configure_series_labels().border_style(TRANSPARENT).position(SeriesLabelPosition::UpperLeft).draw()?;
        }
        root.present()?;
    }
    Ok(Some(svg))
}

#[cfg(test)]
mod tests {
    use super::super::summary::tests::{plan, record};
    use super::*;
    use crate::calibrate::{ManualStats, Matched, Mode};
    use crate::distill::LabelCount;
    use crate::experiment::Point;
    use omnilabel_keypoints::label::Thresholds;

    fn labels(seed: u64) -> LabelRecord {
        let matched = Matched { threshold: 0.5, wanted_mean: 1.0, realised_mean: 1.25 };
        let calibration = Calibration {
            mode: Mode::Paper,
            manual: ManualStats { images: 1, people: 1, keypoints: 1 },
            instance: matched,
            at_precision: None,
            keypoint: matched,
            thresholds: Thresholds { instance: 0.5, keypoint: 0.5, floor: 0.05 },
        };
        let bin = |mean: f64| Bin { from: 0.25, to: 0.5, count: 7, mean: mean + 0.1 * seed as f64 };
        LabelRecord {
            calibration,
            count: LabelCount::default(),
            quality: (seed == 1).then_some(Quality {
                single_ap: 0.1,
                ensemble_ap: 0.2,
                single_pck: None,
                ensemble_pck: None,
                single_terciles: Some([-1.0, 0.1, 0.2]),
                ensemble_terciles: None,
                single_hard: None,
                ensemble_hard: Some(Hard { ap: 0.3, pck: None }),
            }),
            pck_by_agreement: vec![bin(0.2), bin(0.4)],
            ap_by_agreement: Vec::new(),
            oks_by_score: Vec::new(),
        }
    }

    #[test]
    fn the_report_has_tables_plan_and_curves() {
        let plan = plan();
        let shared = [-0.01, 0.01];
        let mut records = Vec::new();
        for seed in [1, 2] {
            for (arm, ap) in [("lower", 0.2), ("distilled", 0.25), ("upper", 0.3)] {
                let mut record = record(arm, 100, seed, ap + 0.001 * seed as f64, 0.1, &shared);
                record.labels = (arm == "distilled").then(|| labels(seed));
                record.curve = [50, 100].map(|step| Point { step, loss: 3.0, keypoint: 2.0 - step as f32 / 100.0 }).to_vec();
                records.push(record);
            }
        }
        let dir = tempfile::tempdir().unwrap();
        let full = Summary::of(&plan, records).unwrap();
        write(dir.path(), &plan, &full).unwrap();
        let text = std::fs::read_to_string(dir.path().join("report.md")).unwrap();
        assert!(
            text.contains(
                "| distilled | 100 | 10 + 0 | 2 | 25.1 ± 0.1 | 25.1 | 25.1 | 25.1 | – | – | 10.0 | +5.0 ± 0.0 | 50 % (50 to 50) |"
            ),
            "{text}"
        );
        assert!(text.contains("| distilled | 1.00 → 1.25 | 1.00 → 1.25 | 0.500 | – → 30.0 | – → – | – / 10.0 / 20.0 | – |\n"), "{text}");
        assert!(text.contains("Not run: lower-50-seed1") && text.contains("[[arms]]"), "{text}");
        assert!(
            text.contains("| distilled | 35.0 (0.25 to 0.50) | 55.0 (0.25 to 0.50) | – | – | – |\n")
                && !text.contains("OKS of the teachers"),
            "{text}"
        );
        let svg = std::fs::read_to_string(dir.path().join("curves.svg")).unwrap();
        assert!(["lower", "distilled", "upper", "keypoint loss"].iter().all(|part| svg.contains(part)));
        let gains = std::fs::read_to_string(dir.path().join("gains.svg")).unwrap();
        assert!(gains.contains("95 %"));
        let number = |tag: &str, key: &str| -> f64 {
            let value = tag.split(&format!("{key}=\"")).nth(1).unwrap();
            value.split('"').next().unwrap().parse().unwrap()
        };
        let circles: Vec<(f64, f64)> = gains.split("<circle").skip(1).map(|tag| (number(tag, "cx"), number(tag, "cy"))).collect();
        // From below: the upper bound, which gains twice as much as the distilled arm; each on the line of its name.
        assert_eq!(circles.len(), 2);
        let height = |name: &str| {
            let before = gains.split(&format!("{name}\n")).next().unwrap();
            number(before.rsplit("<text").next().unwrap(), "y")
        };
        for (name, (_, at)) in ["upper", "distilled"].into_iter().zip(&circles) {
            assert!((height(name) - at).abs() < 12.0, "{name}: {} {at}", height(name));
        }
        assert!(circles[0].0 > circles[1].0 && circles[0].1 > circles[1].1, "{circles:?}");
        let calibration = std::fs::read_to_string(dir.path().join("calibration.svg")).unwrap();
        assert!(calibration.contains("agreement") && !calibration.contains("OKS") && calibration.matches("<circle").count() == 2);
        // One arm alone gains nothing and has no labels: pictures of an earlier report go.
        let alone = vec![record("lower", 100, 1, 0.2, 0.1, &shared)];
        write(dir.path(), &plan, &Summary::of(&plan, alone).unwrap()).unwrap();
        assert!(["gains.svg", "calibration.svg"].iter().all(|name| !dir.path().join(name).exists()));
        write(dir.path(), &plan, &full).unwrap();
        let json = std::fs::read(dir.path().join("report.json")).unwrap();
        assert_eq!(serde_json::from_slice::<Summary>(&json).unwrap().equal.len(), 3);
    }

    #[test]
    fn arms_that_had_no_other_length_are_not_among_the_best_ones() {
        let of = |arm: &str, steps: u64| record(arm, steps, 1, 0.2, 0.1 + 0.001 * steps as f64, &[-0.01, 0.01]);
        let summary = Summary::of(&plan(), vec![of("lower", 100), of("lower", 50), of("distilled", 100), of("upper", 100)]).unwrap();
        let text = summary.tables();
        let (_, best) = text.split_once("best on the held-out labelled images").unwrap();
        assert!(best.contains("| lower | 100 |") && !best.contains("| distilled |") && !best.contains("| upper |"), "{text}");
        assert!(text.contains("With 50 steps each:\n\n| arm") && text.contains("| lower | 50 |"), "{text}");
    }
}
