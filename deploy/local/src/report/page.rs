//! The page around tables, charts and pictures.

use super::chart::{self, Bar, Series};
use super::{Pictures, escape};
use crate::demo::outcome::{Arm, ArmKind, Outcome};
use omnilabel_keypoints::skeleton::Skeleton;
use std::fmt::Write;

const STYLE: &str = include_str!("style.css");
const GREY: (u8, u8, u8) = (130, 140, 155);
const TEAL: (u8, u8, u8) = (20, 160, 140);
const VIOLET: (u8, u8, u8) = (125, 95, 220);

fn colour(kind: ArmKind) -> (u8, u8, u8) {
    match kind {
        ArmKind::Lower => GREY,
        ArmKind::Distilled => TEAL,
        ArmKind::Upper => VIOLET,
    }
}

fn percent(ap: Option<f64>) -> String {
    ap.map_or_else(|| "–".to_owned(), |ap| format!("{:.1}", 100.0 * ap))
}

pub(super) fn html(outcome: &Outcome, pictures: &Pictures) -> anyhow::Result<String> {
    let mut page = String::new();
    write!(page, "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>Omnilabel report</title>")?;
    write!(page, "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><style>{STYLE}</style></head><body><main>")?;
    write!(page, "<header><h1>Omnilabel</h1><p>Cameras that label their own footage. {}</p></header>", escape(&outcome.source))?;
    headline(&mut page, outcome)?;
    arms(&mut page, outcome)?;
    delivery(&mut page, outcome)?;
    gallery(&mut page, outcome, pictures)?;
    details(&mut page, outcome)?;
    page.push_str("</main></body></html>\n");
    Ok(page)
}

fn headline(page: &mut String, outcome: &Outcome) -> anyhow::Result<()> {
    let ap = |kind| outcome.arm(kind).and_then(|arm: &Arm| arm.ap);
    let mut tile = |value: String, label: &str| write!(page, "<div class=\"tile\"><b>{}</b><span>{label}</span></div>", escape(&value));
    // Tiles are collected before the section is closed.
    tile(percent(ap(ArmKind::Distilled)), "AP after distillation")?;
    tile(percent(ap(ArmKind::Lower)), "AP with manual labels only")?;
    tile(outcome.gap_recovered.map_or_else(|| "–".to_owned(), |gap| format!("{:.0} %", 100.0 * gap)), "of the gap recovered")?;
    let sum = |f: fn(&crate::demo::outcome::Device) -> u64| outcome.devices.iter().map(f).sum::<u64>();
    tile(sum(|d| d.delivered).to_string(), "labels delivered")?;
    tile(sum(|d| d.lost).to_string(), "labels lost")?;
    let verdict = match outcome.release.counter {
        Some(counter) => format!("Release {counter} went out: {}", outcome.release.reason),
        None => format!("No release: {}", outcome.release.reason),
    };
    let class = if outcome.release.counter.is_some() { "good" } else { "bad" };
    write!(page, "<p class=\"verdict {class}\">{}</p>", escape(&verdict))?;
    for note in &outcome.notes {
        write!(page, "<p class=\"note\">{}</p>", escape(note))?;
    }
    Ok(())
}

fn arms(page: &mut String, outcome: &Outcome) -> anyhow::Result<()> {
    page.push_str("<section><h2>Did it get better?</h2><div class=\"pair\"><div>");
    let mut bars: Vec<Bar> = Vec::new();
    for arm in &outcome.arms {
        if let Some(ap) = arm.ap {
            bars.push(Bar { name: arm.kind.name().to_owned(), colour: colour(arm.kind), value: 100.0 * ap, hollow: arm.precomputed });
        }
    }
    page.push_str(&chart::bars("AP", &bars)?);
    page.push_str("</div><div>");
    let palette = [GREY, TEAL, VIOLET];
    let mut series = Vec::new();
    for (index, curve) in outcome.losses.iter().enumerate() {
        let points = curve.points.iter().map(|p| (p.0 as f64, f64::from(p.1))).collect();
        series.push(Series { name: curve.name.clone(), colour: palette[index % palette.len()], points });
    }
    page.push_str(&chart::lines("optimiser step", "loss", &series)?);
    page.push_str("</div></div><div class=\"scroll\"><table><thead><tr><th>arm<th>AP<th>AP50<th>steps<th>manual pictures<th>generated<th></tr></thead><tbody>");
    for arm in &outcome.arms {
        let note = match (arm.precomputed, arm.note.is_empty()) {
            (true, _) => format!("precomputed: <code>{}</code>", escape(&arm.note)),
            (false, _) => escape(&arm.note),
        };
        write!(page, "<tr><td>{}<td>{}<td>{}<td>{}", arm.kind.name(), percent(arm.ap), percent(arm.ap50), arm.steps)?;
        write!(page, "<td>{}<td>{}<td class=\"text\">{note}</tr>", arm.images.0, arm.images.1)?;
    }
    page.push_str("</tbody></table></div>");
    if let Some(teacher) = outcome.teacher {
        write!(
            page,
            "<p>The teacher labels with several views of each frame. On the validation pictures that is worth {:+.1} AP: {:.1} with one view, {:.1} with all.</p>",
            100.0 * (teacher.ensemble - teacher.single),
            100.0 * teacher.single,
            100.0 * teacher.ensemble
        )?;
    }
    if let Some(t) = outcome.thresholds {
        write!(
            page,
            "<p>A person counts from a score of τ = {:.3} ({:.2} people a generated picture, {:.2} a manual one), a keypoint from a probability of τ<sub>k</sub> = {:.4}.</p>",
            t.tau, t.realised_mean, t.manual_mean, t.tau_k
        )?;
    }
    page.push_str("<p class=\"small\">AP is the COCO keypoint average precision (OKS 0.50 to 0.95) of the exported bundle, one view, on validation pictures that no arm has seen. A hollow bar was computed beforehand.</p></section>");
    Ok(())
}

fn delivery(page: &mut String, outcome: &Outcome) -> anyhow::Result<()> {
    page.push_str("<section><h2>Did every label arrive?</h2><div class=\"scroll\"><table><thead><tr><th>device<th>made<th>delivered<th>lost<th>duplicated<th>pending<th>evicted<th class=\"text\">camera<th class=\"text\">model</tr></thead><tbody>");
    for device in &outcome.devices {
        write!(page, "<tr><td>{}<td>{}<td>{}", escape(&device.name), device.made, device.delivered)?;
        write!(page, "<td>{}<td>{}<td>{}<td>{}", device.lost, device.duplicated, device.pending, device.evicted)?;
        write!(page, "<td class=\"text\">{}<td class=\"text\">{}</tr>", escape(&device.camera), escape(&device.model()))?;
    }
    page.push_str("</tbody></table></div><p class=\"small\">Made: on the device's disk. Delivered: stored at the centre, each once. Lost: made, but neither delivered, pending nor evicted. Duplicated: arrived again and not stored again.</p></section>");
    Ok(())
}

fn gallery(page: &mut String, outcome: &Outcome, pictures: &Pictures) -> anyhow::Result<()> {
    let skeleton = match &outcome.skeleton {
        Some(spec) => spec.skeleton()?,
        None => Skeleton::coco17(),
    };
    let key = "<p class=\"small\"><i class=\"dot\" style=\"background:#00e676\"></i>the person's left <i class=\"dot\" style=\"background:#ff9100\"></i>right <i class=\"dot\" style=\"background:#40a9ff\"></i>middle. Point at a joint for its name and value.</p>";
    if !pictures.labelled.is_empty() {
        write!(page, "<section><h2>What the cameras labelled</h2>{key}<div class=\"grid\">")?;
        for picture in &pictures.labelled {
            page.push_str(&picture.html(&skeleton)?);
        }
        page.push_str("</div></section>");
    }
    if !pictures.compared.is_empty() {
        page.push_str("<section><h2>Before and after</h2><p class=\"small\">Validation pictures: the truth, the shipped model, the model after one round.</p><div class=\"grid three\">");
        for picture in pictures.compared.iter().flatten() {
            page.push_str(&picture.html(&skeleton)?);
        }
        page.push_str("</div></section>");
    }
    Ok(())
}

fn details(page: &mut String, outcome: &Outcome) -> anyhow::Result<()> {
    write!(page, "<section><h2>How to repeat it</h2><p>The run took {:.0} s.", outcome.seconds)?;
    if let Some((running, candidate)) = outcome.release.gate {
        write!(page, " At the gate the running model had AP {:.1} and the student {:.1}.", 100.0 * running, 100.0 * candidate)?;
    }
    page.push_str("</p><pre>");
    for command in &outcome.commands {
        writeln!(page, "{}", escape(command))?;
    }
    page.push_str("</pre></section>");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::outcome::{Device, LossCurve, Release, TeacherScores};
    use crate::report::{Drawn, Picture};

    /// A run that went well, with text that must be escaped.
    pub(crate) fn sample() -> (Outcome, Pictures) {
        let arm = |kind, ap, precomputed| Arm {
            kind,
            ap: Some(ap),
            ap50: Some(ap + 0.2),
            steps: 600,
            images: (200, 1000),
            precomputed,
            note: String::new(),
        };
        let mut outcome = Outcome {
            source: "Rendered scenes <seed 1>".into(),
            arms: vec![arm(ArmKind::Lower, 0.31, false), arm(ArmKind::Distilled, 0.38, false), arm(ArmKind::Upper, 0.47, true)],
            teacher: Some(TeacherScores { single: 0.33, ensemble: 0.37 }),
            release: Release { counter: Some(1), name: "round-1".into(), reason: "AP 0.33 → 0.38".into(), gate: Some((0.33, 0.38)) },
            devices: vec![Device { name: "studio".into(), made: 512, delivered: 512, running: 1, ..Device::default() }],
            losses: vec![LossCurve {
                name: "distilled".into(),
                points: (0..50).map(|i| (i * 10, 4.0 / (1.0 + i as f32 * 0.1), 2.0)).collect(),
            }],
            ..Outcome::default()
        };
        outcome.conclude();
        let scene = omnilabel_scenes::scene(&omnilabel_scenes::Look::street(), 1, 0, omnilabel_scenes::DEFAULT_SIZE);
        let people = omnilabel_scenes::coco::annotations(&scene, 1);
        let drawn = people.into_iter().map(|p| Drawn { bbox: p.bbox, keypoints: p.keypoints, score: Some(0.87), faint: false });
        let picture = Picture { caption: "frame 1".into(), jpeg: scene.to_jpeg().unwrap(), size: (160, 128), people: drawn.collect() };
        (outcome, Pictures { labelled: vec![picture.clone(); 6], compared: vec![[picture.clone(), picture.clone(), picture]] })
    }

    #[test]
    fn the_page_shows_arms_devices_and_pictures_and_needs_nothing_else() {
        let (outcome, pictures) = sample();
        let page = html(&outcome, &pictures).unwrap();
        for text in
            ["38.0", "31.0", "47.0", "44 %", "release 1", "512", "data:image/jpeg;base64,/9j/", "&lt;seed 1&gt;", "prefers-color-scheme"]
        {
            assert!(page.contains(text), "{text} is missing");
        }
        assert_eq!(page.matches("<figure>").count(), 9);
        for outside in ["http://", "https://", "<script", "<link"] {
            let found = page.replace("http://www.w3.org/2000/svg", "").contains(outside);
            assert!(!found, "{outside} is in the page");
        }
    }

    #[test]
    fn an_empty_outcome_still_makes_a_page() {
        let page = html(&Outcome::default(), &Pictures::default()).unwrap();
        assert!(page.contains("No release") && page.ends_with("</html>\n"));
    }
}
