//! Signals and exit statuses of a whole process: this test starts itself as a role.

use std::io::Read;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use thicket_runtime::{Role, RoleConfig, Server, Services, parse_duration, run};
use thicket_telemetry::TelemetryArgs;

/// The child: serves until it is told to stop, with the drain delay of `DELAY`, on the address of `LISTEN`, and says
/// where its admin pages are in the file `WHERE`.
#[test]
#[ignore = "started by the other tests as a process of its own"]
fn child() {
    let setting = |name| std::env::var(name).expect("set by the parent");
    let config = RoleConfig {
        listen: setting("LISTEN").parse().expect("an address"),
        drain_delay: parse_duration(&setting("DELAY")).expect("a time"),
        ..crate::support::config()
    };
    run("thicket-test", &TelemetryArgs::default(), |stop| async move {
        let server = Server::bind(Role::Gallery, &config).await?;
        let place = std::path::PathBuf::from(setting("WHERE"));
        let half = place.with_extension("half");
        std::fs::write(&half, server.admin_addr().expect("asked for").to_string()).expect("written");
        std::fs::rename(half, place).expect("renamed");
        server.serve(Services::new(), stop.requested()).await?.into_result()
    })
}

fn spawn(place: &Path, listen: &str, delay: &str) -> Child {
    Command::new(std::env::current_exe().expect("known"))
        .args(["--exact", "process::child", "--ignored", "--nocapture"])
        .env("WHERE", place)
        .env("LISTEN", listen)
        .env("DELAY", delay)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("spawned")
}

fn signal(child: &Child, name: &str) {
    let command = format!("kill -{name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &command]).status().expect("a shell").success());
}

async fn address_in(place: &Path) -> SocketAddr {
    loop {
        if let Ok(text) = std::fs::read_to_string(place) {
            return text.parse().expect("an address");
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn page_becomes(admin: SocketAddr, path: &str, status: u16) {
    while crate::support::get(admin, path).await.0 != status {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn exit_status_after_two(name: &str) -> Option<i32> {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("where");
    let mut child = spawn(&place, "127.0.0.1:0", "1h");
    let admin = address_in(&place).await;
    page_becomes(admin, "/readyz", 200).await;
    signal(&child, name);
    page_becomes(admin, "/readyz", 503).await;
    signal(&child, name);
    child.wait().expect("waited").code()
}

#[tokio::test]
async fn a_second_interrupt_leaves_at_once_with_130() {
    assert_eq!(exit_status_after_two("INT").await, Some(130));
}

#[tokio::test]
async fn a_second_terminate_leaves_at_once_with_143() {
    assert_eq!(exit_status_after_two("TERM").await, Some(143));
}

#[tokio::test]
async fn a_drained_process_exits_with_0() {
    let folder = tempfile::tempdir().expect("a folder");
    let place = folder.path().join("where");
    let mut child = spawn(&place, "127.0.0.1:0", "0");
    page_becomes(address_in(&place).await, "/readyz", 200).await;
    signal(&child, "TERM");
    assert_eq!(child.wait().expect("waited").code(), Some(0));
}

#[test]
fn bad_configuration_exits_with_2_and_one_line() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut child = spawn(&folder.path().join("where"), "0.0.0.0:0", "0");
    let mut said = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut said).expect("text");
    assert_eq!(child.wait().expect("waited").code(), Some(2));
    let line =
        "thicket-test: 0.0.0.0:0 can be reached by others: give a tokens file, or listen on loopback\n";
    assert_eq!(said, line);
}
