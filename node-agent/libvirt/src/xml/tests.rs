use muster_protocol::ids::ClusterId;
use muster_protocol::vm::{ImageFormat, Machine, Owner, Size, Virtualisation, VmId};
use proptest::prelude::*;

use super::{
    Paths, domain, read_capabilities, read_domain, read_pool_path, read_snapshot_is_of_disk,
    snapshot, volume,
};

fn cluster() -> ClusterId {
    ClusterId::from_bytes([7; 16])
}

fn machine() -> Machine {
    let id = VmId::derive(&cluster(), &"web-03".parse().expect("a name"), 1);
    let nic = |index: u8, bridge: &str| {
        serde_json::json!({
            "network": "public", "bridge": bridge, "mac": id.mac(index), "tap": id.tap(index),
            "addresses": ["192.0.2.57", "2001:db8::57"],
        })
    };
    let json = serde_json::json!({
        "id": id, "name": "web-03", "cpus": 2, "memory": 2u64 << 30,
        "image": {
            "name": "debian-12", "sha256": "00".repeat(32), "size": 1 << 20,
            "format": "qcow2", "virtual_size": 2u64 << 30,
        },
        "disk": {"size": 10u64 << 30, "pool": "default"},
        "nics": [nic(0, "br0"), nic(1, "br-back")],
        "autostart": true, "ready": "agent", "account": "acme",
    });
    serde_json::from_value(json).expect("a machine")
}

fn paths() -> Paths {
    Paths {
        disk: "/pool/0.qcow2".into(),
        seed: Some("/pool/0.seed".into()),
        console_log: "/var/log/muster/0.log".into(),
        emulator: Some("/usr/bin/qemu-system-x86_64".into()),
    }
}

#[test]
fn a_domain_is_written() {
    let text = domain(&machine(), &paths(), cluster(), Virtualisation::Kvm);
    insta::assert_snapshot!(text, @r#"
    <domain type="kvm">
      <name>web-03</name>
      <uuid>ff143674-3d95-859c-a0c5-a0543ff6af79</uuid>
      <metadata>
        <muster:machine xmlns:muster="https://muster.example/machine/1" cluster="0w3ge1r70w3ge1r70w3ge1r70w">{&quot;id&quot;:&quot;ff143674-3d95-859c-a0c5-a0543ff6af79&quot;,&quot;name&quot;:&quot;web-03&quot;,&quot;cpus&quot;:2,&quot;memory&quot;:2147483648,&quot;image&quot;:{&quot;name&quot;:&quot;debian-12&quot;,&quot;sha256&quot;:&quot;0000000000000000000000000000000000000000000000000000000000000000&quot;,&quot;size&quot;:1048576,&quot;format&quot;:&quot;qcow2&quot;,&quot;virtual_size&quot;:2147483648},&quot;disk&quot;:{&quot;size&quot;:10737418240,&quot;pool&quot;:&quot;default&quot;},&quot;nics&quot;:[{&quot;network&quot;:&quot;public&quot;,&quot;bridge&quot;:&quot;br0&quot;,&quot;mac&quot;:&quot;52:72:f1:5c:92:17&quot;,&quot;tap&quot;:&quot;mt5cbsc922yx05&quot;,&quot;addresses&quot;:[&quot;192.0.2.57&quot;,&quot;2001:db8::57&quot;]},{&quot;network&quot;:&quot;public&quot;,&quot;bridge&quot;:&quot;br-back&quot;,&quot;mac&quot;:&quot;52:b5:2b:b8:73:7b&quot;,&quot;tap&quot;:&quot;mtek90w9w62wnc&quot;,&quot;addresses&quot;:[&quot;192.0.2.57&quot;,&quot;2001:db8::57&quot;]}],&quot;autostart&quot;:true,&quot;ready&quot;:&quot;agent&quot;,&quot;account&quot;:&quot;acme&quot;}</muster:machine>
      </metadata>
      <memory unit="bytes">2147483648</memory>
      <vcpu>2</vcpu>
      <os>
        <type machine="q35">hvm</type>
        <boot dev="hd"/>
      </os>
      <features>
        <acpi/>
        <apic/>
      </features>
      <cpu mode="host-passthrough"/>
      <clock offset="utc"/>
      <on_poweroff>destroy</on_poweroff>
      <on_reboot>restart</on_reboot>
      <on_crash>destroy</on_crash>
      <devices>
        <emulator>/usr/bin/qemu-system-x86_64</emulator>
        <disk type="file" device="disk">
          <driver name="qemu" type="qcow2" discard="unmap"/>
          <source file="/pool/0.qcow2"/>
          <target dev="vda" bus="virtio"/>
        </disk>
        <disk type="file" device="disk">
          <driver name="qemu" type="raw"/>
          <source file="/pool/0.seed"/>
          <target dev="vdb" bus="virtio"/>
          <readonly/>
        </disk>
        <interface type="bridge">
          <mac address="52:72:f1:5c:92:17"/>
          <source bridge="br0"/>
          <target dev="mt5cbsc922yx05"/>
          <model type="virtio"/>
        </interface>
        <interface type="bridge">
          <mac address="52:b5:2b:b8:73:7b"/>
          <source bridge="br-back"/>
          <target dev="mtek90w9w62wnc"/>
          <model type="virtio"/>
        </interface>
        <serial type="pty">
          <log file="/var/log/muster/0.log" append="on"/>
          <target port="0"/>
        </serial>
        <console type="pty">
          <target type="serial" port="0"/>
        </console>
        <channel type="unix">
          <target type="virtio" name="org.qemu.guest_agent.0"/>
        </channel>
        <rng model="virtio">
          <backend model="random">/dev/urandom</backend>
        </rng>
        <memballoon model="virtio"/>
      </devices>
    </domain>
    "#);
}

#[test]
fn in_software_without_a_seed() {
    let mut machine = machine();
    machine.nics.clear();
    let paths = Paths {
        seed: None,
        emulator: None,
        ..paths()
    };
    let text = domain(&machine, &paths, cluster(), Virtualisation::Qemu);
    let start: Vec<&str> = text.lines().take(3).collect();
    insta::assert_snapshot!(start.join("\n"), @r#"
    <domain type="qemu">
      <name>web-03</name>
      <uuid>ff143674-3d95-859c-a0c5-a0543ff6af79</uuid>
    "#);
    assert_eq!(text.matches("<disk ").count(), 1, "{text}");
    for absent in ["vdb", "interface", "emulator", "host-passthrough"] {
        assert!(!text.contains(absent), "{absent}: {text}");
    }
}

#[test]
fn volumes_and_snapshots_are_written() {
    let size = Size(10 << 30);
    insta::assert_snapshot!(volume("a.qcow2", size, None), @r#"
    <volume>
      <name>a.qcow2</name>
      <capacity unit="bytes">10737418240</capacity>
      <allocation unit="bytes">0</allocation>
      <target>
        <format type="qcow2"/>
        <compat>1.1</compat>
      </target>
    </volume>
    "#);
    let backing = Some(("/pool/base", ImageFormat::Raw));
    insta::assert_snapshot!(volume("b.qcow2", size, backing), @r#"
    <volume>
      <name>b.qcow2</name>
      <capacity unit="bytes">10737418240</capacity>
      <allocation unit="bytes">0</allocation>
      <target>
        <format type="qcow2"/>
        <compat>1.1</compat>
      </target>
      <backingStore>
        <path>/pool/base</path>
        <format type="raw"/>
      </backingStore>
    </volume>
    "#);
    insta::assert_snapshot!(snapshot(&"before".parse().expect("a name")), @"
    <domainsnapshot>
      <name>before</name>
    </domainsnapshot>
    ");
}

#[test]
fn what_was_written_is_read() {
    let machine = machine();
    let text = domain(&machine, &paths(), cluster(), Virtualisation::Qemu);
    let read = read_domain(&text);
    assert_eq!(read.owner, Owner::Muster { cluster: cluster() });
    assert_eq!((read.cpus, read.memory), (2, Size(2 << 30)));
    assert_eq!(read.disks["vda"], "/pool/0.qcow2");
    assert_eq!(read.disks["vdb"], "/pool/0.seed");
    assert_eq!(read.machine.as_deref(), Some(&machine));
}

#[test]
fn no_path_ends_an_attribute() {
    let odd = "/pool/<a> & \"b\" 'c' ]]> é &amp; <!-- x";
    let paths = Paths {
        disk: odd.into(),
        seed: Some(odd.into()),
        console_log: odd.into(),
        emulator: Some(odd.into()),
    };
    let text = domain(&machine(), &paths, cluster(), Virtualisation::Qemu);
    let read = read_domain(&text);
    assert_eq!(read.disks["vda"], odd);
    assert_eq!(read.disks["vdb"], odd);
    assert_eq!(read.machine.as_deref(), Some(&machine()));
    let pool = volume(odd, Size(1), Some((odd, ImageFormat::Qcow2)));
    assert_eq!(pool.matches('<').count(), pool.matches('>').count());
    assert!(!pool.contains("<a>"), "{pool}");
}

/// The metadata in the form that libvirt writes: another quote, a prefix of
/// somebody else's choice.
fn claim(uuid: &str, name: &str, metadata: &str) -> String {
    format!(
        "<domain type='qemu' id='3'>\n  <name>{name}</name>\n  <uuid>{uuid}</uuid>\n  \
         <metadata>{metadata}</metadata>\n  <memory unit='KiB'>65536</memory>\n  \
         <vcpu placement='static' current='1'>4</vcpu>\n</domain>"
    )
}

fn metadata(cluster: &str, json: &str) -> String {
    let json = quick_xml::escape::escape(json);
    format!(
        "<m:machine xmlns:m='https://muster.example/machine/1' cluster='{cluster}'>{json}</m:machine>"
    )
}

#[test]
fn a_domain_is_musters_only_when_all_of_it_agrees() {
    let machine = machine();
    let (id, cluster) = (machine.id.to_string(), cluster().to_string());
    let json = serde_json::to_string(&machine).expect("JSON");
    let good = metadata(&cluster, &json);
    let read = read_domain(&claim(&id, "web-03", &good));
    assert!(matches!(read.owner, Owner::Muster { .. }), "{read:?}");
    assert_eq!((read.cpus, read.memory), (4, Size(64 << 20)));

    let other = "0c7e1a52-93b4-8d3f-a1c2-5d6e7f809102";
    let foreign = [
        claim(&id, "web-03", ""),
        claim(&id, "web-04", &good),
        claim(other, "web-03", &good),
        claim("", "web-03", &good),
        claim(&id, "web-03", &metadata("", &json)),
        claim(&id, "web-03", &metadata("../x", &json)),
        claim(&id, "web-03", &metadata(&cluster, &json[1..])),
        claim(&id, "web-03", &metadata(&cluster, "")),
        claim(&id, "web-03", &format!("{good}{good}")),
        claim(&id, "web-03", &format!("<other>{good}</other>")),
        claim(
            &id,
            "web-03",
            &good.replace("muster.example", "example.org"),
        ),
        claim(&id, "web-03", &json),
    ];
    for xml in foreign {
        let read = read_domain(&xml);
        assert_eq!((read.owner, read.machine), (Owner::Foreign, None), "{xml}");
        assert_eq!((read.cpus, read.memory), (4, Size(64 << 20)), "{xml}");
    }
}

#[test]
fn hostile_xml_is_nobodys() {
    let good = domain(&machine(), &paths(), cluster(), Virtualisation::Qemu);
    let attributes: String = (0..100_000).map(|n| format!(" a{n}='1'")).collect();
    let namespaces: String = (0..100_000).map(|n| format!(" xmlns:a{n}='1'")).collect();
    let entities = format!("<!DOCTYPE d [<!ENTITY a \"b\">]>{good}");
    let bad = [
        String::new(),
        "<".into(),
        "<domain>".into(),
        "<domain/><domain/>".into(),
        "x<domain/>".into(),
        "<domain>&lol;</domain>".into(),
        "<domain>&#x110000;</domain>".into(),
        "<domain a='&lol;'/>".into(),
        "<m:domain/>".into(),
        "<domain></vm>".into(),
        "<a>".repeat(500_000),
        "<a>".repeat(100) + &"</a>".repeat(100),
        format!("<domain{attributes}/>"),
        format!("<domain{namespaces}/>"),
        format!("<domain>{}</domain>", "x".repeat(5 << 20)),
        format!("<domain><name>{}</name></domain>", "x".repeat(1 << 20)),
        entities,
        good.replace("</domain>", ""),
        format!("{good}{good}"),
    ];
    for xml in bad {
        let read = read_domain(&xml);
        let start: String = xml.chars().take(80).collect();
        assert_eq!(read.owner, Owner::Foreign, "{start}");
        assert_eq!((read.cpus, read.disks.len()), (0, 0), "{start}");
    }
}

#[test]
fn units_of_memory() {
    for (text, bytes) in [
        ("<memory>1024</memory>", 1 << 20),
        ("<memory unit='bytes'>7</memory>", 7),
        ("<memory unit='GiB'>2</memory>", 2 << 30),
        ("<memory unit='MB'>2</memory>", 2_000_000),
        ("<memory unit='TiB'>99999999999999</memory>", 0),
        ("<memory unit='x'>2</memory>", 0),
        ("<memory>-1</memory>", 0),
    ] {
        let read = read_domain(&format!("<domain>{text}</domain>"));
        assert_eq!(read.memory, Size(bytes), "{text}");
    }
}

#[test]
fn capabilities_of_the_hosts_own_processor() {
    let guest = |arch: &str, kinds: &str| {
        format!(
            "<guest><os_type>hvm</os_type><arch name='{arch}'><wordsize>64</wordsize>\
             <emulator>/usr/bin/qemu-{arch}</emulator><machine>pc</machine>{kinds}</arch></guest>"
        )
    };
    let host = |guests: &str| {
        let xml = format!(
            "<capabilities><host><cpu><arch>x86_64</arch></cpu></host>{guests}</capabilities>"
        );
        let read = read_capabilities(&xml);
        (read.virtualisation, read.emulator)
    };
    let own = || Some("/usr/bin/qemu-x86_64".to_owned());
    let arm = guest("aarch64", "<domain type='kvm'/>");
    let both = guest("x86_64", "<domain type='qemu'/><domain type='kvm'/>");
    assert_eq!(
        host(&(arm.clone() + &both)),
        (Some(Virtualisation::Kvm), own())
    );
    let soft = guest("x86_64", "<domain type='qemu'/>");
    assert_eq!(
        host(&(arm.clone() + &soft)),
        (Some(Virtualisation::Qemu), own())
    );
    let special = guest(
        "x86_64",
        "<domain type='qemu'/><domain type='kvm'><emulator>/usr/bin/kvm</emulator></domain>",
    );
    let (kind, emulator) = host(&special);
    assert_eq!(kind, Some(Virtualisation::Kvm));
    assert_eq!(emulator.as_deref(), Some("/usr/bin/kvm"));
    let test = guest("x86_64", "<domain type='test'/>");
    assert_eq!(host(&(arm + &test)), (None, None));
    assert_eq!(host(""), (None, None));
    assert_eq!(host("<"), (None, None));
}

#[test]
fn the_directory_of_a_pool() {
    let xml =
        "<pool type='dir'><name>default</name><target><path>/a &amp; b</path></target></pool>";
    assert_eq!(read_pool_path(xml).as_deref(), Some("/a & b"));
    assert_eq!(read_pool_path("<pool><path>/a</path></pool>"), None);
    assert_eq!(read_pool_path("<pool><target><path>/a</path>"), None);
}

#[test]
fn whether_a_snapshot_has_memory() {
    let with = |state: &str| {
        read_snapshot_is_of_disk(&format!(
            "<domainsnapshot><state>{state}</state><domain><state>x</state></domain></domainsnapshot>"
        ))
    };
    assert!(with("shutoff"));
    assert!(with("crashed"));
    assert!(!with("running"));
    assert!(!with("paused"));
    assert!(!read_snapshot_is_of_disk(
        "<domainsnapshot><state>shutoff</state>"
    ));
    assert!(!read_snapshot_is_of_disk("<domainsnapshot/>"));
}

proptest! {
    #[test]
    fn no_text_makes_a_reader_panic(xml in "\\PC*") {
        prop_assert_eq!(read_domain(&xml).owner, Owner::Foreign);
        let _ = read_capabilities(&xml);
        let _ = read_pool_path(&xml);
    }

    #[test]
    fn no_change_to_a_definition_makes_another_machine(at in 0usize..4000, with in "[<>&;/'\"a-z ]{0,3}") {
        let mut good = domain(&machine(), &paths(), cluster(), Virtualisation::Qemu);
        let at = at % good.len();
        prop_assume!(good.is_char_boundary(at));
        good.insert_str(at, &with);
        let read = read_domain(&good);
        if let Some(read) = read.machine {
            prop_assert_eq!(read.id, machine().id);
            prop_assert_eq!(&read.name, &machine().name);
        }
    }
}
