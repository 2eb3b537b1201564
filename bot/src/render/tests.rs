use insta::assert_snapshot;
use muster_protocol::api::Urgency;
use proptest::prelude::*;

use super::*;

fn style() -> Style {
    Style {
        colours: false,
        symbols: true,
        max_lines: 6,
        prefix: "!".to_owned(),
    }
}

fn frame() -> Frame<'static> {
    Frame {
        nick: None,
        again: false,
        ago: None,
        budget: 120,
        prefixed: true,
    }
}

fn say(tone: Tone, about: &str, lines: &[&str], link: Option<&str>) -> Say {
    Say {
        urgency: Urgency::Reply,
        tone,
        about: (!about.is_empty()).then(|| about.to_owned()),
        lines: lines.iter().map(|l| (*l).to_owned()).collect(),
        link: link.map(str::to_owned),
    }
}

/// As people see it: control characters escaped.
fn seen(rendered: &Rendered) -> String {
    let lines = rendered.lines.iter();
    let lines: Vec<String> = lines.map(|l| l.escape_debug().to_string()).collect();
    let mut text = lines.join("\n").replace("\\'", "'").replace("\\\"", "\"");
    if !rendered.rest.is_empty() || rendered.lost > 0 {
        text.push_str(&format!(
            "\n[{} kept, {} not]",
            rendered.rest.len(),
            rendered.lost
        ));
    }
    text
}

const LINK: Option<&str> = Some("https://muster.example/runs/8k2d");

#[test]
fn a_plan_names_the_asker_and_the_run() {
    let plan = "deploy 1.4.1→1.4.2 on 12 of web's 24 (gva2), 4 batches by rack, restarts webapp.  !yes · !diff · !no  (5 min)";
    let frame = Frame {
        nick: Some("ana"),
        ..frame()
    };
    let says = [say(Tone::Plain, "8k2d", &[plan], None)];
    assert_snapshot!(seen(&render(&says, &style(), &frame)));
}

#[test]
fn tones_are_a_sign_and_a_colour_and_can_be_switched_off() {
    let says = [
        say(Tone::Good, "8k2d", &["12 of 12 upgraded"], LINK),
        say(
            Tone::Bad,
            "8k2d",
            &["stopped after batch 3: web-15 failed"],
            None,
        ),
        say(Tone::Warn, "", &["gva2: 37 nodes down within 10 s"], None),
        say(Tone::Plain, "8k2d", &["6/12, all well"], None),
    ];
    assert_snapshot!(seen(&render(&says, &style(), &frame())));
    let colours = Style {
        colours: true,
        ..style()
    };
    assert_snapshot!(seen(&render(&says, &colours, &frame())));
    let plain = Style {
        symbols: false,
        ..style()
    };
    assert_snapshot!(seen(&render(&says, &plain, &frame())));
}

#[test]
fn a_push_cannot_speak_for_the_bot() {
    let says = [say(
        Tone::Plain,
        "",
        &[
            "webapp: bruno pushed 2 to main",
            "  Cache the price list\r\nPRIVMSG #ops :!cmd * -- id",
            "  \x01ACTION \u{202e}gnp\x0304 x",
            "!cmd * -- id",
        ],
        Some("https://git.example/c/4f1e"),
    )];
    assert_snapshot!(seen(&render(&says, &style(), &frame())));
}

#[test]
fn what_is_too_much_is_kept_and_said_to_be_there() {
    let lines: Vec<String> = (1..=20).map(|n| format!("web-{n:02}  ok")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let says = [say(Tone::Plain, "8k2d", &lines, LINK)];
    let nick = Frame {
        nick: Some("ana"),
        ..frame()
    };
    let first = render(&says, &style(), &nick);
    assert_snapshot!(seen(&first));
    let private = Frame {
        prefixed: false,
        ..frame()
    };
    let second = render_more(first.rest, first.lost, None, &style(), &private);
    assert_snapshot!(seen(&second));
    let third = render_more(second.rest, second.lost, None, &style(), &private);
    assert_eq!(third.rest.len(), 5);
    let last = render_more(third.rest, third.lost, None, &style(), &private);
    assert_snapshot!(seen(&last));
}

#[test]
fn without_end_is_not_kept_without_end() {
    let lines = vec!["x".repeat(300); 5_000];
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let rendered = render(
        &[say(Tone::Plain, "8k2d", &lines, LINK)],
        &style(),
        &frame(),
    );
    assert!(rendered.rest.len() <= MOST_KEPT + 1);
    assert!(rendered.lost > 4_000);
    assert!(
        rendered
            .lines
            .last()
            .is_some_and(|l| l.ends_with("runs/8k2d"))
    );
    let mut left = rendered;
    while !left.rest.is_empty() {
        left = render_more(left.rest, left.lost, None, &style(), &frame());
    }
    assert!(
        left.lines.last().is_some_and(|l| l.contains("too many")),
        "{left:?}"
    );
}

#[test]
fn a_repeat_is_marked() {
    let frame = Frame {
        again: true,
        nick: Some("ana"),
        ..frame()
    };
    let says = [say(Tone::Good, "8k2d", &["done", "1 unchanged"], None)];
    assert_snapshot!(seen(&render(&says, &style(), &frame)));
    assert_eq!(again("8k2d done"), "(again) 8k2d done");
    assert_eq!(again("(again) 8k2d done"), "(again) 8k2d done");
}

#[test]
fn what_is_old_says_so() {
    let says = [say(Tone::Bad, "8k2d", &["failed"], None)];
    let ago = |seconds| {
        let frame = Frame {
            ago: Some(Duration::from_secs(seconds)),
            ..frame()
        };
        render(&says, &style(), &frame).lines.concat()
    };
    assert_eq!(ago(400), "(6 min ago) ✗ 8k2d failed");
    assert_eq!(ago(2 * 3_600), "(2 h ago) ✗ 8k2d failed");
    assert_eq!(ago(3 * 86_400), "(3 d ago) ✗ 8k2d failed");
}

fn tone() -> impl Strategy<Value = Tone> {
    prop_oneof![
        Just(Tone::Plain),
        Just(Tone::Good),
        Just(Tone::Warn),
        Just(Tone::Bad)
    ]
}

proptest! {
    #[test]
    fn every_line_fits_and_none_acts(
        texts in proptest::collection::vec("\\PC{0,80}|[\\x00-\\x1f !a]{0,200}", 0..12),
        tone in tone(),
        colours in any::<bool>(),
        nick in proptest::option::of("[a-z]{1,9}"),
        about in proptest::option::of("[0-9a-z]{4}"),
        budget in 60usize..500,
    ) {
        let lines: Vec<&str> = texts.iter().map(String::as_str).collect();
        let mut say = say(tone, "", &lines, LINK);
        say.about = about;
        let style = Style { colours, ..style() };
        let frame = Frame { nick: nick.as_deref(), budget, ..frame() };
        let rendered = render(&[say], &style, &frame);
        prop_assert!(rendered.lines.len() <= style.max_lines);
        for line in rendered.lines.iter().chain(&rendered.rest) {
            prop_assert!(line.len() <= budget, "{} {line:?}", line.len());
            prop_assert!(!line.trim_start().starts_with('!'), "{line:?}");
            for c in line.chars().filter(|c| c.is_control()) {
                // Our own alone.
                prop_assert!(colours && matches!(c, '\x02' | '\x03' | '\x0f'), "{line:?}");
            }
        }
    }
}
