//! Who may call, and what the audit log says about it.

use std::fmt::Write as _;

use crate::support::{Running, config, start, text};
use sha2::{Digest, Sha256};
use thicket_proto::v1::GetModelRequest;
use thicket_proto::v1::embedding_service_client::EmbeddingServiceClient;
use thicket_runtime::{Fault, Role, RoleConfig, Server, StartError};
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

struct Guarded {
    role: Running,
    folder: tempfile::TempDir,
}

/// A role with two tokens, `reader` and `chief`, named by their own names.
async fn guarded() -> Guarded {
    let folder = tempfile::tempdir().expect("a folder");
    let entry = |name: &str, rights: &str| {
        let mut hash = String::new();
        for byte in Sha256::digest(name) {
            let _ = write!(hash, "{byte:02x}");
        }
        format!(r#"{{"name":"{name}","sha256":"{hash}","rights":{rights},"collections":["lobby"]}}"#)
    };
    let tokens = format!("[{},{}]", entry("reader", r#"["read"]"#), entry("chief", r#"["read","admin"]"#));
    let file = folder.path().join("tokens.json");
    std::fs::write(&file, tokens).expect("written");
    let config = RoleConfig {
        tokens_file: Some(file),
        audit_log: Some(folder.path().join("audit.jsonl")),
        ..config()
    };
    Guarded { role: start(&config).await, folder }
}

impl Guarded {
    fn client(&self, token: Option<&str>) -> EmbeddingServiceClient<thicket_runtime::Peer> {
        EmbeddingServiceClient::new(self.role.peer(token))
    }

    fn audit(&self) -> Vec<serde_json::Value> {
        let text = std::fs::read_to_string(self.folder.path().join("audit.jsonl")).expect("an audit log");
        text.lines().map(|line| serde_json::from_str(line).expect("one JSON object a line")).collect()
    }
}

#[tokio::test]
async fn without_a_token_nothing_but_health_answers() {
    let guarded = guarded().await;
    let status = guarded.client(None).embed_text(text("four")).await.expect_err("no token");
    assert_eq!(status.code(), Code::Unauthenticated);
    let status = guarded.client(Some("stranger")).embed_text(text("four")).await.expect_err("unknown token");
    assert_eq!(status.code(), Code::Unauthenticated);
    let request = HealthCheckRequest { service: String::new() };
    assert!(HealthClient::new(guarded.role.peer(None)).check(request).await.is_ok());
}

#[tokio::test]
async fn a_right_that_is_missing_is_permission_denied() {
    let guarded = guarded().await;
    assert!(guarded.client(Some("reader")).embed_text(text("four")).await.is_ok());
    let status = guarded.client(Some("reader")).get_model(GetModelRequest {}).await.expect_err("needs admin");
    let fault = Fault::from_status(&status);
    let message = "this needs the right to admin on collection `lobby`".to_owned();
    assert_eq!(fault, Fault::PermissionDenied { message });
    assert!(guarded.client(Some("chief")).get_model(GetModelRequest {}).await.is_ok());
}

#[tokio::test]
async fn the_audit_log_has_a_line_for_refusals_and_admin_calls_and_none_for_reads() {
    let guarded = guarded().await;
    let _ = guarded.client(Some("reader")).embed_text(text("four")).await;
    let _ = guarded.client(None).embed_text(text("secret words")).await;
    let _ = guarded.client(Some("reader")).get_model(GetModelRequest {}).await;
    let _ = guarded.client(Some("chief")).get_model(GetModelRequest {}).await;
    // The last line is written when the last body is done, which the client may see a moment earlier.
    while guarded.audit().len() < 3 {
        tokio::task::yield_now().await;
    }
    let lines = guarded.audit();
    let fields = |line: &serde_json::Value| {
        let text = |name: &str| line[name].as_str().unwrap_or("-").to_owned();
        [text("caller"), text("method"), text("right"), text("collection"), text("outcome")]
    };
    let method = "thicket.v1.EmbeddingService/GetModel";
    assert_eq!(lines.len(), 3);
    assert_eq!(
        fields(&lines[0]),
        ["unknown", "thicket.v1.EmbeddingService/EmbedText", "-", "-", "UNAUTHENTICATED"]
    );
    assert_eq!(fields(&lines[1]), ["reader", method, "admin", "lobby", "PERMISSION_DENIED"]);
    assert_eq!(fields(&lines[2]), ["chief", method, "admin", "lobby", "OK"]);
    for line in &lines {
        assert!(line["peer"].as_str().expect("a peer").starts_with("127.0.0.1:"), "{line}");
        assert_eq!(line["role"], "embedding");
        assert!(line["time_unix_ms"].as_u64().expect("a time") > 1_700_000_000_000);
        assert!(!line.to_string().contains("secret"), "no content: {line}");
    }
}

#[tokio::test]
async fn an_open_api_on_a_public_address_refuses_to_start() {
    let config = RoleConfig { listen: ([0, 0, 0, 0], 0).into(), ..config() };
    let refused = Server::bind(Role::Gallery, &config).await;
    assert!(matches!(refused, Err(StartError::Open { .. })), "{refused:?}");
}
