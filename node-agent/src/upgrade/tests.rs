use super::*;

#[test]
fn the_new_one_has_a_part_of_the_time() {
    let secs = Duration::from_secs;
    assert_eq!(confirm_within(secs(300)), secs(60));
    assert_eq!(confirm_within(secs(40)), secs(10));
    assert_eq!(confirm_within(secs(1)), secs(3));
}
