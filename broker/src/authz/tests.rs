//! The fixed roles.

use muster_protocol::api::Role;
use muster_protocol::envelope::Door;

use super::*;

fn caller(role: Role) -> Caller {
    Caller {
        principal: "ana".parse().unwrap(),
        role,
        token: "t".into(),
        door: Door::Http,
        origin: Origin::Unknown,
    }
}

#[test]
fn who_may_do_what() {
    let mut table = String::new();
    for action in Action::examples() {
        let may: Vec<_> = Role::ALL
            .iter()
            .filter(|role| authorize(&FixedRoles, &caller(**role), action.clone(), ()).is_ok())
            .map(|role| role.as_str())
            .collect();
        table += &format!("{:<34} {}\n", action.what(), may.join(" "));
    }
    insta::assert_snapshot!(table, @r"
    read nodes                         admin operator reader
    resolve predicates                 admin operator reader
    ping nodes                         admin operator
    run anything                       admin operator
    upgrade agents                     admin
    read runs                          admin operator reader
    cancel runs                        admin operator
    answer runs                        admin operator
    retry runs                         admin operator
    change roles and labels of nodes   admin operator
    remove or replace nodes            admin
    invite nodes                       admin operator node-enroller
    list or withdraw invites           admin operator
    manage API tokens                  admin
    read the broker keys               admin operator reader
    rotate or revoke broker keys       admin
    make backups                       admin
    upload or remove agent releases    admin
    read agent releases                admin operator reader
    read scenarios                     admin operator reader
    store or remove scenarios          admin operator
    read schedules                     admin operator reader
    add or remove schedules            admin operator
    add brokers                        admin
    read policies                      admin operator reader
    change policies                    admin
    read the record of requests        admin operator reader
    freeze or thaw the fleet           admin operator
    read the status                    admin operator reader
    read events                        admin operator reader
    put events in                      admin operator
    read webhooks, triggers and routes admin operator reader
    look after alarms                  admin operator
    start builds                       admin operator
    tell what was said in a chat network admin witness
    read machines                      admin operator reader
    make, change or destroy machines   admin operator
    add or remove disk images          admin
    change networks or hypervisors     admin
    change accounts or ssh keys        admin
    read security groups               admin operator reader
    change security groups             admin operator
    ask who it is                      admin operator reader node-enroller member witness
    ");
}

#[test]
fn a_denial_says_who_and_what() {
    let denied = authorize(&FixedRoles, &caller(Role::Reader), Action::Ping, ()).unwrap_err();
    assert_eq!(denied.to_string(), "ana (reader) may not ping nodes");
    let allowed = authorize(&FixedRoles, &caller(Role::Admin), Action::Ping, 7).unwrap();
    assert_eq!((*allowed.get(), allowed.principal().as_str()), (7, "ana"));
}
