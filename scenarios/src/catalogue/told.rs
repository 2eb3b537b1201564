//! What a test is told of calls on nodes.

/// What a function on a node can say, and the text of it that a test's `did`
/// gives and its `reply` is held against. A test runs each.
pub const TOLD: &[(&str, &str)] = &[
    (
        "command([\"lbctl\", \"drain\", \"web-01\"])",
        "command lbctl drain web-01",
    ),
    ("shell(\"df -h | tail -1\")", "shell df -h | tail -1"),
    (
        "file(\"/etc/motd\").content(\"Hello\")",
        "file /etc/motd content",
    ),
    (
        "file(\"/etc/motd\").template(\"motd.j2\", #{})",
        "file /etc/motd content",
    ),
    (
        "file(\"/etc/hosts\").line(\"192.0.2.1 db\")",
        "file /etc/hosts line 192.0.2.1 db",
    ),
    (
        "file(\"/etc/hosts\").no_line(\"192.0.2.1 db\")",
        "file /etc/hosts no_line 192.0.2.1 db",
    ),
    ("file(\"/etc/hosts\").restore()", "file /etc/hosts restore"),
    (
        "file(\"/etc/motd\").mode(\"0644\")",
        "file /etc/motd mode 0644",
    ),
    (
        "file(\"/etc/motd\").owner(\"root:adm\")",
        "file /etc/motd owner root group adm",
    ),
    ("file(\"/srv/app\").directory()", "file /srv/app directory"),
    ("file(\"/etc/motd\").absent()", "file /etc/motd absent"),
    (
        "package(\"webapp\").installed()",
        "package webapp installed",
    ),
    (
        "package(\"webapp\").version(\"1.4.2\")",
        "package webapp version 1.4.2",
    ),
    ("package(\"webapp\").latest()", "package webapp latest"),
    ("package(\"webapp\").absent()", "package webapp absent"),
    ("service(\"webapp\").running()", "service webapp running"),
    ("service(\"webapp\").stopped()", "service webapp stopped"),
    (
        "service(\"webapp\").restarted()",
        "service webapp restarted",
    ),
    ("service(\"webapp\").reloaded()", "service webapp reloaded"),
    ("service(\"webapp\").enabled()", "service webapp enabled"),
    ("service(\"webapp\").disabled()", "service webapp disabled"),
    ("user(\"deploy\").present()", "user deploy present"),
    ("user(\"deploy\").absent()", "user deploy absent"),
    (
        "http(\"http://127.0.0.1/\").get()",
        "http http://127.0.0.1/ get",
    ),
    (
        "http(\"http://127.0.0.1/\").post(\"on\")",
        "http http://127.0.0.1/ post",
    ),
    (
        "http(\"http://127.0.0.1/\").until(200)",
        "http http://127.0.0.1/ until 200",
    ),
    ("puppet_apply(\"include ntp\")", "puppet apply"),
    ("puppet_agent()", "puppet agent"),
    ("reboot()", "reboot"),
    ("vm::image(IMAGE)", "vm image debian-12"),
    ("vm::create(MACHINE)", "vm create web-03"),
    (
        "vm::start(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm start 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    (
        "vm::stop(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm stop 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    (
        "vm::reboot(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm reboot 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    (
        "vm::destroy(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm destroy 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    (
        "vm::destroy(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\", #{ purge: true })",
        "vm destroy 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102 purge",
    ),
    (
        "vm::resize(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\", #{ cpus: 4, disk: \"20GiB\" })",
        "vm resize 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102 cpus 4 disk 20GiB",
    ),
    (
        "vm::snapshot(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\", \"before\")",
        "vm snapshot 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102 before",
    ),
    (
        "vm::restore(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\", \"before\")",
        "vm restore 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102 before",
    ),
    (
        "vm::unseed(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm unseed 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    ("vm::list()", "vm list"),
    (
        "vm::info(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm info 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    (
        "vm::console_log(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm console_log 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    (
        "vm::guest_exec(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\", [\"/bin/true\"])",
        "vm guest_exec 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102 /bin/true",
    ),
    (
        "vm::guest_ping(\"0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102\")",
        "vm guest_ping 0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102",
    ),
    (
        "firewall::host(#{ rules: [#{ accept: \"tcp 22\" }] })",
        "firewall host",
    ),
    ("firewall::show()", "firewall show"),
    ("firewall::history()", "firewall history"),
    ("firewall::diff()", "firewall diff"),
    ("firewall::rollback()", "firewall rollback"),
];
