use super::*;

#[test]
fn more_people_than_can_be_followed_are_not_followed() {
    let users = Users::default();
    let ops: ChannelName = "#ops".parse().unwrap();
    let mut roster = users.lock();
    for n in 0..MAX_USERS + 10 {
        let nick = format!("n{n}");
        let who = Source {
            nick: &nick,
            user: "u",
            host: "h",
        };
        roster.joined(&who, &ops, Some(Some("a")));
    }
    assert_eq!(roster.users.len(), MAX_USERS);
    let last = Source {
        nick: "n16390",
        user: "u",
        host: "h",
    };
    assert_eq!(roster.speaker(&last, Tagged::Unable).account, None);
    let tagged = roster.speaker(&last, Tagged::As("zed"));
    assert_eq!(tagged.account.unwrap().name, "zed");
    roster.channel_lost(&ops);
    assert!(roster.users.is_empty());
}

#[test]
fn two_channels_are_one_sight_until_the_last_is_left() {
    let users = Users::default();
    let (ops, dev): (ChannelName, ChannelName) = ("#ops".parse().unwrap(), "#dev".parse().unwrap());
    let who = Source {
        nick: "ana",
        user: "u",
        host: "h",
    };
    let mut roster = users.lock();
    roster.joined(&who, &ops, None);
    roster.joined(&who, &dev, None);
    let sight = roster.speaker(&who, Tagged::Unable).sight;
    roster.left("ANA", &ops);
    assert_eq!(roster.speaker(&who, Tagged::Unable).sight, sight);
    roster.left("ana", &dev);
    assert_eq!(roster.speaker(&who, Tagged::Unable).sight, None);
    roster.joined(&who, &ops, None);
    assert_ne!(roster.speaker(&who, Tagged::Unable).sight, sight);
}
