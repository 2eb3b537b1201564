//! What is said of builds.

use muster_protocol::api::{ClusterEvent, Say, Tone, Urgency};
use muster_protocol::text::printable;

use super::{MAX_TEXT, link, short, word};
use crate::chat::builds::results::Ended;

/// `webapp CI 812 of main`.
#[must_use]
pub fn called(event: &ClusterEvent) -> String {
    let name = word(event, "name").unwrap_or_default();
    let name = short(&name);
    let mut parts = Vec::new();
    if let Some(repository) = word(event, "repository") {
        parts.push(short(&repository).to_owned());
        if short(&repository) != name {
            parts.push(name.to_owned());
        }
    } else {
        parts.push(name.to_owned());
    }
    parts.push("build".to_owned());
    parts.extend(word(event, "number"));
    let mut text = parts.join(" ");
    if let Some(branch) = word(event, "branch") {
        text += &format!(" of {branch}");
    }
    text
}

/// What is said of a build that has ended; `None` of one that is no news.
/// `asked`: somebody waits for its end, whatever that is.
#[must_use]
pub fn finished(event: &ClusterEvent, ended: Option<Ended>, asked: bool) -> Option<Say> {
    let (how, tone) = match ended {
        Some(Ended::Failed { was_fine }) => (
            match was_fine {
                Some(true) => "failed (was fine)",
                Some(false) => "failed again",
                None => "failed",
            },
            Tone::Bad,
        ),
        Some(Ended::Fixed) => ("is fine again (was failing)", Tone::Good),
        Some(Ended::Fine) if asked => ("is fine", Tone::Good),
        _ if asked => match word(event, "result").as_deref() {
            Some("success") => ("is fine", Tone::Good),
            Some("failure" | "unstable" | "timed_out") => ("failed", Tone::Bad),
            Some("cancelled") => ("was cancelled", Tone::Warn),
            Some("skipped") => ("was skipped", Tone::Warn),
            _ => ("has ended", Tone::Warn),
        },
        _ => return None,
    };
    let note = word(event, "note").filter(|_| tone != Tone::Good);
    let note = note.map(|note| format!(": {note}")).unwrap_or_default();
    Some(Say {
        urgency: if asked { Urgency::Reply } else { Urgency::News },
        tone,
        about: None,
        lines: vec![printable(
            &format!("{} {how}{note}", called(event)),
            MAX_TEXT,
        )],
        link: link(event, "url"),
    })
}

/// That a build has begun, or waits: only where somebody asks for just that.
pub(super) fn begun(event: &ClusterEvent) -> Say {
    let how = if event.kind == "build.queued" {
        "waits for its turn"
    } else {
        "has begun"
    };
    Say {
        urgency: Urgency::News,
        tone: Tone::Plain,
        about: None,
        lines: vec![printable(&format!("{} {how}", called(event)), MAX_TEXT)],
        link: link(event, "url"),
    }
}
