//! Exports with TLS, read by clients that others wrote, and by none that has no certificate.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

use crate::bench::{Dir, text};

const SERVE: &str = "lvmsync view mon.delta tue.delta wed.delta --base base --nbd tcp:127.0.0.1:0 --tls-certificates tls";

/// `tls` and `others`: an authority each, and its certificates for a server and a client.
fn with_certificates() -> Dir {
    let dir = Dir::new();
    for name in ["tls", "others"] {
        std::fs::create_dir(dir.path(name)).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let put = |file: &str, pem: String| dir.write(&format!("{name}/{file}"), pem.as_bytes());
        put("ca-cert.pem", authority.pem());
        for whose in ["server", "client"] {
            let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
            let key = KeyPair::generate().unwrap();
            let params = CertificateParams::new(names).unwrap();
            let certificate = params.signed_by(&key, &authority).unwrap();
            put(&format!("{whose}-cert.pem"), certificate.pem());
            put(&format!("{whose}-key.pem"), key.serialize_pem());
        }
    }
    dir
}

#[test]
fn clients_with_a_certificate_read_the_state_and_no_others_hear_anything() {
    let dir = with_certificates();
    dir.write("expected", &dir.states[3]);
    let serving = dir.serve(SERVE);
    let address = serving.uri.strip_prefix("nbds://").unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let port = address.rsplit(':').next().unwrap();
    let with = |directory: &str| {
        let directory = dir.path(directory).display().to_string();
        format!("nbds://{address}/?tls-certificates={directory}")
    };
    assert!(text(&dir.ok(&format!("nbdinfo {}", with("tls")))).contains("export-size: 6291456"));
    dir.ok(&format!("nbdcopy {} copied", with("tls")));
    assert!(dir.read("copied") == dir.states[3]);
    let tls = dir.path("tls").display().to_string();
    dir.ok(&format!(
        "qemu-img compare --object tls-creds-x509,id=t,dir={tls},endpoint=client --image-opts \
         driver=nbd,host=localhost,port={port},tls-creds=t driver=file,filename=expected"
    ));

    // The same authority for the server, and none for the client, or another one's certificate.
    for (name, certificate) in [("nobody", None), ("stranger", Some("others"))] {
        std::fs::create_dir(dir.path(name)).unwrap();
        std::fs::copy(
            dir.path("tls/ca-cert.pem"),
            dir.path(&format!("{name}/ca-cert.pem")),
        )
        .unwrap();
        for file in ["client-cert.pem", "client-key.pem"] {
            if let Some(from) = certificate {
                let to = dir.path(&format!("{name}/{file}"));
                std::fs::copy(dir.path(&format!("{from}/{file}")), to).unwrap();
            }
        }
    }
    for uri in [
        with("others"),
        with("nobody"),
        with("stranger"),
        format!("nbd://{address}"),
    ] {
        let output = dir.run(&format!("nbdinfo {uri}"));
        assert!(!output.status.success(), "{uri}: {}", text(&output.stdout));
        assert!(!text(&output.stdout).contains("6291456"));
    }
    assert!(serving.end().contains("clients served"));
}

/// What comes with the wish for TLS, and not through it, may be anybody's.
#[test]
fn words_before_the_handshake_end_the_connection() {
    let dir = with_certificates();
    let serving = dir.serve(SERVE);
    let address = serving.uri.strip_prefix("nbds://").unwrap();
    let (address, _) = address.split_once('/').unwrap();
    let connect = || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream.read_exact(&mut [0; 18]).unwrap();
        stream.write_all(&[0, 0, 0, 3]).unwrap();
        stream
    };
    let option = |number: u8| [b"IHAVEOPT", &[0, 0, 0, number, 0, 0, 0, 0][..]].concat();
    let answer = |stream: &mut TcpStream| {
        let mut reply = [0; 20];
        stream.read_exact(&mut reply).unwrap();
        let length = u32::from_be_bytes(reply[16..].try_into().unwrap());
        stream.read_exact(&mut vec![0; length as usize]).unwrap();
        u32::from_be_bytes(reply[12..16].try_into().unwrap())
    };
    let mut stream = connect();
    stream.write_all(&option(8)).unwrap();
    assert_eq!(answer(&mut stream), 0x8000_0005, "TLS is needed first");
    stream.write_all(&[option(5), option(8)].concat()).unwrap();
    assert_eq!(answer(&mut stream), 1, "TLS may begin");
    let begun = Instant::now();
    let mut rest = Vec::new();
    let _ = stream.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    assert!(begun.elapsed() < Duration::from_secs(5), "it ends at once");

    // Nor does a handshake that is none, or never comes, hold up anybody.
    let mut noise = connect();
    noise.write_all(&option(5)).unwrap();
    assert_eq!(answer(&mut noise), 1);
    noise.write_all(&[7; 4096]).unwrap();
    let _ = noise.read_to_end(&mut rest);
    let _silent = connect();
    dir.ok(&format!(
        "nbdinfo nbds://{address}/?tls-certificates={}",
        dir.path("tls").display()
    ));
    serving.end();
}

#[test]
fn a_directory_without_certificates_is_refused_before_anything_is_served() {
    let dir = with_certificates();
    let line =
        |tls: &str| format!("lvmsync view full.delta --nbd tcp:0.0.0.0:0 --tls-certificates {tls}");
    dir.fails(&line("none"), 5, &["none/ca-cert.pem", "server-key.pem"]);
    dir.write("tls/ca-crl.pem", b"0\x82 not PEM");
    dir.fails(&line("tls"), 5, &["tls/ca-crl.pem", "no revocation list"]);
    std::fs::remove_file(dir.path("tls/ca-crl.pem")).unwrap();
    dir.write("tls/server-key.pem", b"no key");
    dir.fails(
        &line("tls"),
        5,
        &["tls/server-key.pem: cannot serve with TLS"],
    );
    dir.fails(
        "lvmsync view full.delta --to x --tls-certificates tls",
        2,
        &["--nbd"],
    );
}
