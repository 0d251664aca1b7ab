use std::collections::HashMap;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;

use crate::health::{Health, Probe};
use crate::{Role, health};

#[derive(Debug, Clone)]
struct Admin {
    role: Role,
    health: Health,
}

/// The admin pages: `/livez /readyz /startupz /metrics /version`.
pub(crate) fn router(role: Role, health: Health) -> Router {
    Router::new()
        .route("/livez", get(|admin, query| probe(Probe::Live, admin, query)))
        .route("/readyz", get(|admin, query| probe(Probe::Ready, admin, query)))
        .route("/startupz", get(|admin, query| probe(Probe::Startup, admin, query)))
        .route("/metrics", get(metrics))
        .route("/version", get(version))
        .with_state(Admin { role, health })
}

async fn probe(probe: Probe, State(admin): State<Admin>, RawQuery(query): RawQuery) -> Response {
    let now = admin.health.snapshot();
    let passes = match probe {
        Probe::Live => now.live,
        Probe::Ready => now.ready,
        Probe::Startup => now.state != health::State::Starting,
    };
    let verbose = query.is_some_and(|query| query.split('&').any(|part| part.starts_with("verbose")));
    let mut page = String::new();
    if verbose {
        let notes: HashMap<String, String> = admin.health.notes().into_iter().collect();
        for (name, failure) in admin.health.report(probe) {
            match failure {
                None => match notes.get(&name) {
                    None => page += &format!("[+] {name}: ok\n"),
                    Some(note) => page += &format!("[+] {name}: ok, {note}\n"),
                },
                Some(reason) => page += &format!("[-] {name}: {reason}\n"),
            }
        }
    }
    page += if passes { "ok\n" } else { "failed\n" };
    let status = if passes { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, page).into_response()
}

async fn metrics() -> Response {
    let text = thicket_telemetry::prometheus_text();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text).into_response()
}

async fn version(State(admin): State<Admin>) -> Response {
    let page = serde_json::json!({ "role": admin.role.name(), "version": env!("CARGO_PKG_VERSION") });
    ([(header::CONTENT_TYPE, "application/json")], format!("{page}\n")).into_response()
}
