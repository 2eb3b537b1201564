//! What the servers read.

use std::path::Path;

/// The password between server and services.
const LINK: &str = "linkpass";

pub(super) fn inspircd(dir: &Path, port: u16, tls_port: u16, link_port: u16) -> String {
    let dir = dir.display();
    let modules: String = [
        "botmode",
        "cap",
        "chghost",
        "hideoper",
        "ircv3",
        "ircv3_accounttag",
        "ircv3_batch",
        "ircv3_capnotify",
        "ircv3_chghost",
        "ircv3_ctctags",
        "ircv3_echomessage",
        "ircv3_labeledresponse",
        "ircv3_msgid",
        "ircv3_servertime",
        "monitor",
        "namesx",
        "sasl",
        "services_account",
        "servprotect",
        "spanningtree",
        "ssl_gnutls",
        "sslinfo",
        "svshold",
    ]
    .iter()
    .map(|name| format!("<module name=\"{name}\">\n"))
    .collect();
    format!(
        r#"<server name="irc.test" description="test" id="1TE" network="Test">
<admin name="a" nick="a" email="a@example.com">
<path configdir="{dir}" datadir="{dir}/data" logdir="{dir}/data" runtimedir="{dir}/data">
{modules}<sslprofile name="clients" provider="gnutls" certfile="{dir}/cert.pem" keyfile="{dir}/key.pem" hash="sha256" requestclientcert="yes">
<bind address="127.0.0.1" port="{port}" type="clients">
<bind address="127.0.0.1" port="{tls_port}" type="clients" sslprofile="clients">
<bind address="127.0.0.1" port="{link_port}" type="servers">
<connect name="all" allow="*" timeout="60" pingfreq="300" hardsendq="8388608" softsendq="4194304" recvq="1048576" localmax="1000" globalmax="1000" threshold="100000" commandrate="100000000" fakelag="no" maxconnwarn="no" resolvehostnames="no" useident="no" maxchans="200">
<channels users="200" opers="200">
<dns server="127.0.0.1" timeout="1">
<performance clonesonconnect="no">
<limits maxnick="30" maxchan="64">
<log method="file" type="*" level="default" target="inspircd.log">
<sasl target="services.test" requiressl="no">
<link name="services.test" ipaddr="127.0.0.1" port="{link_port}" allowmask="127.0.0.0/8" sendpass="{LINK}" recvpass="{LINK}">
<uline server="services.test" silent="yes">
"#
    )
}

pub(super) fn atheme(link_port: u16) -> String {
    let modules: String = [
        "protocol/inspircd",
        "backend/opensex",
        "crypto/pbkdf2v2",
        "nickserv/main",
        "nickserv/cert",
        "nickserv/identify",
        "nickserv/logout",
        "nickserv/register",
        "saslserv/main",
        "saslserv/external",
        "saslserv/plain",
    ]
    .iter()
    .map(|name| format!("loadmodule \"modules/{name}\";\n"))
    .collect();
    format!(
        r#"{modules}serverinfo {{
  name = "services.test"; desc = "services"; numeric = "00A"; recontime = 1; netname = "Test";
  hidehostsuffix = "users.test"; adminname = "a"; adminemail = "a@example.com";
  registeremail = "a@example.com"; mta = "/bin/true"; loglevel = {{ error; info; network; }};
  maxlogins = 50; maxusers = 0; mdlimit = 30; emaillimit = 1000; auth = none;
  casemapping = rfc1459;
}};
uplink "irc.test" {{
  host = "127.0.0.1"; port = {link_port}; send_password = "{LINK}"; receive_password = "{LINK}";
}};
nickserv {{ nick = "NickServ"; user = "ns"; host = "services.test"; real = "NickServ"; }};
saslserv {{ nick = "SaslServ"; user = "ss"; host = "services.test"; real = "SaslServ"; }};
crypto {{ pbkdf2v2_rounds = 10000; }};
general {{ flood_msgs = 0; commit_interval = 60; }};
"#
    )
}

pub(super) fn ngircd(port: u16) -> String {
    format!(
        "[Global]\nName = irc.test\nInfo = test\nListen = 127.0.0.1\nPorts = {port}\nNetwork = Test\n\
         AdminInfo1 = test\nAdminEMail = a@example.com\n\
         [Limits]\nMaxConnections = 0\nMaxConnectionsIP = 0\nMaxJoins = 0\nMaxNickLength = 30\n\
         MaxPenaltyTime = 0\n[Options]\nDNS = no\nIdent = no\nPAM = no\nSyslogFacility = local1\n"
    )
}
