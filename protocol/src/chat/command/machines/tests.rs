//! Lines about machines, and what they say.

use proptest::prelude::*;

use super::*;
use crate::api::Strategy;
use crate::chat::alias::Aliases;
use crate::chat::command::{Command, read};
use crate::units::Span;
use crate::vm::Size;

fn said(line: &str) -> Result<MachineCommand, String> {
    let aliases = [(
        "web".to_owned(),
        "vm create $1 --image debian-12 --cpus 1 --memory 1GiB --role web".to_owned(),
    )];
    let aliases = Aliases::new(&aliases.into(), |word| super::super::find(word).is_some());
    let aliases = aliases.unwrap();
    match read(line, &aliases, std::iter::empty()) {
        Ok(said) => match said.command {
            Command::Machines(machines) => Ok(machines),
            other => Err(format!("{other:?}")),
        },
        Err(error) => Err(error.to_string()),
    }
}

fn create(line: &str) -> CreateVms {
    match said(line) {
        Ok(MachineCommand::Create(create)) => *create,
        other => panic!("{other:?}"),
    }
}

fn act(line: &str) -> VmAction {
    match said(line) {
        Ok(MachineCommand::Act { name, what }) => {
            assert_eq!(name.as_str(), "web-03");
            what
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_machine_with_everything() {
    let it = create(
        "vm create web-03 --image debian-12 --cpus 2 --memory 2GiB --disk 10GiB --network public \
         --network=back --role web --role lb --label tier=front --label x=a:b --account acme \
         --on 'zone=gva2 and not name=hv-1' --no-agent --count 3 --apart rack --strategy pack \
         --ready guest-agent --within 5m --protect --no-autostart --dry-run",
    );
    assert_eq!(it.name, "web-03");
    assert_eq!(
        (it.cpus, it.memory, it.disk),
        (2, Size(2 << 30), Some(Size(10 << 30)))
    );
    assert_eq!(it.networks.len(), 2);
    assert_eq!(it.roles.len(), 2);
    assert_eq!(it.labels["tier"].as_str(), "front");
    assert_eq!(it.labels["x"].as_str(), "a:b");
    assert_eq!(it.on.as_deref(), Some("zone=gva2 and not name=hv-1"));
    assert_eq!((it.agent, it.count, it.dry_run), (false, Some(3), true));
    assert_eq!(
        (it.strategy, it.ready),
        (Strategy::Pack, Some(Readiness::GuestAgent))
    );
    assert_eq!(it.ready_within, Some(Span::from_secs(300)));
    assert!(it.protect && !it.autostart);

    let it = create("vm create web-03 --image debian-12 --cpus 1 --memory 1GiB");
    assert!(it.agent && it.autostart && !it.protect && !it.dry_run);
    assert!(it.networks.is_empty() && it.user_data.is_none() && it.ssh_keys.is_empty());
    // An alias fills in one word.
    let it = create("web 'web-03 --no-agent'");
    assert_eq!(it.name, "web-03 --no-agent");
    assert!(it.agent);
}

#[test]
fn what_is_done_with_one() {
    assert_eq!(act("vm start web-03"), VmAction::Start);
    assert_eq!(
        act("VM Stop web-03 --grace 2m"),
        VmAction::Stop {
            grace: Some(Span::from_secs(120))
        }
    );
    assert_eq!(act("vm reboot web-03"), VmAction::Reboot { grace: None });
    assert_eq!(
        act("vm resize web-03 --memory 4GiB"),
        VmAction::Resize {
            cpus: None,
            memory: Some(Size(4 << 30)),
            disk: None
        }
    );
    let snapshot = "before".parse().unwrap();
    assert_eq!(
        act("vm snapshot web-03 before"),
        VmAction::Snapshot { snapshot }
    );
    let snapshot = "before".parse().unwrap();
    assert_eq!(
        act("vm restore web-03 before"),
        VmAction::Restore { snapshot }
    );
    assert_eq!(act("vm protect web-03"), VmAction::Protect);
    assert_eq!(act("vm unprotect web-03"), VmAction::Unprotect);
    assert_eq!(act("vm undelete web-03"), VmAction::Undelete);
    assert_eq!(
        act("vm console web-03 --lines 5"),
        VmAction::ConsoleLog { lines: Some(5) }
    );
    assert_eq!(
        act("vm exec web-03 --timeout 5s -- sh -c 'a; b' --purge"),
        VmAction::Exec {
            argv: ["sh", "-c", "a; b", "--purge"].map(str::to_owned).to_vec(),
            timeout: Some(Span::from_secs(5))
        }
    );
    assert_eq!(
        act("vm provision web-03"),
        VmAction::Provision { configure: None }
    );
    let VmAction::Provision {
        configure: Some(configure),
    } = act("vm provision web-03 deploy version=1.4.2")
    else {
        panic!("a scenario");
    };
    assert_eq!(configure.scenario.as_str(), "deploy");
    assert_eq!(configure.params["version"], "1.4.2");
    assert!(said("vm provision web-03 version=1.4.2").is_err());
    let name: VmName = "web-03".parse().unwrap();
    assert_eq!(
        said("vm show web-03"),
        Ok(MachineCommand::Show(name.clone()))
    );
    assert_eq!(
        said("vm where web-03"),
        Ok(MachineCommand::Where(name.clone()))
    );
    assert_eq!(said("vm log web-03"), Ok(MachineCommand::Log(name.clone())));
    assert_eq!(
        said("vm destroy web-03 --purge"),
        Ok(MachineCommand::Destroy {
            name,
            purge: true,
            yes: false
        })
    );
    assert_eq!(
        said("vm list role=web and status = 'running' --deleted"),
        Ok(MachineCommand::List {
            on: Some("role=web and status = 'running'".to_owned()),
            deleted: true
        })
    );
    assert_eq!(said("image list"), Ok(MachineCommand::Images));
    assert_eq!(said("network list"), Ok(MachineCommand::Networks));
    assert_eq!(said("hypervisor list"), Ok(MachineCommand::Hypervisors));
    assert_eq!(
        said("hypervisor drain hv-1"),
        Ok(MachineCommand::Drain("hv-1".parse().unwrap()))
    );
    assert_eq!(
        said("hypervisor cordon hv-1"),
        Ok(MachineCommand::Cordon {
            node: "hv-1".parse().unwrap(),
            cordoned: true
        })
    );
}

#[test]
fn mistakes_say_how_it_is_written() {
    let wrong = |line: &str| said(line).unwrap_err();
    insta::assert_snapshot!(wrong("vm"), @"one of create, list, show, where, log, start, stop, reboot, resize, snapshot, restore, protect, unprotect, destroy, undelete, console, exec, provision, group belongs behind it: vm create|list|show|start|stop|destroy|... VM");
    insta::assert_snapshot!(wrong("vm strat web-03"), @"there is no command `vm strat`; did you mean `vm start`?");
    insta::assert_snapshot!(wrong("vm xyzzy web-03"), @"there is no command `vm xyzzy`; `help` says what there is");
    insta::assert_snapshot!(wrong("vm start"), @"the machine is missing: vm start VM");
    insta::assert_snapshot!(wrong("vm start web-03 web-04"), @"`web-04` is too much: vm start VM");
    insta::assert_snapshot!(wrong("vm start web-03 --prge"), @"vm start has no `--prge`; it is written `vm start VM`");
    insta::assert_snapshot!(wrong("vm create web-03 --cpus 2 --memory 2GiB"), @"`--image` is missing: vm create NAME --image IMAGE --cpus N --memory SIZE [--disk SIZE] [--network NETWORK]... [--role ROLE]... [--label K=V]... [--group GROUP]... [--account ACCOUNT] [--on PREDICATE] [--count N] [--ssh-key NAME]... [--configure SCENARIO [--param K=V]...] [--no-agent] [--dry-run]");
    insta::assert_snapshot!(wrong("vm resize web-03 --memory much"), @"`--memory`: `much` is not a size; write it like 512MiB, 2GiB or 1TiB: vm resize VM [--cpus N] [--memory SIZE] [--disk SIZE]");
    insta::assert_snapshot!(wrong("vm create web-03 --user-data seed.yaml"), @"`--user-data` names a file, and what is in it has no place in a chat: type it in a shell: muster vm create ... --user-data FILE");
    insta::assert_snapshot!(wrong("vm exec web-03 uptime"), @"a ` -- ` belongs between machine and program: vm exec VM [--timeout TIME] -- COMMAND");
    insta::assert_snapshot!(wrong("vm exec web-03 --"), @"the program is missing: vm exec VM [--timeout TIME] -- COMMAND");
    insta::assert_snapshot!(wrong("vm stop web-03 -- now"), @"`--` means nothing here: vm stop VM [--grace TIME]");
    insta::assert_snapshot!(wrong("hypervisor burn hv-1"), @"there is no command `hypervisor burn`; `help` says what there is");
}

#[test]
fn a_machine_is_configured_and_has_keys_by_their_names() {
    let it = create(
        "vm create web-03 --image i --cpus 1 --memory 1GiB --ssh-key ana --ssh-key=bruno@x \
         --configure deploy --param version=1.4.2 --param 'why=a b=c'",
    );
    assert_eq!(it.ssh_keys, ["ana", "bruno@x"]);
    let configure = it.configure.clone().unwrap();
    assert_eq!(configure.scenario.as_str(), "deploy");
    assert_eq!(configure.params["version"], "1.4.2");
    assert_eq!(configure.params["why"], "a b=c");
    let mut lines = Vec::new();
    MachineCommand::Create(Box::new(it)).spelled(&mut |line| lines.push(line));
    insta::assert_snapshot!(lines.join("\n"), @r#"
    make the machine web-03
      image = i
      processors = 1
      memory = 1GiB
      ssh keys = ana, bruno@x
      configured by deploy
        version = 1.4.2
        why = "a b=c"
    "#);
    let wrong = |more: &str| {
        let line = format!("vm create web-03 --image i --cpus 1 --memory 1GiB {more}");
        let said = said(&line).unwrap_err();
        let (why, usage) = said.split_once(": vm create").unwrap();
        assert!(usage.contains("--configure SCENARIO"), "{usage}");
        why.to_owned()
    };
    insta::assert_snapshot!(wrong("--param version=1"), @"`--param` is one of `--configure`, which is missing");
    insta::assert_snapshot!(wrong("--configure deploy --param version"), @"`--param version` is written like version=1.4.2");
    insta::assert_snapshot!(wrong("--configure deploy --param a=1 --param a=2"), @"the parameter a is given twice");
    insta::assert_snapshot!(wrong("--configure 'De ploy'"), @"`--configure`: `De ploy` is not a valid scenario name: `D` is not allowed; it takes small letters, digits and `-_`");
    for secret in [
        "~/.ssh/id_ed25519",
        "'-----BEGIN OPENSSH PRIVATE KEY-----'",
        "'ssh-rsa AAAA'",
    ] {
        let said = wrong(&format!("--ssh-key {secret}"));
        assert_eq!(
            said,
            "`--ssh-key` takes the name of a key here (muster ssh-key list), and no file"
        );
    }
}

#[test]
fn names_that_are_none_are_refused_shortly() {
    let long = "x".repeat(300);
    for name in ["../../etc", "a\u{202e}b", "wéb", "<x>", "web 03", "", &long] {
        for verb in ["start", "destroy", "show", "console"] {
            let said = said(&format!("vm {verb} {}", crate::chat::quoted(name)));
            let why = said.unwrap_err();
            assert!(why.len() < 400, "{why}");
            assert!(!why.contains('\u{202e}'), "{why}");
        }
    }
    assert!(
        said("vm start web\u{7}03")
            .unwrap_err()
            .contains("control character")
    );
}

#[test]
fn every_verb_is_read_and_every_family_has_some() {
    for family in FAMILIES {
        assert!(super::super::find(family).is_some());
        assert!(of_family(family).count() > 0);
    }
    for verb in MACHINE_VERBS {
        let more = match verb.name {
            "vm create" => "web-03 --image i --cpus 1 --memory 1GiB",
            "vm list" | "image list" | "network list" | "hypervisor list" => "",
            "vm snapshot" | "vm restore" => "web-03 before",
            "vm exec" => "web-03 -- true",
            "vm group" => "web-03 add web",
            _ => "web-03",
        };
        let it = said(&format!("{} {more}", verb.name)).unwrap();
        assert_eq!(Some(it.family()), verb.name.split(' ').next());
        let mut lines = Vec::new();
        it.spelled(&mut |line| lines.push(line));
        assert!(!lines.is_empty(), "{}", verb.name);
    }
}

proptest! {
    #[test]
    fn no_line_about_machines_panics(verb in 0..MACHINE_VERBS.len(), rest in "\\PC{0,80}") {
        let _ = said(&format!("{} {rest}", MACHINE_VERBS[verb].name));
    }

    #[test]
    fn what_runs_in_a_machine_is_never_a_flag(word in "[^\\x00-\\x1f\\x7f-\\x9f]{1,40}") {
        let line = format!("vm exec web-03 -- true {}", crate::chat::quoted(&word));
        let Ok(MachineCommand::Act { what: VmAction::Exec { argv, timeout }, .. }) = said(&line) else {
            panic!("{line}")
        };
        prop_assert_eq!(argv, ["true".to_owned(), word]);
        prop_assert!(timeout.is_none());
    }
}
