//! What a fleet was promised. Figures go in, broken promises come out; no clock, no file and no socket is known here.

use super::audit::Release;
use super::canary::Canary;
use super::report::Report;

/// Every promise that does not hold.
pub(crate) fn broken(report: &Report) -> Vec<String> {
    let mut broken = Vec::new();
    let mut hold = |good: bool, promise: String| {
        if !good {
            broken.push(promise);
        }
    };
    let labels = &report.labels;
    hold(labels.made > 0, "no label was made".to_owned());
    hold(labels.pending == 0, format!("{} labels are not acknowledged {:.0} s after the last fault", labels.pending, report.drain_secs));
    hold(labels.lost == 0, format!("{} of {} labels are lost", labels.lost, labels.made));
    hold(
        labels.altered == 0,
        format!("{} of {} labels that were compared have other bytes than they were made with", labels.altered, labels.compared),
    );
    hold(labels.foreign == 0, format!("{} labels are stored that no device made", labels.foreign));
    hold(labels.unsettled == 0, format!("{} labels are stored without the picture that they announced", labels.unsettled));
    hold(labels.conflicts == 0, format!("{} labels came again with other bytes than they are stored with", labels.conflicts));
    let (committed, pending) = labels.stated;
    hold(
        labels.stated == (labels.made_last, 0),
        format!("the devices' last words, as the centre has them: {committed} committed, {pending} waiting"),
    );
    hold(labels.missing == 0, format!("by the centre's own account {} labels are missing", labels.missing));
    hold(report.wrong == 0, format!("{} messages at devices were not what their topic or signature says", report.wrong));
    // It is the link that ends a connection whose messages it cannot hold: a fleet of this size is what it has to hold.
    let flooded: u64 = report.troubles.iter().filter(|(what, _)| what.contains("for the receiver")).map(|(_, count)| count).sum();
    hold(flooded == 0, format!("the centre gave up its connection {flooded} times because it could not hold what came"));
    if let Some(release) = &report.release {
        released(release, &mut hold);
        let told = report.troubles.get("unknown release").copied().unwrap_or(0);
        hold(
            release.beyond == 0 || told > 0,
            format!("{} devices run a release that nobody made, and the centre says nothing of it", release.beyond),
        );
    } else {
        hold(!report.release_wanted, "no release was made".to_owned());
    }
    let memory = &report.memory;
    let mib = |kib: f64| kib / 1024.0;
    let (first, last, allowed) = (mib(memory.first_kib), mib(memory.last_kib), mib(memory.allowed_kib));
    hold(
        !memory.grows(),
        format!("the centre grew from {first:.1} to {last:.1} MiB in {:.0} s, by at most {allowed:.1} expected", memory.life_secs),
    );
    broken.extend(report.incidents.iter().cloned());
    broken
}

fn released(release: &Release, hold: &mut impl FnMut(bool, String)) {
    let (good, confirmed) = (release.good, release.confirmed);
    let names = release.unconfirmed.join(", ");
    hold(good == confirmed, format!("{} of {good} good devices have not confirmed release {}: {names}", good - confirmed, release.counter));
    for (what, (all, seen)) in [("refuse", release.refused), ("still try", release.hung)] {
        hold(all == seen, format!("of {all} devices that {what} release {}, the centre knows {seen}", release.counter));
    }
    went_out(&release.canary, hold);
}

fn went_out(canary: &Canary, hold: &mut impl FnMut(bool, String)) {
    let halted = canary.halted.as_deref().map_or_else(String::new, |reason| format!(", and halted: {reason}"));
    hold(canary.complete, format!("the release is not complete by the centre's books{halted}"));
    let opened: Vec<u16> = canary.opened.iter().map(|wave| wave.share).collect();
    hold(opened == canary.wanted, format!("of the waves {:?} (thousandths) the centre opened {opened:?}", canary.wanted));
    hold(
        canary.unproved.is_empty(),
        format!("half of the devices of these waves (thousandths) had not confirmed it: {:?}", canary.unproved),
    );
    let names = canary.early.iter().take(5).map(String::as_str).collect::<Vec<_>>().join(", ");
    hold(canary.early.is_empty(), format!("{} devices had the release before their turn: {names}", canary.early.len()));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::audit::Labels;
    use crate::fleet::canary::Opened;
    use crate::fleet::memory::Memory;

    fn good() -> Report {
        let opened = vec![Opened { share: 50, ..Opened::default() }, Opened { share: 1000, ..Opened::default() }];
        let canary = Canary { wanted: vec![50, 1000], opened, complete: true, ..Canary::default() };
        Report {
            labels: Labels { made: 10, stored: 10, made_last: 10, stated: (10, 0), ..Labels::default() },
            release_wanted: true,
            release: Some(Release { counter: 1, good: 8, confirmed: 8, refused: (1, 1), hung: (1, 1), canary, ..Release::default() }),
            memory: Memory { judged: true, first_kib: 1e5, last_kib: 1.1e5, allowed_kib: 2e4, ..Memory::default() },
            ..Report::default()
        }
    }

    #[test]
    fn each_promise_can_be_broken() {
        assert_eq!(broken(&good()), Vec::<String>::new());
        let mut tried = 0;
        let mut check = |words: &str, spoil: fn(&mut Report)| {
            let mut report = good();
            spoil(&mut report);
            let found = broken(&report);
            assert!(found.len() == 1 && found[0].contains(words), "{words}: {found:?}");
            tried += 1;
        };
        check("no label", |report| (report.labels.made, report.labels.made_last, report.labels.stated) = (0, 0, (0, 0)));
        check("not acknowledged", |report| report.labels.pending = 1);
        check("lost", |report| report.labels.lost = 1);
        check("compared", |report| report.labels.altered = 1);
        check("last words", |report| report.labels.stated = (9, 0));
        check("last words", |report| report.labels.stated = (10, 1));
        check("could not hold", |report| {
            report.troubles.extend([("connection lost: more than 9 bytes wait for the receiver".to_owned(), 2)])
        });
        check("nobody made", |report| report.release.iter_mut().for_each(|release| release.beyond = 1));
        check("no device made", |report| report.labels.foreign = 1);
        check("picture", |report| report.labels.unsettled = 1);
        check("other bytes", |report| report.labels.conflicts = 1);
        check("missing", |report| report.labels.missing = 1);
        check("signature", |report| report.wrong = 1);
        check("no release", |report| report.release = None);
        check("1 of 8 good devices", |report| report.release.iter_mut().for_each(|release| release.confirmed = 7));
        check("devices that refuse", |report| report.release.iter_mut().for_each(|release| release.refused = (1, 0)));
        check("still try", |report| report.release.iter_mut().for_each(|release| release.hung = (1, 0)));
        check("not complete", |report| report.release.iter_mut().for_each(|release| release.canary.complete = false));
        check("opened [50]", |report| report.release.iter_mut().for_each(|release| drop(release.canary.opened.pop())));
        check("had not confirmed it: [50]", |report| report.release.iter_mut().for_each(|release| release.canary.unproved.push(50)));
        check("before their turn: sim-1", |report| {
            report.release.iter_mut().for_each(|release| release.canary.early.push("sim-1".to_owned()))
        });
        check("grew", |report| report.memory.last_kib = 2e5);
        check("ended by itself", |report| report.incidents.push("the broker ended by itself".to_owned()));
        assert_eq!(tried, 23);
        let without = Report { release: None, release_wanted: false, ..good() };
        assert_eq!(broken(&without), Vec::<String>::new());
    }
}
