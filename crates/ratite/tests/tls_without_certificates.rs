//! The daemon with credentials that are no certificates, and clients over GnuTLS.
#![cfg(feature = "tls-anon-psk")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test"
)]

mod support;

use std::fs;

use serde_json::json;
use support::tools::{create_image, qemu_img, run, tool};
use support::{Daemon, new_folder};

const KEY: &str = "6cf1d1b7a0c14e0a8f6a3b0d0a4f7e2b6cf1d1b7a0c14e0a8f6a3b0d0a4f7e2b";

fn serve(creds: &str) -> Daemon {
    let folder = new_folder();
    create_image(&folder.path().join("disk.qcow2"), "qcow2", "", "64M");
    fs::write(folder.path().join("keys.psk"), format!("qemu:{KEY}\n")).unwrap();
    let creds = format!("{creds},id=tls0,endpoint=server");
    let options = [
        "--object",
        &creds,
        "--blockdev",
        "driver=qcow2,node-name=disk,file.driver=file,file.filename={dir}/disk.qcow2",
        "--nbd-server",
        "addr.type=unix,addr.path={dir}/nbd.sock,tls-creds=tls0",
        "--export",
        "type=nbd,id=disk,node-name=disk,name=disk,writable=on",
    ];
    Daemon::start_in(folder, &options)
}

/// The arguments of QEMU's tools for the export.
fn image_options(daemon: &Daemon, creds: &str) -> [String; 4] {
    let socket = daemon.path("nbd.sock").display().to_string();
    [
        "--object".to_owned(),
        format!("{creds},id=tls0,endpoint=client"),
        "--image-opts".to_owned(),
        format!("driver=nbd,server.type=unix,server.path={socket},export=disk,tls-creds=tls0"),
    ]
}

#[test]
fn qemus_tools_use_the_disk_over_each_kind_of_tls() {
    for kind in ["psk", "anon"] {
        let daemon = serve(&format!("tls-creds-{kind},dir={{dir}}"));
        let dir = daemon.folder().display().to_string();
        let client = image_options(&daemon, &format!("tls-creds-{kind},dir={dir}"));
        run(tool("qemu-io").args(&client).args([
            "-c",
            "write -P 7 1M 9M",
            "-c",
            "read -P 7 1M 9M",
        ]));
        let info = run(tool("qemu-img")
            .args(["info", "--output=json"])
            .args(&client));
        assert!(info.contains("67108864"), "{info}");
        // Without TLS, or with another kind, nobody gets in.
        let plain = tool("nbdinfo").arg(daemon.nbd_uri("disk")).output();
        assert!(!plain.unwrap().status.success());
        let mut qmp = daemon.qmp();
        let other = if kind == "psk" { "anon" } else { "psk" };
        let other = image_options(&daemon, &format!("tls-creds-{other},dir={dir}"));
        let refused = tool("qemu-img").arg("info").args(&other).output();
        assert!(!refused.unwrap().status.success());
        let shown = qmp.ok("qom-get", &json!({"path": "tls0", "property": "type"}));
        assert_eq!(shown, format!("tls-creds-{kind}"));
        drop(qmp);
        let folder = daemon.quit();
        let image = folder.path().join("disk.qcow2").display().to_string();
        qemu_img(&["check", "-q", &image]);
    }
}

#[test]
fn libnbd_uses_the_disk_with_a_key() {
    let daemon = serve("tls-creds-psk,dir={dir}");
    let socket = daemon.path("nbd.sock").display().to_string();
    let keys = daemon.path("keys.psk").display().to_string();
    let uri = format!("nbds+unix://qemu@/disk?socket={socket}&tls-psk-file={keys}");
    let info = run(tool("nbdinfo").args(["--json", &uri]));
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    assert_eq!(info["TLS"], true);
    let copy = daemon.path("copy").display().to_string();
    run(tool("nbdcopy").args([&uri, &copy]));
    assert_eq!(fs::metadata(&copy).unwrap().len(), 64 << 20);
    daemon.quit();
}
